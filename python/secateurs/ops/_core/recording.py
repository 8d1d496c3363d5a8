"""Is anyone recording what torch is asked to do here?

Whoever leaves torch's dispatcher, or decides by what a tensor holds, asks first: a tracer would not
see the call, or would write down the decision of one batch for all that follow.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

_dispatch_modes = torch._C._len_torch_dispatch_stack
_function_modes = torch._C._len_torch_function_stack
_functorch = torch._C._functorch.peek_interpreter_stack
_jit_trace = torch._C._get_tracing_state
_compiling = torch.compiler.is_dynamo_compiling  # first: Dynamo knows its answer, not the others'


def recording() -> bool:
    """Tell whether anything sees or changes what torch does here: `torch.compile`,
    `torch.export`, `make_fx`, a `FakeTensorMode` or any other mode, `torch.jit.trace`, a transform
    of `torch.func`, forward-mode differentiation."""
    return bool(
        _compiling()
        or _dispatch_modes()
        or _function_modes()
        or _functorch() is not None
        or _jit_trace() is not None
        or forward_ad._current_level >= 0
    )


def plain(tensor: Tensor | None) -> bool:
    """Tell whether a tensor is torch's own class: a subclass, a fake tensor among them, sees what
    it is used for."""
    return tensor is None or type(tensor) is Tensor or type(tensor) is nn.Parameter


def wants_torch_operations() -> bool:
    """Tell whether the recorder has no use for operations of ours: readers of a trace or an ONNX
    graph do not know them, and transforms would have to know how to batch and differentiate
    them."""
    if _compiling():
        return False
    return (
        _functorch() is not None
        or _jit_trace() is not None
        or forward_ad._current_level >= 0
        or torch.onnx.is_in_onnx_export()
    )
