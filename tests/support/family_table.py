"""The tables of docs/families.md, made of the records. Run as a program it writes them there."""

from __future__ import annotations

import re
from pathlib import Path

from secateurs.architectures.records import ARCHITECTURES
from secateurs.architectures.refused import IN_THE_WAY
from secateurs.architectures.schema import Architecture

PAGE = Path(__file__).parents[2] / "docs" / "families.md"


def tables() -> dict[str, str]:
    """Each table, by the heading it stands under."""
    known = ["| model type | kind | norms | FFN | besides |", "|---|---|---|---|---|"]
    for records in ARCHITECTURES.values():
        rows = dict.fromkeys(_row(record) for record in records)
        known += rows
    refused = ["| model type | in the way |", "|---|---|"]
    refused += [f"| `{kind}` | {why} |" for kind, why in IN_THE_WAY.items()]
    return {"Families": "\n".join(known), "Not yet": "\n".join(refused)}


def written(text: str) -> str:
    """`text` of the page with these tables in place of its own."""
    for heading, table in tables().items():
        text, count = re.subn(
            rf"(\n## {heading}\n(?:(?!\n[|#]).)*\n)\|.*?(?=\n\n|\n$)",
            lambda found, table=table: found[1] + table,
            text,
            flags=re.DOTALL,
        )
        assert count == 1, heading
    return text


def _row(record: Architecture) -> str:
    kind = "RMSNorm" if record.rms_norm else "LayerNorm"
    place = "in front" if record.norm_first else "behind"
    cells = (
        f"`{record.model_type}`",
        _kind(record),
        f"{kind} {place}",
        "gated" if record.ffn.gated else "plain",
        "; ".join(_besides(record)),
    )
    return f"| {' | '.join(cells)} |"


def _kind(record: Architecture) -> str:
    if record.decoder is not None:
        return "encoder and decoder, or an encoder"
    return "decoder" if record.causal else "encoder"


def _besides(record: Architecture) -> list[str]:
    attention = record.attention
    facts = {
        "fewer heads of keys and values, where the config says so": (
            record.kv_heads != record.heads
        ),
        "q, k and v in one linear": any(linear.shares for linear in attention.linears),
        "gate and up in one linear": any(linear.shares for linear in record.ffn.linears),
        "bias by relative position": attention.biased,
        "norms of queries and keys": bool(attention.head_norms),
        "factors of sub-layers": attention.scale is not None,
        "norms behind the outputs of sub-layers": attention.output_norm is not None,
        "norms store their distance to one": bool(record.norm_offset),
        "attention and FFN side by side": record.parallel,
    }
    told = [fact for fact, holds in facts.items() if holds]
    return told if record.when is None else [f"`{record.when[0]}={record.when[1]}`", *told]


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
