"""Clustered attention for pretrained Hugging Face encoders, in one call: `bert_cluster.patch(model)`."""

from bert_cluster.attention import attention
from bert_cluster.calibration.api import calibrate
from bert_cluster.config import ClusterConfig
from bert_cluster.dispatch import register
from bert_cluster.errors import (
    AttentionWeightsError,
    BertClusterError,
    CalibrationError,
    ConfigError,
    HubError,
    LoadError,
    NotPatchedError,
    SaveError,
    UnsupportedModelError,
)
from bert_cluster.hub.saving import Saved, save_pretrained
from bert_cluster.hub.upload import Pushed, push_to_hub
from bert_cluster.info import LayerInfo, ModelInfo, info
from bert_cluster.loading import from_pretrained
from bert_cluster.patching import patch, unpatch
from bert_cluster.positions import extend_positions

register()

__version__ = "0.1.0"

__all__ = [
    "AttentionWeightsError",
    "BertClusterError",
    "CalibrationError",
    "ClusterConfig",
    "ConfigError",
    "HubError",
    "LayerInfo",
    "LoadError",
    "ModelInfo",
    "NotPatchedError",
    "Pushed",
    "SaveError",
    "Saved",
    "UnsupportedModelError",
    "__version__",
    "attention",
    "calibrate",
    "extend_positions",
    "from_pretrained",
    "info",
    "patch",
    "push_to_hub",
    "save_pretrained",
    "unpatch",
]
