"""The page about a pruned folder in a real browser: it fits the screen, shows its bars, and its
policy lets nothing run. Skipped where there is no Chromium."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess

import pytest
from cli.conftest import run
from cli.test_report import pruned

__all__ = ["pruned"]  # the fixture

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FOUND = next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = pytest.mark.skipif(FOUND is None, reason=f"none of {', '.join(NAMES)} is here")

# A page that shows another one in a frame, and tells what became of it there.
FRAME = """<!DOCTYPE html>
<iframe width="{width}" height="900" srcdoc="{page}"></iframe>
<pre id="told"></pre>
<script>
document.querySelector("iframe").onload = ({{target}}) => {{
  const inside = target.contentDocument;
  const wide = inside.documentElement;
  const bars = [...inside.querySelectorAll("svg rect")].map(bar => bar.getBoundingClientRect());
  document.getElementById("told").textContent = JSON.stringify({{
    title: inside.title,
    across: wide.scrollWidth,
    room: wide.clientWidth,
    text: inside.body.innerText,
    background: getComputedStyle(inside.body).backgroundColor,
    bars: bars.map(box => [box.width, box.height]),
    tables: [...inside.querySelectorAll(".wide")].map(part => [part.scrollWidth, part.clientWidth]),
  }});
}};
</script>
"""


@pytest.fixture
def page(pruned, tmp_path):
    path = tmp_path / "report.html"
    assert run("report", pruned, "--html", path) == 0
    return path.read_text(encoding="utf-8")


def seen(page: str, folder, width: int, *options: str):
    """What a browser makes of a page in a frame so wide, and what it complains of."""
    path = folder / "frame.html"
    path.write_text(FRAME.format(width=width, page=html.escape(page)), encoding="utf-8")
    done = subprocess.run(
        [FOUND, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=2000",
         "--enable-logging=stderr", f"--user-data-dir={folder / 'profile'}", *options,
         "--dump-dom", path.as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    told = re.search(r'<pre id="told">(.*?)</pre>', done.stdout, re.DOTALL)
    assert told, done.stderr
    return json.loads(html.unescape(told[1])), re.findall(r"CONSOLE.*", done.stderr)


@pytest.mark.parametrize("width", [360, 1200])
def test_the_page_fits_the_screen_and_shows_its_bars(page, tmp_path, width):
    told, complaints = seen(page, tmp_path, width)
    assert told["title"] == "pruned, pruned"
    assert told["across"] == told["room"]  # what is wider scrolls by itself
    assert "3 of 4" in told["text"]
    assert told["bars"]
    assert all(height > 2 for _, height in told["bars"])
    widths = [across for across, _ in told["bars"]]
    assert max(widths) > 20
    assert min(widths) < 0.8 * max(widths)
    if width == 1200:
        assert all(across <= room for across, room in told["tables"])
    assert complaints == []


def test_the_page_is_dark_where_the_screen_is(page, tmp_path):
    def brightness(*options: str) -> int:
        background = seen(page, tmp_path, 800, *options)[0]["background"]
        return sum(map(int, re.findall(r"\d+", background)[:3]))

    assert brightness("--blink-settings=preferredColorScheme=0") < 200
    assert brightness("--blink-settings=preferredColorScheme=1") > 600


def test_what_slips_into_the_page_cannot_run(page, tmp_path):
    altered = page.replace("</h1>", "</h1><script>document.title = 'ran'</script>", 1)
    told, complaints = seen(altered, tmp_path, 800)
    assert told["title"] == "pruned, pruned"
    assert any("Content Security Policy" in complaint for complaint in complaints)
    free = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", altered)
    assert seen(free, tmp_path, 800)[0]["title"] == "ran"
