"""Where a model can lose something: families as records of data, and the sites found on one model.

Supporting an architecture means adding a record to FAMILIES, never a function: paths of the
linears, norms and activation inside a layer, where the norm stands, and which config attributes
hold what cannot be read off the weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from secateurs.checks import door
from secateurs.errors import FamilyError
from secateurs.plan import BlockMask, PatternMask, Site, SparsityPlan
from secateurs.plan.quantization import Levels


@dataclass(frozen=True)
class Family:
    """How one architecture names the parts of a layer. Paths are relative to the layer."""

    model_type: str
    layers: str  # the ModuleList of layers, below the base model
    query: str
    key: str
    value: str
    output: str
    up: str
    down: str
    attention_norm: str
    ffn_norm: str
    gate: str | None = None
    norm_first: bool = False  # x + f(norm(x)) instead of norm(x + f(x))
    rms_norm: bool = False  # the norms are x / rms(x) * weight, not LayerNorm
    causal: bool = False  # a decoder
    activation: str = "intermediate.intermediate_act_fn"
    kv_heads: str = "num_attention_heads"  # config attribute
    head_dim: str = "head_dim"  # config attribute, if the config has it; else hidden_size / heads

    def linears(self) -> dict[str, str]:
        """Role of each linear of a layer, and its path."""
        roles = ("query", "key", "value", "output", "gate", "up", "down")
        return {role: getattr(self, role) for role in roles if getattr(self, role)}


_BERT = Family(
    model_type="bert",
    layers="encoder.layer",
    query="attention.self.query",
    key="attention.self.key",
    value="attention.self.value",
    output="attention.output.dense",
    up="intermediate.dense",
    down="output.dense",
    attention_norm="attention.output.LayerNorm",
    ffn_norm="output.LayerNorm",
)

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        _BERT,  # MiniLM is a BERT
        replace(_BERT, model_type="roberta"),
        replace(_BERT, model_type="xlm-roberta"),
        replace(_BERT, model_type="electra"),
        Family(
            model_type="distilbert",
            layers="transformer.layer",
            query="attention.q_lin",
            key="attention.k_lin",
            value="attention.v_lin",
            output="attention.out_lin",
            up="ffn.lin1",
            down="ffn.lin2",
            attention_norm="sa_layer_norm",
            ffn_norm="output_layer_norm",
            activation="ffn.activation",
        ),
        Family(
            model_type="vit",
            layers="layers",
            query="attention.q_proj",
            key="attention.k_proj",
            value="attention.v_proj",
            output="attention.o_proj",
            up="mlp.fc1",
            down="mlp.fc2",
            attention_norm="layernorm_before",
            ffn_norm="layernorm_after",
            activation="mlp.activation_fn",
            norm_first=True,
        ),
        Family(
            model_type="llama",
            layers="layers",
            query="self_attn.q_proj",
            key="self_attn.k_proj",
            value="self_attn.v_proj",
            output="self_attn.o_proj",
            gate="mlp.gate_proj",
            up="mlp.up_proj",
            down="mlp.down_proj",
            attention_norm="input_layernorm",
            ffn_norm="post_attention_layernorm",
            norm_first=True,
            activation="mlp.act_fn",
            rms_norm=True,
            causal=True,
            kv_heads="num_key_value_heads",
        ),
    )
}


@dataclass(frozen=True)
class LayerShape:
    """Sizes of one layer: query heads, key/value heads, width of a head, FFN neurons, and whether
    the FFN is gated."""

    heads: int
    kv_heads: int
    head_dim: int
    neurons: int
    hidden: int
    gated: bool

    @property
    def group(self) -> int:
        """Query heads that share one key/value head."""
        return self.heads // self.kv_heads

    def linears(self) -> dict[str, tuple[int, int]]:
        """`(N, K)` of each linear, by role."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        shapes = {
            "query": (q, self.hidden),
            "key": (kv, self.hidden),
            "value": (kv, self.hidden),
            "output": (self.hidden, q),
            "up": (self.neurons, self.hidden),
            "down": (self.hidden, self.neurons),
        }
        if self.gated:
            shapes["gate"] = (self.neurons, self.hidden)
        return shapes


