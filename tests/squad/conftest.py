"""Tokenizers built here, and texts with the difficulties of real ones."""

from typing import Any

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from squad_eval.data import Example

CONTEXTS = (
    (
        "The Normans (Norman: Nourmands; French: Normands) were the people who in the 10th and 11th centuries gave their "
        "name to Normandy, a region in France. They were descended from Norse raiders and pirates from Denmark, Iceland."
    ),
    (
        "Beyoncé Giselle Knowles-Carter (/biːˈjɒnseɪ/ bee-YON-say) (born September 4, 1981) is an American singer; her début "
        "“Dangerously in Love” sold 11 million copies — and earned five Grammys.\u2028In 2013 she was 31¾ years old."
    ),
    "北京市，簡稱京，是中华人民共和国的首都。  The city’s population was 21,893,095!!  Straße, ﬁve, İstanbul, 𝔊othic 👩‍🚀.",
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen",
)


def characters() -> list[str]:
    """Every character of the texts in the forms that lower-casing and accent stripping give."""
    normaliser = normalizers.BertNormalizer(lowercase=True)
    return sorted(set("".join(normaliser.normalize_str(text) for text in CONTEXTS)) - set(" "))


def wordpiece(padding_side: str = "right") -> PreTrainedTokenizerFast:
    """BERT's tokenizer with a small vocabulary: some words, and pieces of one character for the rest."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    words = [
        "the",
        "people",
        "who",
        "in",
        "were",
        "from",
        "denmark",
        "norman",
        "##s",
        "##dy",
        "city",
        "population",
        "who",
        "is",
        "what",
        "when",
        "was",
        "sold",
    ]
    pieces = [*characters(), *(f"##{character}" for character in characters())]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys([*special, *words, *pieces]))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        padding_side=padding_side,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    )


def bytelevel() -> PreTrainedTokenizerFast:
    """RoBERTa's scheme: bytes, no token types, two separators between the texts."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0), trim_offsets=True, add_prefix_space=False
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_input_names=["input_ids", "attention_mask"],
        pad_token="<pad>",
        unk_token="<unk>",
        cls_token="<s>",
        sep_token="</s>",
    )


def without_cls() -> PreTrainedTokenizerFast:
    """A tokenizer of whole words that adds no special tokens and has no CLS."""
    words = CONTEXTS[3].split()
    tokenizer = Tokenizer(
        models.WordLevel({word: number for number, word in enumerate(["[UNK]", *words])}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")


TOKENIZERS = {
    "wordpiece": wordpiece(),
    "padding left": wordpiece("left"),
    "byte level": bytelevel(),
    "no cls": without_cls(),
}


@pytest.fixture(params=list(TOKENIZERS.values()), ids=list(TOKENIZERS))
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def words() -> PreTrainedTokenizerFast:
    """One token a word, no special tokens: windows can be written down by hand."""
    return TOKENIZERS["no cls"]


@pytest.fixture
def examples() -> list[Example]:
    """One question about each text, and one about nothing."""
    asked = [Example(str(number), "  Who is what?", context, ("x",)) for number, context in enumerate(CONTEXTS)]
    return [*asked, Example("empty", "Who?", "", ("x",))]
