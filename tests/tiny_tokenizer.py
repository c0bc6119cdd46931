"""A tokenizer made here, with one token per word."""

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

WORDS = [
    *("the", "a", "of", "in", "on", "what", "where", "who", "which", "colour", "animal", "city"),
    *("river", "lives", "sleeps", "runs", "near", "under", "house", "tree", "old", "new", "red", "blue"),
    *("green", "cat", "dog", "bird", "fox", "mouse", "paris", "rome", "london", "oslo", "seine", "tiber"),
    *("thames", "fjord", "is", "not", "and", "or", "big", "small", ".", ",", "?"),
]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *WORDS])}
    model = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    model.normalizer = normalizers.Lowercase()
    model.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    model.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    }
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=model, model_input_names=inputs, model_max_length=16, **names)
