"""The schema of an architecture: the sub-layers of a layer, and what each linear's two sides are
made of. Everything else about a linear is derived from that.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

from torch import nn

Side = Literal["hidden", "heads", "kv_heads", "cross_heads", "neurons"]

# Activations that layers call as a function, with the module that computes the same. No path of a
# module is written so.
FUNCTIONS: dict[str, type[nn.Module]] = {"gelu()": nn.GELU}


@dataclass(frozen=True)
class Linear:
    """One linear of a layer, `[N, K]`.

    Attributes:
        role: its name in sites and reports.
        path: of the module that holds it, from the layer.
        rows: what its outputs are: the width of the model, query heads, key/value heads, heads of
            cross-attention or neurons.
        columns: what its inputs are.
        part: `(i, n)` where the module holds n linears, one behind the other: this is number i.
        first_as: path of the linear that reads as many channels as the first part of the module
            gives, where the parts differ: the others share the rest equally. By default all parts
            are equal.
        transposed: whether the module stores its weight as `[K, N]`, as a Conv1D does.
        head_width: path of the number of channels of a head, where the module holds all linears
            head by head: of each head the channels of the first, of the second and so on.
    """

    role: str
    path: str
    rows: Side = "hidden"
    columns: Side = "hidden"
    part: tuple[int, int] = (0, 1)
    transposed: bool = False
    first_as: str | None = None
    head_width: str | None = None

    @property
    def shares(self) -> bool:
        """Whether the module holds other linears too."""
        return self.part[1] > 1

    @property
    def name(self) -> str:
        """What a compact file calls it: the module's path, and the role where the module is
        shared."""
        return f"{self.path}.{self.role}" if self.shares else self.path


@dataclass(frozen=True)
class SubLayer:
    """A residual sub-layer: linears around units that can go one by one.

    Attributes:
        linears: those that it runs; one of them writes to the width of the model.
        norm: path of the norm in front of it or behind it.
        scale: path of what its output is multiplied by before the residual is added: a factor for
            each channel (Touvron et al. 2021, LayerScale), or a module that holds one, or a number.
        output_norm: path of a norm of its output before the residual is added.
    """

    name: ClassVar[str]  # the site of all of it, in a layer
    units: ClassVar[str]  # the site of what can go one by one
    linears: tuple[Linear, ...]
    norm: str
    scale: str | None = field(default=None, kw_only=True)
    output_norm: str | None = field(default=None, kw_only=True)

    @property
    def outlet(self) -> str | None:
        """Path of what its output goes through before the residual is added, if anything."""
        return self.scale or self.output_norm

    @property
    def last(self) -> Linear:
        """The linear whose output is added to the residual."""
        return next(linear for linear in self.linears if linear.rows == "hidden")

    @property
    def holder(self) -> str:
        """Path of the module that holds the first linear."""
        return self.linears[0].path.rpartition(".")[0]

    @property
    def roles(self) -> tuple[str, ...]:
        return tuple(linear.role for linear in self.linears)


@dataclass(frozen=True)
class SelfAttention(SubLayer):
    """Self-attention.

    Attributes:
        relative_bias: path of what is added to the scores by relative position: an embedding
            `[buckets, H]` that the first layer holds for all (Raffel et al. 2020, section 2.1), or
            a module in each layer that makes it for the patches of an image (Bao et al. 2022).
        outer_bias: the model hands a bias of the scores of each head to every layer.
        scores_scale: of the scores, where the module does not say; None: `head_dim ** -0.5`.
        queries_scaled: queries are multiplied by `head_dim ** -0.5` before the module's scale.
        head_norms: paths of the norms of the queries and of the keys of each head, over its width,
            in front of a rotary embedding.
    """

    name = "attention"
    units = "heads"
    relative_bias: str | None = None
    scores_scale: float | None = None
    queries_scaled: bool = False
    head_norms: tuple[str, ...] = ()
    outer_bias: bool = False

    @property
    def biased(self) -> bool:
        """Whether scores get a bias for each head, wherever that is made."""
        return self.outer_bias or self.relative_bias is not None


@dataclass(frozen=True)
class CrossAttention(SubLayer):
    """Attention of a decoder to what the encoder gives: queries are of the layer's states, keys and
    values of the encoder's. Scores have the scale of self-attention, and no bias."""

    name = "cross_attention"
    units = "cross_attention.heads"


