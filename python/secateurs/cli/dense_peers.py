"""Dense peers beside what was pruned: which are wanted, and their rows."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from secateurs.cli.arguments import peer_name
from secateurs.cli.terminal import tell
from secateurs.measurement.peers import COMPILED, PEERS, installed


def add_peers(parser: argparse.ArgumentParser) -> None:
    """Add the dense models in other runtimes to compare with."""
    parser.add_argument(
        "--peers",
        nargs="*",
        type=peer_name,
        metavar="NAME",
        help="show the dense model in other runtimes, too, each timed in turns with transformers: "
        f"{', '.join(PEERS)}; without a name, in none (default: in all that are installed but "
        f"{COMPILED}, which takes minutes to build)",
    )


def wanted_peers(options: argparse.Namespace) -> list[str]:
    """The names of the peers to compare with, once each. Raises BackendError for one that is not
    installed."""
    from secateurs.measurement.environment import check_installed

    ready = [name for name in installed() if name != COMPILED]
    names = ready if options.peers is None else list(dict.fromkeys(options.peers))
    for name in names:
        check_installed(PEERS[name].packages, f"for the peer {name}")
    return names


def rows_of_peers(
    options: argparse.Namespace,
    names: Sequence[str],
    model: Any,
    batches: Sequence[Any],
    mix: Mapping[tuple[int, int], float],
    scores: Mapping[str, float],
) -> list[dict[str, Any]]:
    """What was measured of each peer; one that cannot be built or judged is told and left out.

    Args:
        batches: that a search read.
        scores: of the dense model, which are also those of a peer in its precision.
    """
    from secateurs.checks import dtype_name
    from secateurs.data.batches import shown
    from secateurs.errors import SecateursError
    from secateurs.measurement.peers.against_stock import figures_of_peer
    from secateurs.search.examples import split

    judged, fitted = split(batches)
    rows: list[dict[str, Any]] = []
    for name in shown(names, len(names), "peers", options.progress):
        peer = PEERS[name]
        try:
            figures = figures_of_peer(peer, model, mix, fitted=fitted, judged=judged)
        except SecateursError as error:
            tell(options, f"the peer {name} is left out: {error}")
            continue
        rows.append(
            {
                "peer": name,
                "stock_ms": figures.stock,
                "ms": figures.ms,
                "spread_ms": figures.spread,
                "speedup": figures.speedup,
                "precision": peer.precision or dtype_name(model.dtype),
                "cosine": figures.cosine,
                **({} if peer.precision else scores),
            }
        )
    return rows