@dataclass(frozen=True, eq=False)
class LayerKeep:
    """What a plan leaves of one layer: bool vectors, and masks and levels of weights by role. A
    removed module keeps nothing."""

    shape: LayerShape
    attention: bool
    ffn: bool
    heads: Tensor  # [H]
    neurons: Tensor  # [F]
    blocks: Mapping[str, BlockMask]
    patterns: Mapping[str, PatternMask]
    levels: Mapping[str, Levels]

    @property
    def weights(self) -> dict[str, BlockMask | PatternMask]:
        """Every mask of a linear, by role."""
        return {**self.blocks, **self.patterns}

    @property
    def kv_heads(self) -> Tensor:
        """`[Hkv]`, True where some query head of the group stays."""
        return self.heads.view(self.shape.kv_heads, self.shape.group).any(1)

    @property
    def kv_of(self) -> Tensor:
        """int32 `[kept query heads]`: the kept key/value head each one reads."""
        old = self.heads.nonzero()[:, 0] // self.shape.group
        return (self.kv_heads.cumsum(0) - 1)[old].to(torch.int32)

    def sides(self, role: str) -> tuple[Tensor, Tensor]:
        """Bool masks of the rows `[N]` and columns `[K]` of one linear that stay."""
        width = torch.ones(self.shape.hidden, dtype=torch.bool)
        if role in ("query", "output"):
            inner = self.heads.repeat_interleave(self.shape.head_dim)
        elif role in ("key", "value"):
            inner = self.kv_heads.repeat_interleave(self.shape.head_dim)
        else:
            inner = self.neurons
        return (width, inner) if role in ("output", "down") else (inner, width)

    def elements(self, role: str) -> Tensor:
        """Bool `[N, K]`, True where an element of the linear stays."""
        rows, columns = self.sides(role)
        keep = rows[:, None] & columns
        if role in self.weights:
            keep &= self.weights[role].elements()
        return keep

    def rounded(self, role: str, weight: Tensor) -> Tensor:
        """The weight `[N, K]` of one linear with each entry on its nearest level, if it has any."""
        return self.levels[role].nearest(weight) if role in self.levels else weight

    def parameters(self) -> int:
        """Weights of the linears that stay (biases and norms are not counted)."""
        return sum(self._count(role) for role in self.shape.linears())

    def macs(self, seq_len: int) -> int:
        """Multiply-accumulates per token in a sequence of `seq_len` tokens: linears, scores and
        weighted sums."""
        return self.parameters() + 2 * seq_len * self.shape.head_dim * int(self.heads.sum())

    def _count(self, role: str) -> int:
        if role in self.weights:
            return int(self.elements(role).sum())
        rows, columns = self.sides(role)
        return int(rows.sum()) * int(columns.sum())


@dataclass(frozen=True)
class Sites:
    """Everything a model of a known family can lose.

    Site names: `layers.I.heads`, `layers.I.neurons`, `layers.I.attention`, `layers.I.ffn`,
    `layers.I.layer` (both sub-layers), and one per linear: `layers.I.query`, `.key`, `.value`,
    `.output`, `.gate`, `.up`, `.down`.
    """

    family: Family
    path: str  # of the ModuleList of layers, from the model given
    layers: tuple[LayerShape, ...]

    def __iter__(self) -> Iterator[Site]:
        for i, shape in enumerate(self.layers):
            yield Site(f"layers.{i}.heads", "heads", i, (shape.heads,))
            yield Site(f"layers.{i}.neurons", "neurons", i, (shape.neurons,))
            for module in ("attention", "ffn", "layer"):
                yield Site(f"layers.{i}.{module}", "module", i, ())
            for role, size in shape.linears().items():
                yield Site(f"layers.{i}.{role}", "linear", i, size)

    def of_kind(self, kind: str) -> list[Site]:
        return [site for site in self if site.kind == kind]

    def fingerprint(self) -> dict[str, Any]:
        """What a plan remembers of the model it was made for."""
        sizes = [[s.heads, s.kv_heads, s.head_dim, s.neurons] for s in self.layers]
        hidden = self.layers[0].hidden if self.layers else 0
        return {"model_type": self.family.model_type, "hidden_size": hidden, "layers": sizes}

    def layer_path(self, index: int) -> str:
        return f"{self.path}.{index}"

    def layer(self, model: nn.Module, index: int) -> nn.Module:
        return model.get_submodule(self.layer_path(index))

    def linear(self, model: nn.Module, index: int, role: str) -> nn.Module:
        return model.get_submodule(f"{self.layer_path(index)}.{getattr(self.family, role)}")

    def keep(self, plan: SparsityPlan, index: int) -> LayerKeep:
        """What `plan` leaves of layer `index`."""
        masks, shape = plan.masks, self.layers[index]

        def mask(part: str, size: int | None = None) -> Tensor:
            found = masks.get(f"layers.{index}.{part}")
            if found is not None:
                return found.keep
            return torch.ones(() if size is None else size, dtype=torch.bool)

        whole = bool(mask("layer"))
        attention, ffn = whole and bool(mask("attention")), whole and bool(mask("ffn"))
        weights = {
            role: found
            for role in shape.linears()
            if (found := masks.get(f"layers.{index}.{role}")) is not None
        }
        return LayerKeep(
            shape,
            attention,
            ffn,
            mask("heads", shape.heads) & attention,
            mask("neurons", shape.neurons) & ffn,
            {role: m for role, m in weights.items() if isinstance(m, BlockMask)},
            {role: m for role, m in weights.items() if isinstance(m, PatternMask)},
            {
                role: levels
                for role in shape.linears()
                if (levels := plan.levels.get(f"layers.{index}.{role}")) is not None
            },
        )

    def density(self, plan: SparsityPlan, seq_len: int = 128) -> dict[str, float]:
        """Fraction kept, counted in heads, neurons, sub-layers, weights of the layers' linears, and
        MACs at `seq_len` tokens."""
        kept = [self.keep(plan, i) for i in range(len(self.layers))]
        full = [self.keep(SparsityPlan(), i) for i in range(len(self.layers))]
        count = {
            "heads": lambda k: int(k.heads.sum()),
            "neurons": lambda k: int(k.neurons.sum()),
            "modules": lambda k: int(k.attention) + int(k.ffn),
            "parameters": lambda k: k.parameters(),
            "macs": lambda k: k.macs(seq_len),
        }
        return {
            name: sum(map(units, kept)) / max(1, sum(map(units, full)))
            for name, units in count.items()
        }


