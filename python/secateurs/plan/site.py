"""Sites: the places of a model that can lose something."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Site:
    """A place in a model that can lose something.

    `kind` is "heads" (attention heads of one layer), "attention_rules" (which keys each of them
    sees), "neurons" (FFN neurons of one layer), "module" (a whole residual sub-layer, or both of a
    layer) or "linear" (tiles of one weight). `shape` is what a mask covers: `(H,)`, `(H,)`, `(F,)`,
    `()` or the weight's `(N, K)`. `layer` counts through all stacks of a model, and `part` is what
    the place is called in its layer.
    """

    name: str
    kind: str
    layer: int
    shape: tuple[int, ...]
    part: str = ""
