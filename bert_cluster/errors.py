"""The errors of this package: each says what was expected, what came, and what to do."""


class BertClusterError(Exception):
    """Base of all errors of this package."""


class ConfigError(BertClusterError, ValueError):
    """Settings that no method can run with, or that cannot be read."""


class UnsupportedModelError(BertClusterError, ValueError):
    """A model whose attention this package cannot make clustered. Nothing of it has been changed."""


class NotPatchedError(BertClusterError, RuntimeError):
    """A model that should be patched is not."""


class NotPatchedWarning(UserWarning):
    """A checkpoint was loaded without any settings to patch it with."""


class AttentionWeightsError(BertClusterError, ValueError):
    """Attention weights were asked for where there are none to give."""


class DeviceError(BertClusterError, ValueError):
    """A device that is not here."""


class CalibrationError(BertClusterError, ValueError):
    """Texts, a target or candidates that calibration cannot work with. The model is as it was."""


class SaveError(BertClusterError, ValueError):
    """A model, results, names or a card that cannot be saved or pushed as they are. Nothing of them was."""


class LoadError(BertClusterError, OSError):
    """A checkpoint that could not be loaded, because the way to it broke or a package is missing."""


class HubError(BertClusterError, RuntimeError):
    """The Hub, or the way to it, refused. The text says what is visible on the Hub now."""


class ExactAttentionWarning(UserWarning):
    """A call of a patched layer ran exact attention, because its mask is not a padding mask."""


class AttentionDropoutWarning(UserWarning):
    """A patched layer trains without the attention dropout that its model asks for."""


class ExtendedPositionsWarning(UserWarning):
    """A model got positions that it was not trained on."""
