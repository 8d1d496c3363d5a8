"""Operand records and calls by name: schemas follow from fields, numbers from csrc/common, and no
argument of a kernel is left out, made up or taken for another."""

from __future__ import annotations

import importlib

import pytest
import torch

from secateurs import _C_cpu
from secateurs.ops import ACTIVATIONS
from secateurs.ops._backends import cpu
from secateurs.ops._core.memory import address, aligned_rows_of, contiguous, rows_of
from secateurs.ops._core.operands import schema

OPS = (
    "add_norm",
    "attention",
    "block_sparse_linear",
    "encoder_layer",
    "int8_linear",
    "int8_vector_linear",
    "pattern_linear",
)
NORM = dict(
    isa=0, dtype=0, x=0, x_stride=8, m=0, d=8, residual=0, residual_stride=0, weight=0, bias=0,
    eps=1e-5, rms=False, sum=0, y=0, threads=1,
)  # fmt: skip


@pytest.mark.parametrize("op", OPS)
def test_the_schema_torch_knows_is_that_of_the_record(op):
    record = importlib.import_module(f"secateurs.ops.{op}.operands").Operands
    known = getattr(torch.ops.secateurs, op).default._schema
    assert str(known) == f"secateurs::{op}{schema(record)}"
    assert tuple(argument.name for argument in known.arguments) == record._fields
    assert not {"index", "count"} & set(record._fields)  # a tuple's own methods


def test_numbers_of_activations_and_dtypes_come_from_the_kernels():
    assert set(ACTIVATIONS) == set(_C_cpu.activations)
    assert sorted(_C_cpu.activations.values()) == list(range(len(ACTIVATIONS)))
    assert set(cpu.DTYPES) == {torch.float32, torch.bfloat16}


def without(name):
    return {other: value for other, value in NORM.items() if other != name}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (without("eps"), "expected isa, dtype, x, .*, got"),
        ({**NORM, "gate": 0}, "expected isa, dtype, x, .*gate"),
        ({**without("m"), "rows": 1}, "expected isa, dtype, x, .*rows"),
        (without("dtype"), "expected an argument dtype"),
        ({}, "expected an argument dtype"),
        ({**NORM, "m": 1.5}, "float"),
        ({**NORM, "x": "x"}, "str|int"),
    ],
)
def test_an_argument_missing_unknown_or_of_another_type_is_refused(arguments, message):
    with pytest.raises(TypeError, match=message):
        _C_cpu.add_norm(**arguments)


def test_positions_are_refused():
    with pytest.raises(TypeError, match="keyword arguments only"):
        _C_cpu.add_norm(*NORM.values())
    _C_cpu.add_norm(**dict(reversed(NORM.items())))  # any order will do


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"dtype": 2}, ValueError), ({"dtype": 3}, ValueError), ({"dtype": -1}, ValueError),
        ({"m": -1}, ValueError), ({"threads": 0}, ValueError), ({"threads": 1 << 40}, ValueError),
        ({"isa": 99}, IndexError), ({"m": 1 << 70}, OverflowError), ({"x": -1}, OverflowError),
    ],
)  # fmt: skip
def test_a_number_out_of_range_is_refused(change, error):
    with pytest.raises(error):
        _C_cpu.add_norm(**{**NORM, **change})


def test_an_unknown_activation_is_refused():
    names = (
        *("isa", "dtype", "x", "x_stride", "m", "n", "k", "values", "bias", "activation"),
        *("multiplier", "multiplier_stride", "residual", "residual_stride", "y", "threads"),
        *("indptr", "indices", "rows", "bk", "bn"),
    )
    call = {**dict.fromkeys(names, 0), "threads": 1, "bn": 16}
    _C_cpu.block_sparse_linear(**call)
    with pytest.raises(ValueError, match="number of one of 5"):
        _C_cpu.block_sparse_linear(**{**call, "activation": len(ACTIVATIONS)})


def test_rows_are_copied_only_where_they_must_be():
    x = torch.randn(2, 3, 16)
    assert rows_of(x).shape == (6, 16)
    assert rows_of(x[0, 0]).shape == (1, 16)
    for view in (x, x[..., 4:12], x[:1], x[0, ::2]):
        assert rows_of(view).data_ptr() == view.data_ptr()
    assert rows_of(x[0].t()).stride() == (3, 1)
    assert aligned_rows_of(x[..., :8]).data_ptr() == x.data_ptr()
    for view in (x[..., 1:9], torch.randn(3, 10)[:, :8], x[0].t()):
        rows = aligned_rows_of(view)
        assert torch.equal(rows, view.reshape(-1, view.shape[-1]))
        assert rows.stride(1) == 1
        assert rows.data_ptr() % 16 == 0
        assert rows.stride(0) * 4 % 16 == 0 or rows.is_contiguous()


def test_nothing_has_no_address():
    assert address(None) == 0
    assert contiguous(None) is None
    assert address(torch.zeros(3)) > 0
