"""Documents against the code: what they list is what there is."""

from __future__ import annotations

import re
import runpy
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from support.family_table import PAGE, written
from support.tiny_models import tiny_model
from support.word_folders import saved
from transformers import AutoTokenizer

from secateurs import METHODS, HeadMask, SparsityPlan, convert, explain, load, save
from secateurs.architectures.records import ARCHITECTURES
from secateurs.cli.main import parser
from secateurs.integrations.exported import export
from secateurs.integrations.runtimes import RUNTIMES, runtime
from secateurs.pruning import ALLOCATORS, Needs
from secateurs.storage.model_folders import copy_processors, open_model, tokenizer_in

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]
WANTED = {"sentence-transformers": "sentence_transformers", "PEFT": "peft"}
READ = re.compile(r"""(?:environ(?:\.get\(|\[)\s*["']|\$ENV\{|os\.environ\[")(SECATEURS_\w+)""")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_readme_is_short_and_gives_both_commands():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) < 140
    assert f"[{len(ARCHITECTURES)} types]" in text
    block = text.partition("```sh\n")[2].partition("```")[0].splitlines()
    commands = dict(zip(block[::2], block[1::2], strict=True))
    assert commands["# demo"].endswith("secateurs demo")
    assert commands["# test"].endswith("pytest")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_command_lines_can_be_read(page):
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    for line in lines:
        program, *words = shlex.split(line, comments=True) or [""]
        if program == "secateurs":
            parser().parse_args(words)


def test_the_example_of_attention_rules_runs(capsys):
    blocks = re.findall(
        r"```python\n(.*?)```", (DOCS / "concepts.md").read_text("utf-8"), re.DOTALL
    )
    for block in blocks:
        exec(compile(block, "concepts.md", "exec"), {})
    assert "Local(window=16) at head 0; Union" in capsys.readouterr().out


