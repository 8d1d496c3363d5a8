"""Several processes that share the data decide alike, and as one process with all of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from support.sharing import batches, decided

from secateurs.processes import averaged, from_first, summed, total


def test_two_processes_decide_what_one_decides(tmp_path):
    tests = Path(__file__).parents[1]
    paths = [str(tests), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*command, str(tests / "support" / "sharing.py"), str(tmp_path)],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert (first["told"], second["told"]) == (0, 0)
    assert (first["failed"], second["failed"]) == ("division", "division")
    alone = decided(batches())
    assert first["results"].keys() == second["results"].keys() == alone.keys()
    for name, value in alone.items():
        assert torch.equal(first["results"][name], second["results"][name]), name
        if value.dtype == torch.bool:
            assert torch.equal(first["results"][name], value), name
        else:
            torch.testing.assert_close(first["results"][name], value, rtol=1e-4, atol=1e-5)


def test_one_process_speaks_for_itself():
    tensor = torch.tensor([1.0, 2.0])
    assert summed(tensor) is tensor
    assert averaged(tensor) is tensor
    assert tensor.tolist() == [1.0, 2.0]
    assert total(3) == 3
    assert from_first(lambda: "word") == "word"
