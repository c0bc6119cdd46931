"""What `calibrate` chooses for texts of one length, and what the choice keeps and costs on other texts."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from long_measures import compare_texts
from torch import Tensor
from transformers import PreTrainedModel

from bert_cluster.calibration import run

CALIBRATED = "calibrated"


def calibrate_and_compare(
    model: PreTrainedModel, tokenizer: Any, known: Sequence[Tensor], unknown: Sequence[Tensor], *, target: float
) -> dict[str, Any]:
    """Calibrate on some texts; the error, embedding and time of the choice on texts that calibration did not get.

    Args:
        known, unknown: (1, N) token numbers each, special tokens included.
        target: of the relative error of the last hidden states.

    Returns:
        target, texts (known, unknown), layers (the rows of calibration's table), held_out (error on the third of the known texts
        that calibration keeps apart), attention (its seconds over those of full attention, by the operators' timings), notes;
        and where a layer is clustered: error, errors, cosine, median_s, times_full on the unknown texts.
    """
    tokens = known[0].shape[1]
    texts = [tokenizer.decode(ids[0, 1:-1]) for ids in known]
    found = run(model, tokenizer, texts, target=target, max_tokens=tokens, progress=False)
    rows = compare_texts(model, unknown, {CALIBRATED: found.config}) if found.reached else {}
    full = sum(layer.full_seconds for layer in found.layers)
    return {
        "target": target,
        "texts": {"known": len(known), "unknown": len(unknown)},
        "layers": [asdict(layer) for layer in found.layers],
        "held_out": None if found.held_out is None else asdict(found.held_out),
        "attention": round(sum(layer.seconds for layer in found.layers) / full, 4),
        "notes": list(found.notes),
        **rows.get(CALIBRATED, {}),
    }
