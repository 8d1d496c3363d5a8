"""Arguments that commands share: how their words are read, and which have an effect together."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping
from typing import Any

from secateurs.errors import DataError

LARGEST = 10**9  # of whole numbers: larger ones are typing errors, and overflow
# What sampling arguments are where they are left out: None until then, for none is passed over.
SAMPLING: dict[str, Any] = {"examples": 256, "batch_size": 16, "max_length": 128}
PICTURES = (".png", ".svg", ".pdf")
Effects = Mapping[str, tuple[bool, str]]


def add_pruning(parser: argparse.ArgumentParser, *, needs_budget: bool = True) -> None:
    """Add what the pruning commands take: the model, the method and how much goes."""
    parser.add_argument("--model", required=True, metavar="DIR", help="a transformers model folder")
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="a new folder for the fast model"
    )
    parser.add_argument(
        "--budget", required=needs_budget, help="fractions to remove, as heads=0.5,neurons=0.5"
    )
    parser.add_argument(
        "--method",
        default="gradient" if needs_budget else None,
        type=method_name,
        help="a name that `secateurs methods` lists (default: gradient"
        + (")" if needs_budget else "; for a time, the better of kprune and obs)"),
    )
    parser.add_argument(
        "--allocator",
        type=allocator_name,
        metavar="NAME",
        help="how the layers share the budget: global (the lowest scores of the whole model go) or "
        "per_layer (every layer loses the same share); default: the method's own",
    )
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        type=name_and_value,
        metavar="NAME=VALUE",
        help="set an option of the method or the allocator; `secateurs methods NAME` lists them",
    )
    parser.add_argument("--seed", type=seed, default=0, help="of random numbers (default: 0)")


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """Add how much data is read, and in which batches."""
    parser.add_argument(
        "--examples",
        type=positive,
        metavar="N",
        help="decide on N examples what goes (default: 256)",
    )
    parser.add_argument("--batch-size", type=positive, metavar="N", help="default: 16")
    parser.add_argument(
        "--max-length", type=positive, metavar="TOKENS", help="cut longer texts (default: 128)"
    )


def add_precision(parser: argparse.ArgumentParser, former: tuple[str, ...] = ()) -> None:
    """Add in what the linears of the converted model compute; `former` words are read too, but not
    told."""
    parser.add_argument(
        "--precision",
        choices=("int8", *former),
        metavar="{int8}",
        help="run linears on weights and inputs of 8 bits, on the CPU (default: the model's own "
        "dtype)",
    )


def settle(options: argparse.Namespace, defaults: Mapping[str, Any], effects: Effects) -> None:
    """Give arguments that were left out their defaults.

    Args:
        effects: of arguments that may have none: whether each has one here, and where it does.

    Raises DataError for an argument that was used and would have no effect beside the others.
    """
    for name, (has_effect, where) in sorted(effects.items()):
        if getattr(options, name) is not None and not has_effect:
            raise DataError(
                f"expected --{name.replace('_', '-')} only {where}: here it would have no effect"
            )
    for name, default in defaults.items():
        if getattr(options, name) is None:
            setattr(options, name, default)


def method_options(
    method: str, pairs: list[tuple[str, str]], allocator: str | None = None
) -> dict[str, Any]:
    """Read the words of `--option` as options of `method` and its allocator. Raises MethodError
    for an unknown one, ArgumentError for a value that it does not take, DataError for one that
    comes twice."""
    from secateurs.checks import read_options
    from secateurs.pruning import check_options, option_owner

    words = dict(pairs)
    if len(words) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"expected each --option once, got {twice} twice")
    values: dict[str, Any] = {}
    for name, word in words.items():
        values |= read_options(option_owner(method, name, allocator), {name: word})
    return check_options(method, values, allocator)


def method_name(text: str) -> str:
    """Read the name of a pruning method."""
    from secateurs.pruning import METHODS

    return _one_of(text, METHODS)


def peer_name(text: str) -> str:
    """Read the name of a dense peer."""
    from secateurs.measurement.peers import PEERS

    return _one_of(text, PEERS)


def allocator_name(text: str) -> str:
    """Read the name of an allocator."""
    from secateurs.pruning import ALLOCATORS

    return _one_of(text, ALLOCATORS)


def names(text: str) -> list[str]:
    """Read names with commas between them."""
    return [name.strip() for name in text.split(",")]


def positive(text: str) -> int:
    """Read a whole number of at least 1."""
    return _whole(text, 1, LARGEST)


def seed(text: str) -> int:
    """Read a seed that every generator takes."""
    from secateurs.checks import SEEDS

    return _whole(text, 0, SEEDS - 1)


def epochs(text: str) -> float:
    """Read a number of epochs, which may be 0 or a fraction."""
    return _number(text, lambda number: 0 <= number < 1e6, "a number of at least 0")


def seconds(text: str) -> float:
    """Read a time in seconds."""
    return _number(text, lambda number: 0 <= number < 1e6, "seconds of at least 0")


def rate(text: str) -> float:
    """Read a learning rate."""
    return _number(text, lambda number: 0 < number < 1e6, "a learning rate above 0")


def shape(text: str) -> tuple[int, int]:
    """Read `BxT`: a batch size and a number of tokens."""
    batch, _, tokens = text.partition("x")
    return positive(batch), positive(tokens)


def above_one(text: str) -> float:
    """Read a factor above 1."""
    return _number(text, lambda number: 1 < number < 1e6, "a factor above 1")


def milliseconds(text: str) -> float:
    """Read a time in milliseconds, with or without its unit."""
    return _number(text.removesuffix("ms"), lambda number: 0 < number < 1e9, "a time like 4ms")


def weighted_shape(text: str) -> tuple[tuple[int, int], float]:
    """Read `BxT` or `BxT:WEIGHT`."""
    name, colon, weight = text.partition(":")
    fits = _number(weight, lambda number: 0 < number < 1e6, "a weight above 0") if colon else 1.0
    return shape(name), fits


def picture(text: str) -> str:
    """Read the name of a picture, whose ending says what it is written as."""
    if not text.lower().endswith(PICTURES):
        raise argparse.ArgumentTypeError(
            f"expected a name that ends in {', '.join(PICTURES)}, got {text[-40:]!r}"
        )
    return text


def name_and_value(text: str) -> tuple[str, str]:
    """Read `NAME=VALUE`."""
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, got {text!r}")
    return name, value


def _one_of(text: str, known: Mapping[str, Any]) -> str:
    if text not in known:
        raise argparse.ArgumentTypeError(f"expected one of {', '.join(known)}, got {text!r}")
    return text


def _whole(text: str, least: int, most: int) -> int:
    # Longer words are not read: Python itself refuses those of thousands of digits.
    if not (text.isascii() and text.isdecimal() and len(text) < 20 and least <= int(text) <= most):
        raise argparse.ArgumentTypeError(
            f"expected a whole number from {least} to {most}, got {text[:40]!r}"
        )
    return int(text)


def _number(text: str, fits: Callable[[float], bool], kind: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not fits(value):
        raise argparse.ArgumentTypeError(f"expected {kind}, got {text[:40]!r}")
    return value
