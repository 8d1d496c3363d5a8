"""What decides on the command line: text, examples or images, and batches of them for a model."""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from typing import Any

from secateurs.cli.terminal import tell


def add_sources(parser: argparse.ArgumentParser) -> None:
    """Add the files that may decide, of which one does."""
    sources = parser.add_mutually_exclusive_group()
    sources.add_argument("--text", metavar="FILE", help="read plain text, sentence by sentence")
    sources.add_argument(
        "--data",
        metavar="FILE",
        help="read JSON lines with text, and maybe text_pair, and label or target (for a decoder)",
    )
    sources.add_argument(
        "--images", metavar="DIR", help="read images in a folder or a tar, for a model of images"
    )


def reads_text(options: argparse.Namespace) -> bool:
    """Whether sentences decide."""
    return bool(options.text or options.data)


def has_source(options: argparse.Namespace) -> bool:
    """Whether anything decides."""
    return bool(reads_text(options) or options.images)


def read_rows(options: argparse.Namespace) -> Sequence[Any]:
    """All sentences or examples of the file that decides, or as many images as are asked for. It
    needs no model. Raises DataError for what cannot be read."""
    from secateurs.data.images import read_images
    from secateurs.data.text import read_examples, read_text

    if options.images:
        return read_images(options.images, options.examples, options.seed)
    return read_text(options.text) if options.text else read_examples(options.data)


def shuffled_batches(
    options: argparse.Namespace, model: Any, rows: Sequence[Any]
) -> tuple[Any, list[Any]]:
    """The tokenizer or the image processor of a model folder, and batches of `rows` in an order of
    the seed. Raises DataError for a folder without one, and a model that takes something else."""
    from secateurs.data import text
    from secateurs.data.images import image_batches

    if options.images:
        processor = image_processor_of(options.model, model)
        training = image_batches(processor, rows, options.batch_size)
    else:
        text.check_targets(model, rows)
        processor = tokenizer_of(options, model)
        training = text.batches(processor, rows, options.batch_size, options.max_length)
    random.Random(options.seed).shuffle(training)
    return processor, training


def parted(options: argparse.Namespace, batches: list[Any]) -> tuple[list[Any], list[Any]]:
    """The batches that hold the first `--examples`, which decide what goes, and the others."""
    count = -(-options.examples // options.batch_size)
    return batches[:count], batches[count:]


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


def image_processor_of(folder: str, model: Any) -> Any:
    """Open the image processor in a model folder. Raises DataError if it has none, if its images
    do not fit the model, and if the model takes no images."""
    from secateurs.data.images import check_size
    from secateurs.errors import DataError
    from secateurs.measurement.inputs import pair
    from secateurs.storage.model_folders import open_image_processor

    if model.main_input_name != "pixel_values":
        raise DataError(
            f"expected a model of images in {folder}, got one of {model.main_input_name}"
        )
    processor = open_image_processor(folder)
    check_size(processor, (model.config.num_channels, *pair(model.config.image_size)))
    return processor
