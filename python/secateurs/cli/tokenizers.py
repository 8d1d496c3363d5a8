"""The tokenizer of a model folder, made fit for its model."""

from __future__ import annotations

import argparse
from typing import Any

from secateurs.cli.terminal import tell


def tokenizer_of(options: argparse.Namespace, model: Any) -> Any:
    """Open the tokenizer in `options.model`; a `max_length` beyond the model's positions is cut,
    with a sentence on stderr. Raises DataError if the folder has none that can be used."""
    from secateurs.data.text import check_has_files, fit_tokenizer
    from secateurs.storage.model_folders import open_tokenizer

    tokenizer = open_tokenizer(options.model)
    check_has_files(tokenizer, options.model)
    positions = fit_tokenizer(tokenizer, model, options.max_length)
    if positions < options.max_length:
        tell(options, f"the model reads {positions} tokens, longer texts are cut to them")
        options.max_length = positions
    return tokenizer