@dataclass(frozen=True)
class FeedForward(SubLayer):
    """A feed-forward network, gated where it has a linear of the role `gate`.

    Attributes:
        activation: path of the module between its linears; where the layer calls a function, its
            name in `FUNCTIONS`.
    """

    name = "ffn"
    units = "neurons"
    activation: str = ""

    @property
    def gated(self) -> bool:
        return "gate" in self.roles


def attention(
    query: str,
    key: str,
    value: str,
    output: str,
    norm: str,
    relative_bias: str | None = None,
    scores_scale: float | None = None,
) -> SelfAttention:
    """Self-attention with a linear of its own for each of q, k, v and the output."""
    linears = (
        Linear("query", query, rows="heads"),
        Linear("key", key, rows="kv_heads"),
        Linear("value", value, rows="kv_heads"),
        Linear("output", output, columns="heads"),
    )
    return SelfAttention(linears, norm, relative_bias, scores_scale)


def cross_attention(query: str, key: str, value: str, output: str, norm: str) -> CrossAttention:
    """Cross-attention with a linear of its own for each of q, k, v and the output."""
    linears = (
        Linear("cross_attention.query", query, rows="cross_heads"),
        Linear("cross_attention.key", key, rows="cross_heads"),
        Linear("cross_attention.value", value, rows="cross_heads"),
        Linear("cross_attention.output", output, columns="cross_heads"),
    )
    return CrossAttention(linears, norm)


def fused_attention(
    qkv: str,
    output: str,
    norm: str,
    transposed: bool = False,
    *,
    grouped: bool = False,
    head_width: str | None = None,
) -> SelfAttention:
    """Self-attention whose q, k and v are parts of one module: equal ones, or of fewer heads in k
    and v if `grouped`; one behind the other, or head by head where there is a `head_width`."""
    sides: tuple[tuple[str, Side], ...] = (
        ("query", "heads"),
        ("key", "kv_heads"),
        ("value", "kv_heads"),
    )
    inputs = (
        Linear(
            role,
            qkv,
            rows=rows,
            part=(i, 3),
            transposed=transposed,
            first_as=output if grouped else None,
            head_width=head_width,
        )
        for i, (role, rows) in enumerate(sides)
    )
    last = Linear("output", output, columns="heads", transposed=transposed)
    return SelfAttention((*inputs, last), norm)


def feed_forward(
    up: str,
    down: str,
    activation: str,
    norm: str,
    gate: str | None = None,
    transposed: bool = False,
) -> FeedForward:
    """A feed-forward network with a linear of its own for each role."""
    linears: tuple[Linear, ...] = (
        Linear("up", up, rows="neurons", transposed=transposed),
        Linear("down", down, columns="neurons", transposed=transposed),
    )
    if gate:
        linears = (*linears, Linear("gate", gate, rows="neurons", transposed=transposed))
    return FeedForward(linears, norm, activation)


def fused_feed_forward(gate_up: str, down: str, activation: str, norm: str) -> FeedForward:
    """A gated feed-forward network whose gate and up are equal parts of one module."""
    linears = (
        Linear("up", gate_up, rows="neurons", part=(1, 2)),
        Linear("down", down, columns="neurons"),
        Linear("gate", gate_up, rows="neurons", part=(0, 2)),
    )
    return FeedForward(linears, norm, activation=activation)


