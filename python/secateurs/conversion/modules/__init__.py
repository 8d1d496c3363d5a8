"""Modules of a converted model: layers with packed weights, fused epilogues and attention over
uneven heads.

All of it is for inference: dropout is left out, weights are buffers. Gradients still flow to
inputs.
"""

from secateurs.conversion.modules.attention import (
    Attention,
    Constant,
    RelativeBias,
    Scale,
    Skip,
    rotate,
)
from secateurs.conversion.modules.cross_attention import CrossAttention
from secateurs.conversion.modules.feed_forward import FeedForward
from secateurs.conversion.modules.int8_linear import CodedLinear, Int8Linear, Int8VectorLinear
from secateurs.conversion.modules.layer import Layer, Mixed, again, husk
from secateurs.conversion.modules.linears import DenseLinear, PackedLinear, SemiStructuredLinear
from secateurs.conversion.modules.norm import Norm
from secateurs.conversion.modules.pattern_linear import PatternLinear
from secateurs.conversion.modules.stack import stack_class
from secateurs.conversion.modules.stock_calls import layer_class

__all__ = [
    "Attention",
    "CodedLinear",
    "Constant",
    "CrossAttention",
    "DenseLinear",
    "FeedForward",
    "Int8Linear",
    "Int8VectorLinear",
    "Layer",
    "Mixed",
    "Norm",
    "PackedLinear",
    "PatternLinear",
    "RelativeBias",
    "Scale",
    "SemiStructuredLinear",
    "Skip",
    "again",
    "husk",
    "layer_class",
    "rotate",
    "stack_class",
]
