"""Tasks: metrics by hand, and files as they come."""

from __future__ import annotations

import gzip
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from support.training import sentences, write

from secateurs.data.glue import TASKS
from secateurs.data.metrics import accuracy, f1, matthews, pearson, spearman
from secateurs.data.tasks import find_task
from secateurs.errors import DataError


def array(*values: float) -> np.ndarray:
    return np.array(values)


def test_metrics_by_hand():
    predicted, wanted = array(1, 1, 0, 0, 1, 0), array(1, 0, 0, 1, 1, 0)
    assert accuracy(predicted, wanted) == pytest.approx(4 / 6)
    assert f1(predicted, wanted) == pytest.approx(2 * 2 / (3 + 3))
    # TP 2, TN 2, FP 1, FN 1: (2*2 - 1*1) / sqrt(3*3*3*3)
    assert matthews(predicted, wanted) == pytest.approx(3 / 9)
    uneven = matthews(array(1, 1, 1, 0, 0), array(1, 1, 0, 0, 1))
    assert uneven == pytest.approx((2 * 1 - 1 * 1) / np.sqrt(3 * 3 * 2 * 2))


def test_rank_correlation_with_ties_by_hand():
    a, b = array(1.0, 2.0, 2.0, 9.0), array(0.1, 0.3, 0.2, 0.2)
    ra, rb = array(1, 2.5, 2.5, 4), array(1, 4, 2.5, 2.5)
    want = ((ra - 2.5) @ (rb - 2.5)) / np.sqrt(((ra - 2.5) ** 2).sum() * ((rb - 2.5) ** 2).sum())
    assert spearman(a, b) == pytest.approx(want)
    assert spearman(array(1, 2, 3), array(10, 100, 1000)) == pytest.approx(1)
    assert pearson(array(1, 2, 3), array(6, 4, 2)) == pytest.approx(-1)


def test_metrics_of_constant_predictions_are_zero():
    for metric in (matthews, spearman, pearson, f1):
        assert metric(np.zeros(4), array(0, 1, 0, 1)) == 0.0


def test_the_main_metrics_are_those_of_glue():
    first = {name: next(iter(task.metrics)) for name, task in TASKS.items()}
    assert first["cola"] == "matthews"
    assert first["stsb"] == "spearman"
    assert set(TASKS["mrpc"].metrics) == set(TASKS["qqp"].metrics) == {"f1", "accuracy"}
    assert TASKS["mnli"].labels == 3
    assert TASKS["qnli"].columns == ("question", "sentence")


def test_splits_are_found_in_either_folder(glue):
    task = find_task("sst2")
    for folder in (glue, glue / "sst2"):
        assert len(task.read("train", folder)) == 40
        assert len(task.read("validation", folder)) == 20
    assert task.read("train", glue)[0] == {
        "text": sentences(1)[0]["sentence"],
        "label": sentences(1)[0]["label"],
    }


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "at least one example"),
        ([{"sentence": "a"}], "a label from 0 to 1 for sst2 at .*:1, got None"),
        ([{"sentence": "a", "label": 2}], "a label from 0 to 1.*got 2"),
        ([{"sentence": "a", "label": -1}], "got -1"),
        ([{"sentence": "a", "label": True}], "got True"),
        ([{"sentence": "a", "label": 0}, {"text": "a", "label": 0}], "the texts sentence at .*:2"),
        ([["a", 0]], "the texts sentence"),
    ],
)
def test_malformed_rows_are_refused(tmp_path, rows, words):
    write(tmp_path / "train.jsonl", rows)
    with pytest.raises(DataError, match=words):
        find_task("sst2").read("train", tmp_path)


def test_scores_that_are_not_finite_are_refused(tmp_path):
    row = '{"sentence1": "a", "sentence2": "b", "label": NaN}'
    (tmp_path / "train.jsonl").write_text(row)
    with pytest.raises(DataError, match="expected a score for stsb"):
        find_task("stsb").read("train", tmp_path)


def test_files_that_cannot_be_read_are_refused(tmp_path):
    task = find_task("sst2")
    with pytest.raises(DataError, match=r"expected one file train\*\.jsonl"):
        task.read("train", tmp_path)
    whole = gzip.compress(b'{"sentence": "a", "label": 0}\n' * 500)
    (tmp_path / "train.jsonl.gz").write_bytes(whole[:40])
    with pytest.raises(DataError, match="expected JSON lines"):
        task.read("train", tmp_path)
    (tmp_path / "train.jsonl.gz").write_bytes(gzip.compress(b"{sentence"))
    with pytest.raises(DataError, match="expected JSON lines"):
        task.read("train", tmp_path)
    with pytest.raises(DataError, match="expected a task in cola, sst2"):
        find_task("sst")


def test_there_is_one_file_of_a_part(tmp_path):
    for name in ("train.jsonl", "train_more.jsonl"):
        write(tmp_path / name, [{"sentence": "a", "label": 0}])
    with pytest.raises(DataError, match=r"expected one file train\*.* got 2"):
        find_task("sst2").read("train", tmp_path)


def test_without_files_or_datasets_it_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match="or the package datasets"):
        find_task("sst2").read("train")


def test_the_hub_is_asked_for_glue_and_its_rows_are_checked(monkeypatch):
    """A stand-in for `datasets`, with the splits and columns of nyu-mll/glue."""
    pair = {"sentence1": "a", "sentence2": "b"}
    rows = {
        "cola": {"sentence": "a"}, "sst2": {"sentence": "a"}, "mrpc": pair, "stsb": pair,
        "rte": pair, "wnli": pair, "qqp": {"question1": "a", "question2": "b"},
        "qnli": {"question": "a", "sentence": "b"}, "mnli": {"premise": "a", "hypothesis": "b"},
    }  # fmt: skip
    hidden = False

    def load_dataset(path, name, *, split):
        assert path == "nyu-mll/glue"
        known = ("validation_matched", "validation_mismatched") if name == "mnli" else (
            "validation",
        )  # fmt: skip
        assert split in ("train", *known)
        label = -1 if hidden else 2.5 if name == "stsb" else 1
        return [{**rows[name], "label": label, "idx": 0}]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    assert rows.keys() == TASKS.keys()
    for name, task in TASKS.items():
        for split in ("train", "validation"):
            (row,) = task.read(split)
            assert row["text"] == "a"
            assert row.get("text_pair") == ("b" if task.pair else None)
            assert row["label"] == (2.5 if name == "stsb" else 1)
    hidden = True
    with pytest.raises(DataError, match="a label from 0 to 2 for mnli at mnli train, got -1"):
        find_task("mnli").read("train")
