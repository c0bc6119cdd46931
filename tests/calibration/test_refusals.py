"""What calibration refuses, by text, with the model untouched."""

from collections.abc import Callable
from typing import Any

import pytest
from transformers import BertTokenizer, T5Config, T5EncoderModel

from bert_cluster import BertClusterError, CalibrationError, UnsupportedModelError, calibrate, patch
from bert_cluster.calibration import Timings


@pytest.fixture
def refused(tokenizer: Any) -> Callable[..., str]:
    """refused(model, texts, **options) -> text of the error."""

    def call(model: Any, texts: Any, **options: Any) -> str:
        with pytest.raises(BertClusterError) as caught:
            calibrate(model, tokenizer, texts, progress=False, **options)
        return str(caught.value)

    return call


def test_texts(refused: Callable[..., str], tiny: Any) -> None:
    assert refused(tiny(), []).startswith("There are no texts. Give some of those that the model will read")
    assert refused(tiny(), None) == "texts must be a list of texts, got NoneType."
    assert refused(tiny(), "w5 w6") == "texts must be a list of texts, got one text. Write [text]."
    assert refused(tiny(), ["w5", 7]) == "texts[1] must be a text or a pair of texts, got int: 7."
    assert "texts[0] must be a text or a pair of texts, got tuple" in refused(tiny(), [("a", "b", "c")])


def test_texts_without_any_token(tiny: Any, tokenizer: Any) -> None:
    class Bare:
        """A tokenizer that adds nothing."""

        def __getattr__(self, name: str) -> Any:
            return getattr(tokenizer, name)

        def __call__(self, *texts: str, **options: Any) -> Any:
            return tokenizer(*texts, add_special_tokens=False, **options)

    with pytest.raises(CalibrationError, match="finds no token in any of the texts"):
        calibrate(tiny(), Bare(), ["", ""], progress=False)


def test_models(refused: Callable[..., str], texts: list[str]) -> None:
    model = T5EncoderModel(T5Config(vocab_size=60, d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4))
    with pytest.raises(UnsupportedModelError):
        calibrate(model, None, texts, progress=False)
    assert "A transformers model" in refused("bert", texts)


@pytest.mark.parametrize("tokenizer", [None, "bert", BertTokenizer])
def test_tokenizers(tokenizer: Any, tiny: Any, texts: list[str]) -> None:
    with pytest.raises(CalibrationError, match="tokenizer must be the model's tokenizer, got .*Load it with AutoToken"):
        calibrate(tiny(), tokenizer, texts, progress=False)


@pytest.mark.parametrize("target", [0, -1, float("nan"), "small"])
def test_targets(target: Any, refused: Callable[..., str], tiny: Any, texts: list[str]) -> None:
    assert f"such as 0.05; got {target!r}" in refused(tiny(), texts, target=target)
    assert f"such as 0.99; got {target!r}" in refused(tiny("classifier"), texts, target=target, metric="agreement")


def test_heads(refused: Callable[..., str], tiny: Any, texts: list[str], forwards: list[int]) -> None:
    expected = (
        "metric 'agreement' compares the outputs of a head, and BertModel has none. Use metric='hidden', or a model"
    )
    assert expected in refused(tiny(), texts, metric="agreement")
    assert len(forwards) == 1  # before anything long runs
    assert "gives one number. Use metric='hidden'." in refused(tiny("classifier", num_labels=1), texts, metric="kl")
    expected = "the head of BertForMultipleChoice chooses among several. Use metric='hidden'."
    assert expected in refused(tiny("choice"), texts, metric="agreement")
    assert "metric must be one of hidden, agreement, kl" in refused(tiny(), texts, metric="loss")


def test_candidates(refused: Callable[..., str], tiny: Any, texts: list[str]) -> None:
    assert "candidates[0] must map fields" in refused(tiny(), texts, candidates=["clustered"])
    assert "candidates[0]: clusters must be a whole number" in refused(tiny(), texts, candidates=[{"clusters": 0}])
    assert "candidates[0] sets layers. A candidate is a method" in refused(tiny(), texts, candidates=[{"layers": {}}])
    assert "candidates holds no clustered settings" in refused(tiny(), texts, candidates=[{"method": "full"}])


def test_other_arguments(refused: Callable[..., str], tiny: Any, texts: list[str]) -> None:
    assert "max_tokens must be a whole number from 4, got 0." in refused(tiny(), texts, max_tokens=0)
    for seed in ("a", -1, True, 2**32):
        expected = f"seed must be a whole number from 0 to {2**32 - 1}, got {seed!r}."
        assert refused(tiny(), texts, seed=seed) == expected
    assert "timings has no seconds for 'full'" in refused(tiny(), texts, timings=Timings({}, {}))


def test_models_that_give_nan(
    refused: Callable[..., str], tiny: Any, texts: list[str], fast: Any, candidates: Any
) -> None:
    model = tiny()
    model.encoder.layer[0].output.dense.bias.data[0] = float("nan")
    assert "gives NaN with full attention" in refused(model, texts, timings=fast(), candidates=candidates)


def test_models_that_run_past_the_patch(
    refused: Callable[..., str], tiny: Any, texts: list[str], fast: Any, candidates: Any
) -> None:
    model = patch(tiny())
    model.config._attn_implementation = "sdpa"
    told = refused(model, texts, timings=fast(), candidates=candidates)
    assert "encoder.layer.0.attention.self was to run refined-clustered and ran not through bert_cluster" in told
