"""The architectures that secateurs knows: one record each, named among the RECORDS of its file.

Where one kind of model is built in several ways, each has a record; the first one that the config
asks for and whose linears are there is taken.
"""

from __future__ import annotations

from secateurs.architectures.records import bert, gpt, llama, seq2seq, sound, vision
from secateurs.architectures.schema import Architecture
from secateurs.checks import door
from secateurs.errors import FamilyError


def _by_type(*records: Architecture) -> dict[str, tuple[Architecture, ...]]:
    """Records by kind of model, in the order in which they are tried."""
    found: dict[str, tuple[Architecture, ...]] = {}
    for record in records:
        found[record.model_type] = (*found.get(record.model_type, ()), record)
    return found


ARCHITECTURES: dict[str, tuple[Architecture, ...]] = _by_type(
    *bert.RECORDS,
    *vision.RECORDS,
    *sound.RECORDS,
    *llama.RECORDS,
    *gpt.RECORDS,
    *seq2seq.RECORDS,
)


@door
def register_architecture(model_type: str, like: str | Architecture) -> None:
    """Let models of another kind be pruned, in this process.

    Only what the layers are made of is told; that they compute what the record says is found out
    by `convert`, which compares every layer with the stock one. They must be transformers' own.

    Args:
        model_type: of the config.
        like: a known kind whose layers are built the same, or a record
            (`secateurs.architectures.schema.Architecture`).

    Raises FamilyError for a kind that has a record, and for an unknown `like`.
    """
    if not model_type or model_type in ARCHITECTURES:
        raise FamilyError(f"expected a kind of model without a record, got {model_type!r}")
    if isinstance(like, Architecture):
        records: tuple[Architecture, ...] = (like,)
    elif like in ARCHITECTURES:
        records = ARCHITECTURES[like]
    else:
        raise FamilyError(f"expected a known kind of model as like, got {like!r}")
    ARCHITECTURES[model_type] = tuple(record.named(model_type) for record in records)
