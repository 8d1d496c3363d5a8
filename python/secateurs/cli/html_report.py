"""The page about a pruned model folder: one file of HTML, without scripts, that fetches nothing.

It is for a browser in light and dark, on narrow and wide screens; bars are SVG within the tables,
so that their figures stay text.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from typing import Any

from secateurs import __version__
from secateurs.cli.contents import Contents
from secateurs.cli.markup import Markup, element
from secateurs.storage.model_card import Measured

MOST_CHARACTERS = 400  # of one note; a plan may hold more than anyone reads
# Even what would slip through the escaping could neither run nor fetch anything.
POLICY = "default-src 'none'; style-src 'unsafe-inline'"
DENSITIES = {
    "heads": "attention heads",
    "neurons": "neurons of the feed-forward sub-layers",
    "modules": "sub-layers",
    "parameters": "weights of the layers' linears",
    "macs": "multiply-adds of the layers, at 128 tokens",
}


def page(
    name: str, held: Contents, measured: Measured | None, environment: Mapping[str, Any]
) -> str:
    """The whole page.

    Args:
        name: of the folder.
        measured: what the folder's card holds; None where it holds nothing.
        environment: as `env_report` returns it, of the machine that writes the page.
    """
    style = files("secateurs.cli").joinpath("html_report.css").read_text(encoding="utf-8")
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", f"{name}, pruned"),
        element("style", Markup(style)),
    )
    body = element(
        "body",
        element("h1", name),
        element("p", _opening(held)),
        _section("What is left", _densities(held.density)),
        _section("Layer by layer", _layers(held.layers)),
        _section("How it came to be", _notes(held.notes)),
        _section("Measured", *_measured(measured)),
        _section("What was decided at each site", *_decisions(held)),
        _section("Written by", _versions(environment)),
    )
    return f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}\n"


def _opening(held: Contents) -> str:
    precision = held.precision or held.dtype
    return (
        f"A {held.model} of the family {held.family}, {len(held.layers)} layers, without what "
        f"a plan removes. Its linears compute in {precision}."
    )


def _densities(density: Mapping[str, float]) -> Markup:
    rows = [
        [element("th", DENSITIES.get(part, part)), _bar(share, "whole"), _number(f"{share:.1%}")]
        for part, share in density.items()
    ]
    return _table(("part", "kept", ""), rows)


def _layers(layers: Sequence[Mapping[str, Any]]) -> Markup:
    rows = []
    for layer in layers:
        cells = [_number(str(layer["layer"]))]
        for part in ("heads", "neurons"):
            kept, before = layer[part], layer[f"{part}_of"]
            cells += [_bar(kept / max(1, before), part), _number(f"{kept} of {before}")]
        rows.append([*cells, _number(f"{layer['weights']:.1%}")])
    return _table(("layer", "heads", "", "neurons", "", "weights"), rows)


def _notes(notes: Mapping[str, Any]) -> Markup:
    if not notes:
        return element("p", "The plan has no notes.")
    rows = [[element("th", _shown(key)), element("td", _shown(notes[key]))] for key in notes]
    return _table(("note", "value"), rows)


def _measured(measured: Measured | None) -> Iterable[Markup]:
    if measured is None:
        yield element("p", "The folder's card holds no times of ours.")
        return
    rows = [[_number(_shown(value)) for value in row.values()] for row in measured.rows]
    yield element("p", f"On {_shown(measured.machine)}, as the folder's card tells.")
    yield _table([_shown(heading) for heading in measured.rows[0]], rows)


def _decisions(held: Contents) -> Iterable[Markup]:
    """How many sites went which way, and all of them to unfold."""
    counts = Counter(decision.action for decision in held.decisions).most_common()
    yield _table(
        ("decision", "sites"), [[element("th", a), _number(str(count))] for a, count in counts]
    )
    rows = [
        [element("th", d.site), element("td", d.action), element("td", d.reason)]
        for d in held.decisions
    ]
    summary = element("summary", f"all {len(rows)} sites, and why")
    yield element("details", summary, _table(("site", "decision", "why"), rows))


def _versions(environment: Mapping[str, Any]) -> Markup:
    cpu, kernels = environment["cpu"], environment["kernels"]["cpu"]
    told = {
        "machine": f"{cpu['name']}, {cpu['threads']} threads",
        "instruction set": kernels.get("isa"),
        "platform": environment["platform"],
        **environment["versions"],
        "secateurs": __version__,
        "commit": environment["commit"],
    }
    rows = [
        [element("th", name), element("td", "-" if value is None else str(value))]
        for name, value in told.items()
    ]
    return _table(("what", "is"), rows)


def _section(heading: str, *content: Markup) -> Markup:
    return element("section", element("h2", heading), *content)


def _table(headings: Sequence[str], rows: Iterable[Sequence[Markup]]) -> Markup:
    """A table that scrolls by itself where the screen is narrower."""
    head = element("tr", *(element("th", heading) for heading in headings))
    body = (element("tr", *row) for row in rows)
    table = element("table", element("thead", head), element("tbody", *body))
    return element("div", table, class_="wide")


def _number(text: str) -> Markup:
    return element("td", text, class_="number")


def _bar(share: float, part: str) -> Markup:
    """A cell with a bar of `share` of its width, coloured as its part."""
    whole = element("rect", width="100%", height="100%", class_="track")
    kept = element("rect", width=f"{100 * share:.2f}%", height="100%", class_=part)
    return element("td", element("svg", whole, kept, aria_hidden="true"), class_="bar")


def _shown(value: Any) -> str:
    """A stranger's value as text of bounded length."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if len(text) <= MOST_CHARACTERS:
        return text
    return f"{text[:MOST_CHARACTERS]}… ({len(text)} characters)"
