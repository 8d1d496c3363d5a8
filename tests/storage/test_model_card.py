"""Model cards: what a saved folder says of itself, on a disk and on a hub."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from huggingface_hub import ModelCard
from support.tiny_models import tiny_model

from secateurs import HeadMask, NeuronMask, SparsityPlan, convert, load, save
from secateurs.storage.model_card import Measured, card, hub_name, measured_in, write_card

PLAN = SparsityPlan(
    {
        "layers.0.heads": HeadMask(torch.tensor([False, True, True, True])),
        "layers.1.neurons": NeuronMask(torch.arange(96) < 24),
    },
    notes={"method": "magnitude"},
)
MEASURED = Measured([{"batch x tokens": "8x128", "pruned, ms": 12.5, "cosine": 0.98765}], "a CPU")


@pytest.fixture
def fast():
    return convert(tiny_model("bert"), PLAN)


def test_a_saved_folder_has_a_card_that_the_hub_reads(fast, tmp_path):
    save(fast, tmp_path)
    read = ModelCard.load(tmp_path / "README.md")
    assert read.data.library_name == "transformers"
    assert read.data.tags == ["secateurs", "pruned"]
    assert read.data.base_model is None
    for line in (
        "from transformers import BertModel",
        "keep 91.7% of the heads, 75.0% of the neurons",
        "| 0 | 3 of 4 | 96 of 96 |",
        "| 1 | 4 of 4 | 24 of 96 |",
        "the method `magnitude`",
    ):
        assert line in read.text
    assert "Measured" not in read.text


def test_figures_are_shown_with_their_machine(fast):
    text = card(fast, None, MEASURED)
    assert "On a CPU." in text
    assert "| 8x128 | 12.50 | 0.9877 |" in text


@pytest.mark.parametrize(
    ("path", "commit", "name"),
    [
        ("google-bert/bert-base-uncased", "abc", "google-bert/bert-base-uncased"),
        ("google-bert/bert-base-uncased", None, None),
        ("/data/bert", "abc", None),
        ("", "abc", None),
        ("/c/models--google-bert--bert-base/snapshots/1", None, "google-bert/bert-base"),
        ("a/b\ntags: x", "abc", None),
    ],
)
def test_only_models_of_a_hub_are_named_as_the_base(fast, path, commit, name):
    config = SimpleNamespace(_name_or_path=path, _commit_hash=commit)
    assert hub_name(config) == name
    fast.config._name_or_path, fast.config._commit_hash = path, commit
    assert ModelCard(card(fast)).data.base_model == name


def test_a_card_of_somebody_else_stays_and_one_of_ours_is_renewed(fast, tmp_path):
    save(fast, tmp_path)
    assert write_card(tmp_path, fast, MEASURED)
    path = tmp_path / "README.md"
    ours = path.read_bytes()
    assert b"## Measured" in ours
    path.write_bytes(ours.replace(b"\n", b"\r\n"))  # as some editors and checkouts do
    save(fast, tmp_path)
    assert b"## Measured" not in path.read_bytes()
    for theirs in (ours + b"Trained on our tickets.\n", b"# Mine\n", b"\xff\xfe"):
        path.write_bytes(theirs)
        assert not write_card(tmp_path, fast, MEASURED)
        save(fast, tmp_path)
        assert path.read_bytes() == theirs


def test_figures_of_our_card_are_read_back_as_they_are_shown(fast, tmp_path):
    save(fast, tmp_path)
    assert measured_in(tmp_path) is None
    rows = [{"calls": "8x128", "pruned, ms": 12.5}, {"calls": "1x32", "pruned, ms": None}]
    write_card(tmp_path, fast, Measured(rows, "a CPU; torch 2.13.0"))
    shown = [{"calls": "8x128", "pruned, ms": "12.50"}, {"calls": "1x32", "pruned, ms": "-"}]
    assert measured_in(tmp_path) == Measured(shown, "a CPU; torch 2.13.0")
    path = tmp_path / "README.md"
    path.write_text(path.read_text().replace("12.50", "1.25"))
    assert measured_in(tmp_path) is None
    path.unlink()
    assert measured_in(tmp_path) is None


def test_a_row_that_does_not_fit_its_headings_is_no_figure(fast, tmp_path):
    save(fast, tmp_path)
    write_card(tmp_path, fast, Measured([{"calls": "8 | 9", "ms": 1.5}], "a CPU"))
    assert measured_in(tmp_path) is None


class Hub:
    """A hub of one repository, as far as an upload asks it."""

    files: dict[str, bytes]
    asked: dict[str, object]

    def __init__(self, token=None):
        type(self).asked = {"token": token}

    def create_repo(self, repo_id, private, exist_ok):
        assert exist_ok
        return SimpleNamespace(repo_id=f"me/{repo_id}")

    def create_branch(self, repo_id, branch, exist_ok):
        self.asked["branch"] = branch

    def file_exists(self, repo_id, filename, revision):
        return filename in self.files

    def hf_hub_download(self, repo_id, filename, revision, local_dir):
        path = Path(local_dir, filename)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(self.files[filename])
        return str(path)

    def upload_folder(self, *, repo_id, folder_path, ignore_patterns, delete_patterns, **options):
        left = [p for p in folder_path.iterdir() if p.name not in ignore_patterns]
        keep = {n: c for n, c in self.files.items() if not Path(n).match(delete_patterns)}
        type(self).files = keep | {path.name: path.read_bytes() for path in left}
        self.asked.update(options, repo_id=repo_id)
        return f"https://hub/{repo_id}"


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    Hub.files = {}
    return Hub


def test_what_is_pushed_is_what_save_writes(fast, hub, tmp_path):
    save(fast, tmp_path / "wanted")
    assert fast.push_to_hub("fast", token="t", max_shard_size="5GB") == "https://hub/me/fast"
    assert hub.files == {p.name: p.read_bytes() for p in (tmp_path / "wanted").iterdir()}
    assert hub.asked["token"] == "t"
    assert hub.asked["commit_message"] == "Upload BertModel"
    other = convert(tiny_model("bert"), SparsityPlan())
    other.push_to_hub("fast", tags=["fast: yes"], revision="next", create_pr=True)
    (tmp_path / "got").mkdir()
    for name, content in hub.files.items():
        (tmp_path / "got" / name).write_bytes(content)
    assert len(hub.files) == 5, "files of the first model are gone"
    assert load(tmp_path / "got").config.hidden_size == 64
    assert ModelCard(hub.files["README.md"].decode()).data.tags[-1] == "fast: yes"
    assert (hub.asked["branch"], hub.asked["create_pr"]) == ("next", True)


def test_pushing_leaves_a_card_that_somebody_wrote(fast, hub):
    hub.files = {"README.md": b"# Mine\n"}
    fast.push_to_hub("fast")
    assert hub.files["README.md"] == b"# Mine\n"
    assert len(hub.files) == 5


def test_saving_and_pushing_at_once(fast, hub, tmp_path):
    fast.save_pretrained(tmp_path / "name", push_to_hub=True, token="t", private=True)
    assert hub.asked["repo_id"] == "me/name"
    assert hub.files == {p.name: p.read_bytes() for p in (tmp_path / "name").iterdir()}
