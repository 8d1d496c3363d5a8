"""Tensors that outlive the call that makes them."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch.utils._python_dispatch import _disable_current_modes

P = ParamSpec("P")
R = TypeVar("R")


def lasting(make: Callable[P, R]) -> Callable[P, R]:
    """Decorate what makes tensors for a cache: they are ordinary ones on the device that `make`
    names, whatever mode its first caller is in. One made under `inference_mode` could never be
    saved for a backward pass, one made under a `FakeTensorMode` holds nothing.
    """

    @wraps(make)
    def made(*args: P.args, **kwargs: P.kwargs) -> R:
        with (
            torch.inference_mode(False),
            torch.no_grad(),
            torch._C.DisableTorchFunction(),
            torch._C._DisableFuncTorch(),
            _disable_current_modes(),
        ):
            return make(*args, **kwargs)

    return made
