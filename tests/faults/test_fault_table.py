"""The table of faults fits the source as it is: `run.py`, which is slow, can try every one."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from fault_table import FAULTS, TABLE

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f"{Path(f.file).name}: {f.old[:40]}")
def test_a_fault_stands_once_in_its_file_and_still_compiles(fault):
    text = (ROOT / fault.file).read_text(encoding="utf-8")
    assert text.count(fault.old) == 1
    assert fault.old != fault.new
    assert (ROOT / fault.test.split()[0]).is_file()
    if fault.file.endswith(".py"):
        compile(text.replace(fault.old, fault.new), fault.file, "exec")


def test_no_fault_is_tried_twice():
    assert max(Counter((f.file, f.old, f.new) for f in FAULTS).values()) == 1


@pytest.mark.parametrize("rows", TABLE)
def test_a_fault_stands_in_the_rows_of_its_floor(rows):
    for fault in TABLE[rows]:
        package, _, inside = fault.file.partition("/secateurs/")
        floor, slash, _ = inside.partition("/")
        assert rows == ("kernels" if package.startswith("csrc") else floor if slash else "ground")


def test_faults_stand_in_rows_alone():
    """A file of rows that nobody gathers would look tried, and never be."""
    folder = Path(__file__).parent
    telling = {
        path.stem for path in folder.rglob("*.py") if "\n    *faults_in(" in path.read_text()
    }
    assert telling == set(TABLE)
