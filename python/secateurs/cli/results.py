"""The folder of a result: the fast model with what makes it usable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from secateurs.storage.model_card import Measured


def measured_here(rows: Sequence[Mapping[str, Any]], model: Any) -> Measured:
    """Rows for the card of a model, with the machine that it runs on."""
    from secateurs.measurement.environment import describe_machine
    from secateurs.storage.model_card import Measured

    (device,) = {parameter.device for parameter in model.parameters()}
    return Measured(rows, describe_machine(device))


def write_model(
    model: Any, processor: Any, source: str, out: Path, measured: Measured | None = None
) -> None:
    """Save a converted model to `out`, with what made its inputs, or what in the folder `source`
    makes them; what a folder of sentence-transformers there has besides; and a card with what was
    measured."""
    from secateurs.storage.checkpoint import save
    from secateurs.storage.model_card import write_card
    from secateurs.storage.model_folders import copy_processors, tokenizer_in
    from secateurs.storage.sentence_folders import is_sentence_folder, keep_modules

    processor = processor or tokenizer_in(source)
    save(model, out)
    if is_sentence_folder(source):
        keep_modules(source, out)
    copy_processors(source, out, processor)
    write_card(out, model, measured)