@door
def find_sites(model: nn.Module) -> Sites:
    """The sites of a transformers model.

    Raises FamilyError for an architecture without a record, a decoder with cross-attention, a
    model whose layers are not stock (already converted, or patched), and one without layers or
    with an empty one.
    """
    config = getattr(model, "config", None)
    family = FAMILIES.get(getattr(config, "model_type", ""))
    if family is None or config is None:
        came = getattr(config, "model_type", type(model).__name__)
        raise FamilyError(f"expected a model of type {', '.join(FAMILIES)}; got {came!r}")
    if not family.causal and getattr(config, "is_decoder", False):
        raise FamilyError(f"expected {family.model_type} as an encoder, got config.is_decoder=True")
    base = getattr(model, "base_model", model)
    name = next(name for name, module in model.named_modules() if module is base)
    path = f"{name}.{family.layers}" if name else family.layers
    try:
        layers = model.get_submodule(path)
    except AttributeError:
        raise FamilyError(
            f"expected layers at {path}, but {type(model).__name__} has none"
        ) from None
    shapes = tuple(_layer_shape(family, config, layer) for layer in layers)
    _check_unshared(family, layers)
    if not shapes:
        raise FamilyError(f"expected layers at {path}, got an empty list")
    for i, shape in enumerate(shapes):
        if not shape.neurons:
            raise FamilyError(f"expected neurons in every layer, got none in layer {i}")
    return Sites(family, path, shapes)


def _layer_shape(family: Family, config: Any, layer: nn.Module) -> LayerShape:
    for role, path in family.linears().items():
        try:
            linear = layer.get_submodule(path)
        except AttributeError:
            linear = None
        _check_linear(linear, role, f"{path} of {type(layer).__name__}")
    heads = config.num_attention_heads
    head_dim = getattr(config, family.head_dim, None) or config.hidden_size // heads
    query, up = layer.get_submodule(family.query), layer.get_submodule(family.up)
    shape = LayerShape(
        heads=heads,
        kv_heads=getattr(config, family.kv_heads),
        head_dim=head_dim,
        neurons=up.out_features,
        hidden=query.in_features,
        gated=family.gate is not None,
    )
    for role, size in shape.linears().items():
        linear = layer.get_submodule(getattr(family, role))
        if tuple(linear.weight.shape) != size:
            raise FamilyError(
                f"expected {role} of shape {size} from the config, got {tuple(linear.weight.shape)}"
            )
    return shape


def _check_linear(linear: nn.Module | None, role: str, where: str) -> None:
    """Raise FamilyError unless a linear is torch's own and computes with the parameters it holds:
    a weight made anew at each call would take no mask, and a subclass may compute more."""
    if type(linear) is nn.Linear:
        for name in ("weight", "bias"):
            if name not in linear._parameters:
                raise FamilyError(
                    f"expected a plain parameter as {name} of {role} at {where}, but it is made "
                    "anew at each call: make it permanent first (torch.nn.utils.prune.remove, "
                    "remove_weight_norm or remove_spectral_norm)"
                )
        return
    came = "nothing" if linear is None else type(linear).__name__
    if isinstance(linear, nn.Module) and is_parametrized(linear):
        hint = "make its parametrizations permanent first (parametrize.remove_parametrizations)"
    elif isinstance(linear, nn.Linear):
        hint = (
            "a subclass may compute more than its weight says: merge it into a torch Linear first"
        )
    else:
        hint = "a converted model cannot be pruned again: prune the dense one"
    raise FamilyError(f"expected a torch Linear as {role} at {where}, got {came}; {hint}")


def _check_unshared(family: Family, layers: Iterable[nn.Module]) -> None:
    """Raise FamilyError if two linears hold one parameter: they could not lose different parts."""
    owners: dict[int, str] = {}
    for index, layer in enumerate(layers):
        for role, path in family.linears().items():
            for parameter in layer.get_submodule(path)._parameters.values():
                name = f"layers.{index}.{role}"
                if parameter is not None and owners.setdefault(id(parameter), name) != name:
                    raise FamilyError(
                        f"expected linears with parameters of their own, but {name} shares one "
                        f"with {owners[id(parameter)]}"
                    )
