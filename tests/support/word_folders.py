"""Folders of stock models with a tokenizer of whole words."""

from __future__ import annotations

from pathlib import Path

from torch import nn

WORDS = "the old house stood by a river and nobody came there in winter".split()  # noqa: SIM905


def saved(path: Path, model: nn.Module, **special: str) -> Path:
    """A stock model with a word tokenizer, as transformers saves them."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {word: i for i, word in enumerate(["[PAD]", "[UNK]", *WORDS, "</s>"])}
    words = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    model.save_pretrained(path)
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(path)
    return path
