"""Elements of HTML and SVG in which every text is escaped: a stranger's words stay words."""

from __future__ import annotations

from html import escape

from secateurs.cli.terminal import printable

_EMPTY = ("meta", "br")  # elements that are never closed


class Markup(str):
    """Text that is HTML already; any other text is escaped before it becomes part of an element."""

    __slots__ = ()


def element(tag: str, /, *children: str, **attributes: str) -> Markup:
    """An element around `children`: elements, or texts, which are escaped.

    Args:
        attributes: by their names; `class_` is `class`, and other underscores are hyphens.
    """
    settings = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_escaped(value)}"'
        for key, value in attributes.items()
    )
    inside = "".join(child if isinstance(child, Markup) else _escaped(child) for child in children)
    return Markup(f"<{tag}{settings}>" + ("" if tag in _EMPTY else f"{inside}</{tag}>"))


def _escaped(text: str) -> str:
    return escape(printable(text))
