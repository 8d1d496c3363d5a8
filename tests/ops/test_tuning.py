"""Launch configurations: the table, what autotune finds, and what of it is kept on disk."""

from __future__ import annotations

import json
from importlib.util import find_spec

import pytest
import torch

from ops.conftest import random_weight
from secateurs import files, ops
from secateurs.errors import BackendError
from secateurs.ops._core import gpu, tuning
from secateurs.ops._core.tuning import Config, Table

GPU = torch.device("cuda", 0)
TABLE = Table("some_op", {80: {("half", 64): Config(64, 32, 4, 3)}})


@pytest.fixture(autouse=True)
def some_gpu(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu, "architecture", lambda _: 80)
    monkeypatch.setattr(tuning, "_file", lambda _: tmp_path / "cache" / "gpu.json")
    tuning._tuned.cache_clear()
    yield tmp_path / "cache" / "gpu.json"
    tuning._tuned.cache_clear()


def test_the_table_is_the_default():
    assert TABLE.choose(GPU, ("half", 64)) == Config(64, 32, 4, 3)


def test_what_was_tuned_comes_first(some_gpu):
    files.write_table(some_gpu, {"some_op/half/64": vars(Config(128, 32, 8, 2))})
    assert TABLE.choose(GPU, ("half", 64)) == Config(128, 32, 8, 2)


@pytest.mark.parametrize("content", ["", "[1]", '{"some_op/half/64": {"rows": 1}}', "{"])
def test_a_file_of_another_version_is_not_believed(some_gpu, content):
    some_gpu.parent.mkdir()
    some_gpu.write_text(content)
    assert TABLE.choose(GPU, ("half", 64)) == Config(64, 32, 4, 3)


def test_a_cpu_has_nothing_to_tune():
    with pytest.raises(BackendError, match="the tensors are on the CPU"):
        ops.autotune(ops.block_sparse_linear, torch.randn(2, 64), random_weight(32, 64))


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
def test_autotune_keeps_the_fastest_that_fits(monkeypatch, some_gpu):
    from secateurs.ops._backends import triton as shared
    from secateurs.ops.block_sparse_linear import triton as kernels

    tried = []

    def milliseconds(call):
        config = kernels.TABLE.choose(GPU, ("few float", 32))
        tried.append(config)
        if config.stages == 5:
            raise shared.OutOfResources(1, 2, "shared memory")
        return 1.0 if config == Config(16, 64, 8, 2) else 2.0

    monkeypatch.setattr(gpu, "_refuse_place", lambda _: None)
    monkeypatch.setattr(gpu, "_refuse_dtype", lambda _: None)
    monkeypatch.setattr(tuning, "_milliseconds", milliseconds)
    args = (torch.randn(2, 64), random_weight(32, 64))
    assert ops.autotune(ops.block_sparse_linear, *args) == Config(16, 64, 8, 2)
    assert len(set(tried)) == len(tried) > 8
    kept = json.loads(some_gpu.read_text())
    assert kept == {"block_sparse_linear/few float/32": vars(Config(16, 64, 8, 2))}
