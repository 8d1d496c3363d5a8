"""The page about a pruned folder: it holds what was kept, and a stranger's words stay words."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest
import torch
from cli.conftest import run
from support.tiny_models import tiny_model

from secateurs import HeadMask, NeuronMask, SparsityPlan, convert, save
from secateurs.cli import main as cli
from secateurs.cli.markup import Markup, element
from secateurs.storage.model_card import Measured, write_card

HOSTILE = "<script src='//x'>alert(1)</script> \" onload=y' &amp; <!-- ]]> \u202e\x1b[2J \ud800"
MEASURED = Measured([{"batch x tokens": "8x128", "ms": 12.5}], "a CPU <b>, 2 threads")


class Page(HTMLParser):
    """Elements with their attributes, and the text between them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)

    def handle_comment(self, data):
        pytest.fail(f"a comment: {data}")


@pytest.fixture
def pruned(tmp_path):
    masks = {
        "layers.0.heads": HeadMask(torch.tensor([False, True, True, True])),
        "layers.1.neurons": NeuronMask(torch.arange(96) < 24),
    }
    notes = {"method": HOSTILE, HOSTILE: 1, "budget": {"heads": HOSTILE}, "long": "x" * 5000}
    fast = convert(tiny_model("bert"), SparsityPlan(masks, notes=notes))
    save(fast, tmp_path / "pruned")
    write_card(tmp_path / "pruned", fast, MEASURED)
    return tmp_path / "pruned"


def page_of(folder, path) -> Page:
    assert run("report", folder, "--html", path) == 0
    return Page(path.read_text(encoding="utf-8"))


def test_the_page_shows_what_is_left_and_what_was_measured(pruned, tmp_path, capsys):
    told = tmp_path / "told.json"
    assert run("report", pruned, "--html", tmp_path / "page.html", "--json", told) == 0
    assert "written to" in capsys.readouterr().out
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    words = set(page.words)
    assert {"3 of 4", "24 of 96", "91.7%", "8x128", "12.50"} <= words
    assert "On a CPU <b>, 2 threads, as the folder's card tells." in words
    result = json.loads(told.read_text())
    assert {decision["reason"] for decision in result["decisions"]} <= words
    assert result["measured"]["rows"] == [{"batch x tokens": "8x128", "ms": "12.50"}]
    assert str(torch.__version__) in words
    bars = {
        name: [a["width"] for tag, a in page.elements if tag == "rect" and a["class"] == name]
        for name in ("heads", "neurons")
    }
    assert bars["heads"][0] == "75.00%"
    assert bars["neurons"][1] == "25.00%"


def test_a_strangers_words_stay_words(pruned, tmp_path):
    page = page_of(pruned, tmp_path / "page.html")
    text = "".join(page.words)
    assert "<script src='//x'>alert(1)</script> \" onload=y' &amp; <!-- ]]> " in text
    assert not {"\u202e", "\x1b", "\ud800"} & set(text)
    assert "x" * 401 not in text
    assert "(5000 characters)" in text
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "img", "link", "iframe", "object", "base", "a", "b"}
    for _, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")]
        assert not {"src", "href"} & attributes.keys()


def test_the_page_fetches_nothing_and_runs_nothing(pruned, tmp_path):
    page = page_of(pruned, tmp_path / "page.html")
    policies = [a["content"] for tag, a in page.elements if a.get("http-equiv")]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'"]
    (style,) = re.findall(r"<style>(.*?)</style>", (tmp_path / "page.html").read_text(), re.S)
    assert "prefers-color-scheme: dark" in style
    assert not re.search(r"url\(|@import|//", style)


def test_a_card_without_figures_or_of_somebody_else_shows_none(pruned, tmp_path):
    card = pruned / "README.md"
    card.write_text(card.read_text().replace("12.50", "0.01"))
    page = page_of(pruned, tmp_path / "page.html")
    assert "The folder's card holds no times of ours." in page.words
    assert "0.01" not in page.words


def test_inspect_shows_a_strangers_notes_without_what_steers_a_terminal(pruned, capsys):
    assert run("inspect", pruned) == 0
    told = capsys.readouterr().out
    assert "<script src='//x'>" in told
    assert not {"\u202e", "\x1b", "\ud800"} & set(told)


@pytest.mark.parametrize("where", ["missing/page.html", ""])
def test_a_page_that_cannot_be_written_is_refused_before_the_work(
    pruned, tmp_path, capsys, monkeypatch, where
):
    monkeypatch.setattr("secateurs.cli.contents.open_model", lambda _: pytest.fail("read"))
    assert run("report", pruned, "--html", tmp_path / where) == cli.BAD_INPUT
    assert "expected --html" in capsys.readouterr().err


def test_a_stock_folder_is_refused(folder, tmp_path, capsys):
    assert run("report", folder, "--html", tmp_path / "page.html") == cli.BAD_INPUT
    assert "expected a folder that secateurs saved" in capsys.readouterr().err
    assert not (tmp_path / "page.html").exists()


def test_texts_and_attributes_are_escaped_and_elements_are_not():
    inner = element("b", "1 < 2")
    assert inner == "<b>1 &lt; 2</b>"
    assert isinstance(inner, Markup)
    assert element("p", inner, "<i>", class_='"x') == (
        '<p class="&quot;x"><b>1 &lt; 2</b>&lt;i&gt;</p>'
    )
    assert element("p", inner + "<i>") == "<p>&lt;b&gt;1 &amp;lt; 2&lt;/b&gt;&lt;i&gt;</p>"