@pytest.fixture
def pruned_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the page of integrations has its folders: a classifier, an embedder, a reranker."""
    small = tiny_model("roberta", num_hidden_layers=1, type_vocab_size=1)  # as those of a hub have
    dense = saved(tmp_path / "dense", small, pad_token="[PAD]")
    embedder = saved(tmp_path / "embedder", tiny_model("bert"), pad_token="[PAD]")
    monkeypatch.chdir(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(dense)
    for name, source in (
        ("pruned", dense),
        ("pruned-embedder", embedder),
        ("pruned-reranker", dense),
    ):
        plan = SparsityPlan({"layers.0.heads": HeadMask(torch.tensor([True, False, True, True]))})
        save(convert(open_model(source), plan), tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    return tmp_path


@pytest.mark.parametrize(
    "heading", ["transformers", "sentence-transformers", "PEFT", "torch.export"]
)
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # asked by peft
@pytest.mark.filterwarnings("ignore:.pin_memory. argument:UserWarning")  # without a GPU
def test_the_examples_of_integrations_run(heading, pruned_folders):
    if heading in WANTED:
        pytest.importorskip(WANTED[heading])
    sections = (DOCS / "integrations.md").read_text("utf-8").split("\n## ")[1:]
    (section,) = [text for text in sections if re.match(rf"{heading}\b(?!-)", text)]
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", section, re.DOTALL):
        exec(compile(block, "integrations.md", "exec"), names)
    if heading == "transformers":
        assert explain(names["model"]) == explain(load(pruned_folders / "copy"))
    elif heading == "PEFT":
        ids = torch.tensor([[2, 3, 4]])
        with torch.no_grad():
            got, wanted = (m(input_ids=ids).logits for m in (load("tuned"), names["tuned"]))
        assert torch.allclose(got, wanted, atol=1e-6)
    elif heading == "torch.export":
        with torch.no_grad():
            wanted = load("pruned")(**names["batch"]).logits
            got = names["program"].module()(**names["batch"]).logits
        assert torch.allclose(got, wanted, atol=1e-5)
    else:
        assert names["embeddings"].shape == (2, 64)
        assert explain(names["reranker"][0].model) == explain(load("pruned-reranker"))


@pytest.mark.parametrize("package", ["onnxruntime", "openvino", "nncf"])
@pytest.mark.filterwarnings("ignore")  # of torch's and the runtimes' own
def test_the_examples_of_runtimes_run(package, pruned_folders):
    pytest.importorskip(package)
    target = "onnx" if package == "onnxruntime" else "openvino"
    for needed in RUNTIMES[target].PACKAGES:
        pytest.importorskip(needed)
    written = pruned_folders / f"pruned-{target}"
    export("pruned", target, written)
    copy_processors("pruned", written, tokenizer_in("pruned"))
    text = (DOCS / "integrations.md").read_text("utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (block,) = [block for block in blocks if block.startswith(f"import {package}\n")]
    names: dict[str, Any] = {}
    exec(compile(block, "integrations.md", "exec"), names)
    batch = names["tokenizer"](["the old house", "nobody came"], padding=True, return_tensors="pt")
    batch = names.get("batch", {name: value.numpy() for name, value in batch.items()})
    with torch.no_grad():
        wanted = load("pruned")(**{name: torch.from_numpy(batch[name]) for name in batch}).logits
    if package == "nncf":
        assert any(op.get_type_name() == "FakeQuantize" for op in names["codes"].get_ops())
        call = runtime("openvino").opened(Path("pruned-openvino-int8/model.xml"), "logits")
        got = call({name: torch.from_numpy(value) for name, value in batch.items()})
        assert torch.cosine_similarity(got.flatten(), wanted.flatten(), dim=0) > 0.95
        assert not torch.allclose(got, wanted, atol=1e-4)
    else:
        assert torch.allclose(torch.from_numpy(names["logits"]), wanted, atol=1e-5)


def test_the_example_of_serving_runs(pruned_folders, capsys):
    (block,) = re.findall(
        r"```python\n(.*?)```", (DOCS / "serving.md").read_text("utf-8"), re.DOTALL
    )
    (pruned_folders / "pruned").rename(pruned_folders / "classifier")
    (pruned_folders / "pruned-embedder").rename(pruned_folders / "pruned")
    exec(compile(block, "serving.md", "exec"), {})
    assert "torch.Size([2, 64])" in capsys.readouterr().out


def test_the_page_of_families_is_that_of_the_records():
    """`python -m support.family_table`, in tests, writes the tables anew."""
    assert PAGE.read_text(encoding="utf-8") == written(PAGE.read_text(encoding="utf-8"))


def test_the_page_of_methods_lists_them_all():
    text = (DOCS / "methods.md").read_text(encoding="utf-8")
    rows = {}
    for line in text.splitlines():
        if line.startswith("| `"):
            name, removes, needs, command = (cell.strip() for cell in line.strip("|").split("|"))
            rows[name.strip("`")] = (
                set(removes.partition(", equally")[0].split(", ")),
                needs,
                command,
            )
    assert rows.keys() == METHODS.keys()
    for name, (removes, needs, command) in rows.items():
        row = METHODS[name]
        assert removes == row.produces
        assert needs.endswith("with labels") == row.pruner.labelled
        assert command == ("`prune-task`" if Needs.TRAINING in row.needs else "`prune`")
    assert all(f'allocator="{name}"' in text for name in ALLOCATORS)
    sections = text.partition("## One by one")[2].split("\n### ")[1:]
    assert {name for name in METHODS for part in sections if f"`{name}`" in part} == METHODS.keys()
    for part in sections:
        words = ("Idea: ", "Formula: ", "\nUse ", "Seen", "Not seen: ")
        told = [word for word in words if word not in part]
        assert not told, f"{part[:40]}: {told}"


def test_the_page_of_variables_lists_those_that_are_read():
    listed = re.findall(r"^\| `(\w+)`", (DOCS / "environment.md").read_text("utf-8"), re.MULTILINE)
    names = subprocess.run(
        ["git", "ls-files", "python", "csrc", "tests", "benchmarks", "CMakeLists.txt"],
        cwd=ROOT, capture_output=True, text=True,
    ).stdout.split()  # fmt: skip
    if not names:
        pytest.skip("the sources are not in a git checkout")
    read = set()
    for name in names:
        path = ROOT / name
        if path.suffix in (".py", ".cmake", ".txt") and path.exists():
            read |= set(READ.findall(path.read_text(encoding="utf-8")))
    assert read == set(listed)


def test_the_tables_of_results_are_those_of_the_rows(monkeypatch):
    module = runpy.run_path(str(ROOT / "benchmarks" / "table.py"))
    pages, written = [DOCS / "results.md", DOCS / "methods.md"], []
    monkeypatch.setattr(Path, "write_text", lambda _, text, **__: written.append(text))
    module["main"]()
    assert written == [page.read_text(encoding="utf-8") for page in pages]


def test_the_fastest_dense_peer_is_sought_among_all_precisions():
    def row(variant, precision, ms, cosine):
        common = {"model": "minilm", "shape": [1, 128], "dtype": "float32", "speedup": 1.0}
        return common | {"variant": variant, "precision": precision, "ms": ms, "cosine": cosine}

    table = runpy.run_path(str(ROOT / "benchmarks" / "table.py"))["models_tables"]
    (text,) = table(
        [
            row("converted 1", "fp32", 8.0, 1.0),
            row("openvino", "fp32", 9.0, 1.0),
            row("converted 1", "int8", 2.0, 0.9991),
            row("openvino", "int8", 4.0, 0.9965),
        ]
    )
    peer = "minilm 1x128 | 4.00 ms, openvino int8 (cosine 0.9965)"
    assert f"| {peer} | fp32 | 8.00 ms, 0.50x | 1.00000 |" in text
    assert f"| {peer} | int8 | 2.00 ms, 2.00x | 0.99910 |" in text


def test_a_table_of_families_names_what_is_slower_than_wanted():
    def row(model, batch, dense, half):
        common = {"shape": [batch, 128], "dtype": "float32", "precision": "fp32"}
        return common | {"model": model, "speedup_dense": dense, "speedup_half": half}

    module = runpy.run_path(str(ROOT / "benchmarks" / "table.py"))
    rows = [row("vit", 8, 1.2, 1.5), row("bert", 8, 1.0, 1.6), row("bert", 1, 0.9996, 2.5)]
    assert module["families_table"](rows).splitlines() == [
        "| family | tokens | in | nothing removed, batch 1 | nothing removed, batch 8 "
        "| half removed, batch 1 | half removed, batch 8 |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| bert | 128 | fp32 | 1.00x | 1.00x | 2.50x | 1.60x |",
        "| vit | 128 | fp32 | - | 1.20x | - | 1.50x |",
    ]
    wanted = "Wanted are 1.0x with nothing removed and 1.6x with half removed; below that: "
    assert module["missed_goals"](rows) == wanted + (
        "bert fp32, batch 1, nothing removed (1.000x); vit fp32, batch 8, half removed (1.500x)."
    )
    assert module["missed_goals"](rows[1:2]) == wanted + "none."


def test_a_table_of_speeds_asked_for_counts_what_is_off():
    def row(speedup, off, predicted_off, whole=False):
        row = {"dtype": "fp32", "shape": [1, 32], "speedup": speedup, "off": off, "spread": 0.02}
        return {**row, "whole": whole, "predicted_off": predicted_off}

    rows = [row(2.0, -0.06, 0.05), row(3.0, 0.01, -0.02), row(4.0, 0.03, 0.01)]
    rows.append(row(1.3, -0.3, 0.4, whole=True))
    rows.append({"dtype": "fp32", "shape": [1, 32], "speedup": 9.0, "refused": "too fast"})
    module = runpy.run_path(str(ROOT / "benchmarks" / "table.py"))
    assert module["targets_table"](rows).splitlines()[2] == (
        "| 1x32 | fp32 | 5 | 4 | 1 | 2 | -6.0% | +1.0% | +3.0% | 1 | 2.0% | 2.0% | 5.0% |"
    )


def test_no_page_or_row_names_a_folder_of_a_machine():
    texts = [
        *DOCS.rglob("*.md"),
        *ROOT.glob("*.md"),
        *(ROOT / "benchmarks/results").glob("*.jsonl"),
    ]
    named = re.compile(r"(?<![\w.])/(?:tmp|home|root|work|Users)/\w")
    assert len(texts) > 20
    for path in texts:
        assert not named.search(path.read_text(encoding="utf-8")), path.name


def test_a_table_of_languages_has_medians_over_seeds():
    def row(language, order, heads, seed, score):
        return {
            "language": language, "order": order, "heads": heads, "seed": seed, "score": score,
        }  # fmt: skip

    rows = [row(name, "none", 0, 0, 0.9) for name in ("en", "de")]
    rows += [row(name, "random", 12, seed, seed / 4) for name in ("en", "de") for seed in range(3)]
    rows.append(row("de", "correlation", None, 0, 0.5))
    module = runpy.run_path(str(ROOT / "benchmarks" / "table.py"))
    assert module["languages_table"](rows).splitlines() == [
        "| which | heads gone | en | de |",
        "| --- | ---: | ---: | ---: |",
        "| none | 0 | 0.900 | 0.900 |",
        "| random | 12 | 0.250 | 0.250 |",
        "| correlation | - | - | 0.500 |",
    ]


def test_rows_of_a_table_that_differ_in_what_is_told_once_are_refused():
    agree = runpy.run_path(str(ROOT / "benchmarks" / "tables" / "rows.py"))["agree"]
    rows = [{"commit": "a", "threads": 1}, {"commit": "b", "threads": 1}]
    agree(rows, "threads")
    with pytest.raises(SystemExit, match="expected one commit in all rows, got a, b"):
        agree(rows, "threads", "commit")