@dataclass(frozen=True)
class Architecture:
    """How one kind of model is built. Paths of sub-layers are relative to the layer.

    Attributes:
        model_type: of its config.
        layers: path of the list of layers, from the base model.
        norm_first: `x + f(norm(x))` instead of `norm(x + f(x))`.
        parallel: `x + attention(norm(x)) + ffn(norm(x))`: with norms first, both sub-layers read
            the states in front of the layer.
        rms_norm: the norms are `x / rms(x) * weight`, not LayerNorm.
        norm_offset: added to the weight of every norm: 1 where that is stored as its distance to
            one.
        causal: the model is a decoder.
        heads: the config attribute that says how many heads a layer has.
        kv_heads: the same of key/value heads.
        count: the same of layers.
        cross: the sub-layer between the two others that attends to another stack's states.
        decoder: of the second stack of layers, in models that have one.
        told: attributes of a layer by which the model chooses what to hand to it.
        when: an attribute of the config and its value in models built so; None: all are.
    """

    model_type: str
    layers: str
    attention: SelfAttention
    ffn: FeedForward
    norm_first: bool = False
    parallel: bool = False
    rms_norm: bool = False
    norm_offset: float = 0.0
    causal: bool = False
    heads: str = "num_attention_heads"
    kv_heads: str = "num_attention_heads"
    count: str = "num_hidden_layers"
    cross: CrossAttention | None = None
    decoder: Architecture | None = None
    told: tuple[str, ...] = ()
    when: tuple[str, Any] | None = None

    def fits(self, config: Any) -> bool:
        """Whether models of this config are built so."""
        return self.when is None or getattr(config, self.when[0], None) == self.when[1]

    @property
    def sublayers(self) -> tuple[SubLayer, ...]:
        """Those of a layer, in the order in which it runs them."""
        return tuple(filter(None, (self.attention, self.cross, self.ffn)))

    @property
    def linears(self) -> tuple[Linear, ...]:
        """Every linear of a layer."""
        return tuple(linear for sublayer in self.sublayers for linear in sublayer.linears)

    @property
    def norms(self) -> tuple[str, ...]:
        """In front of sub-layers, or behind them."""
        return tuple(sublayer.norm for sublayer in self.sublayers)

    @property
    def one_norm(self) -> bool:
        """Whether the sub-layers read what one norm gives."""
        return self.parallel and self.attention.norm == self.ffn.norm

    @property
    def inner_norms(self) -> tuple[str, ...]:
        """Those in between: of queries and keys, and of what sub-layers give."""
        behind = (sublayer.output_norm for sublayer in self.sublayers)
        return (*self.attention.head_norms, *filter(None, behind))

    @property
    def lent(self) -> tuple[str, ...]:
        """What a layer holds besides its linears, and a converted layer takes over unchanged."""
        attention = self.attention
        outlets = (sublayer.outlet for sublayer in self.sublayers)
        others = (attention.relative_bias, *outlets)
        return (*dict.fromkeys(self.norms), *attention.head_norms, *filter(None, others))

    @property
    def described(self) -> tuple[str, ...]:
        """Paths of all that a layer may hold tensors in, and of its own tensors."""
        return (*dict.fromkeys(linear.path for linear in self.linears), *self.lent)

    def describes(self, name: str) -> bool:
        """Whether a layer may hold a tensor of this name."""
        return name in self.described or name.rpartition(".")[0] in self.described

    def held_at(self, path: str) -> list[Linear]:
        """The linears that the module at `path` holds, in its order."""
        held = (linear for linear in self.linears if linear.path == path)
        return sorted(held, key=lambda linear: linear.part)

    def linear(self, role: str) -> Linear:
        return next(linear for linear in self.linears if linear.role == role)

    def named(self, model_type: str) -> Architecture:
        """The same architecture under the name of another kind of model."""
        decoder = self.decoder and self.decoder.named(model_type)
        return replace(self, model_type=model_type, decoder=decoder)
