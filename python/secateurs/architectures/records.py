"""The architectures that secateurs knows, one record each: supporting another one means adding a
record, and its name to ARCHITECTURES.

Where one kind of model is built in several ways, each has a record; the first one that the config
asks for and whose linears are there is taken.
"""

from __future__ import annotations

from dataclasses import replace

from secateurs.architectures.schema import (
    Architecture,
    attention,
    cross_attention,
    feed_forward,
    fused_attention,
    fused_feed_forward,
)
from secateurs.checks import door
from secateurs.errors import FamilyError

BERT = Architecture(
    "bert",
    "encoder.layer",
    attention(
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
        "attention.output.dense",
        norm="attention.output.LayerNorm",
    ),
    feed_forward(
        "intermediate.dense",
        "output.dense",
        activation="intermediate.intermediate_act_fn",
        norm="output.LayerNorm",
    ),
)

PRE_NORM_ROBERTA = replace(
    BERT.named("roberta-prelayernorm"),
    attention=replace(BERT.attention, norm="attention.LayerNorm"),
    ffn=replace(BERT.ffn, norm="intermediate.LayerNorm"),
    norm_first=True,
)

MEGATRON_BERT = replace(
    BERT.named("megatron-bert"),
    attention=replace(BERT.attention, norm="attention.ln"),
    ffn=replace(BERT.ffn, norm="ln"),
    norm_first=True,
)

ESM = replace(
    BERT.named("esm"),
    attention=replace(BERT.attention, norm="attention.LayerNorm", queries_scaled=True),
    ffn=replace(BERT.ffn, norm="LayerNorm", activation="gelu()"),
    norm_first=True,
)

XLM_ROBERTA_XL = replace(
    BERT.named("xlm-roberta-xl"),
    attention=replace(BERT.attention, norm="attention.self_attn_layer_norm"),
    ffn=replace(BERT.ffn, norm="LayerNorm"),
    norm_first=True,
)

MPNET = replace(
    BERT.named("mpnet"),
    attention=replace(
        attention(
            "attention.attn.q",
            "attention.attn.k",
            "attention.attn.v",
            "attention.attn.o",
            norm="attention.LayerNorm",
        ),
        outer_bias=True,
    ),
)

MODERNBERT = Architecture(
    "modernbert",
    "layers",
    fused_attention("attn.Wqkv", "attn.Wo", norm="attn_norm"),
    fused_feed_forward("mlp.Wi", "mlp.Wo", activation="mlp.act", norm="mlp_norm"),
    norm_first=True,
    told=("attention_type",),
)

DISTILBERT = Architecture(
    "distilbert",
    "transformer.layer",
    attention(
        "attention.q_lin",
        "attention.k_lin",
        "attention.v_lin",
        "attention.out_lin",
        norm="sa_layer_norm",
    ),
    feed_forward("ffn.lin1", "ffn.lin2", activation="ffn.activation", norm="output_layer_norm"),
)

VIT = Architecture(
    "vit",
    "layers",
    attention(
        "attention.q_proj",
        "attention.k_proj",
        "attention.v_proj",
        "attention.o_proj",
        norm="layernorm_before",
    ),
    feed_forward("mlp.fc1", "mlp.fc2", activation="mlp.activation_fn", norm="layernorm_after"),
    norm_first=True,
)

DINOV2 = replace(
    VIT.named("dinov2"),
    layers="encoder.layer",
    attention=replace(VIT.attention, norm="norm1", scale="layer_scale1"),
    ffn=replace(VIT.ffn, norm="norm2", scale="layer_scale2"),
)

EARLIER_DINOV2 = replace(  # in older versions of transformers
    DINOV2,
    attention=replace(
        attention(
            "attention.attention.query",
            "attention.attention.key",
            "attention.attention.value",
            "attention.output.dense",
            norm="norm1",
        ),
        scale="layer_scale1",
    ),
    ffn=replace(DINOV2.ffn, activation="mlp.activation"),
)

CLIP = Architecture(
    "clip_text_model",
    "encoder.layers",
    attention(
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.out_proj",
        norm="layer_norm1",
    ),
    feed_forward("mlp.fc1", "mlp.fc2", activation="mlp.activation_fn", norm="layer_norm2"),
    norm_first=True,
)

WAV2VEC2 = Architecture(
    "wav2vec2",
    "encoder.layers",
    attention(
        "attention.q_proj",
        "attention.k_proj",
        "attention.v_proj",
        "attention.out_proj",
        norm="layer_norm",
    ),
    feed_forward(
        "feed_forward.intermediate_dense",
        "feed_forward.output_dense",
        activation="feed_forward.intermediate_act_fn",
        norm="final_layer_norm",
    ),
    when=("do_stable_layer_norm", False),
)
STABLE_WAV2VEC2 = replace(WAV2VEC2, norm_first=True, when=("do_stable_layer_norm", True))

LLAMA = Architecture(
    "llama",
    "layers",
    attention(
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.o_proj",
        norm="input_layernorm",
    ),
    feed_forward(
        "mlp.up_proj",
        "mlp.down_proj",
        activation="mlp.act_fn",
        norm="post_attention_layernorm",
        gate="mlp.gate_proj",
    ),
    norm_first=True,
    rms_norm=True,
    causal=True,
    kv_heads="num_key_value_heads",
)

QWEN3 = replace(
    LLAMA.named("qwen3"),
    attention=replace(LLAMA.attention, head_norms=("self_attn.q_norm", "self_attn.k_norm")),
)

GRANITE = replace(
    LLAMA.named("granite"),
    attention=replace(LLAMA.attention, scale="residual_multiplier"),
    ffn=replace(LLAMA.ffn, scale="residual_multiplier"),
)

GEMMA = replace(LLAMA.named("gemma"), norm_offset=1.0)

STABLELM = replace(LLAMA.named("stablelm"), rms_norm=False, when=("use_parallel_residual", False))

EUROBERT = replace(LLAMA.named("eurobert"), causal=False)

NOMIC_BERT = replace(
    LLAMA.named("nomic_bert"),
    attention=replace(LLAMA.attention, norm="post_attention_layernorm"),
    ffn=replace(LLAMA.ffn, norm="post_mlp_layernorm"),
    norm_first=False,
    rms_norm=False,
    causal=False,
    kv_heads="num_attention_heads",
)

STARCODER2 = replace(
    LLAMA.named("starcoder2"),
    ffn=feed_forward(
        "mlp.c_fc", "mlp.c_proj", activation="mlp.act", norm="post_attention_layernorm"
    ),
    rms_norm=False,
)

OPT = Architecture(
    "opt",
    "decoder.layers",
    attention(
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.out_proj",
        norm="self_attn_layer_norm",
    ),
    feed_forward("fc1", "fc2", activation="activation_fn", norm="final_layer_norm"),
    norm_first=True,
    causal=True,
    when=("do_layer_norm_before", True),
)
POST_NORM_OPT = replace(OPT, norm_first=False, when=("do_layer_norm_before", False))

_BART_DECODER = replace(
    POST_NORM_OPT.named("bart"),
    when=None,
    heads="decoder_attention_heads",
    kv_heads="decoder_attention_heads",
    count="decoder_layers",
    cross=cross_attention(
        "encoder_attn.q_proj",
        "encoder_attn.k_proj",
        "encoder_attn.v_proj",
        "encoder_attn.out_proj",
        norm="encoder_attn_layer_norm",
    ),
)
BART = replace(
    _BART_DECODER,
    layers="encoder.layers",
    causal=False,
    heads="encoder_attention_heads",
    kv_heads="encoder_attention_heads",
    count="encoder_layers",
    cross=None,
    decoder=_BART_DECODER,
)
MBART = replace(
    BART.named("mbart"),
    norm_first=True,
    decoder=replace(_BART_DECODER.named("mbart"), norm_first=True),
)

BIOGPT = replace(OPT.named("biogpt"), layers="layers", when=None)

GPT2 = Architecture(
    "gpt2",
    "h",
    fused_attention("attn.c_attn", "attn.c_proj", norm="ln_1", transposed=True),
    feed_forward("mlp.c_fc", "mlp.c_proj", activation="mlp.act", norm="ln_2", transposed=True),
    norm_first=True,
    causal=True,
)

_T5_DECODER = Architecture(
    "t5",
    "decoder.block",
    attention(
        "layer.0.SelfAttention.q",
        "layer.0.SelfAttention.k",
        "layer.0.SelfAttention.v",
        "layer.0.SelfAttention.o",
        norm="layer.0.layer_norm",
        relative_bias="layer.0.SelfAttention.relative_attention_bias",
        scores_scale=1.0,
    ),
    feed_forward(
        "layer.2.DenseReluDense.wi",
        "layer.2.DenseReluDense.wo",
        activation="layer.2.DenseReluDense.act",
        norm="layer.2.layer_norm",
    ),
    norm_first=True,
    rms_norm=True,
    causal=True,
    count="num_decoder_layers",
    cross=cross_attention(
        "layer.1.EncDecAttention.q",
        "layer.1.EncDecAttention.k",
        "layer.1.EncDecAttention.v",
        "layer.1.EncDecAttention.o",
        norm="layer.1.layer_norm",
    ),
)
T5 = replace(
    _T5_DECODER,
    layers="encoder.block",
    ffn=feed_forward(
        "layer.1.DenseReluDense.wi",
        "layer.1.DenseReluDense.wo",
        activation="layer.1.DenseReluDense.act",
        norm="layer.1.layer_norm",
    ),
    causal=False,
    count="num_hidden_layers",
    cross=None,
    decoder=_T5_DECODER,
)
GATED_T5 = replace(
    T5,
    ffn=feed_forward(
        "layer.1.DenseReluDense.wi_1",
        "layer.1.DenseReluDense.wo",
        activation="layer.1.DenseReluDense.act",
        norm="layer.1.layer_norm",
        gate="layer.1.DenseReluDense.wi_0",
    ),
    decoder=replace(
        _T5_DECODER,
        ffn=feed_forward(
            "layer.2.DenseReluDense.wi_1",
            "layer.2.DenseReluDense.wo",
            activation="layer.2.DenseReluDense.act",
            norm="layer.2.layer_norm",
            gate="layer.2.DenseReluDense.wi_0",
        ),
    ),
)


def _by_type(*records: Architecture) -> dict[str, tuple[Architecture, ...]]:
    """Records by kind of model, in the order in which they are tried."""
    found: dict[str, tuple[Architecture, ...]] = {}
    for record in records:
        found[record.model_type] = (*found.get(record.model_type, ()), record)
    return found


ARCHITECTURES: dict[str, tuple[Architecture, ...]] = _by_type(
    BERT,  # MiniLM is a BERT
    BERT.named("roberta"),
    BERT.named("xlm-roberta"),
    BERT.named("electra"),
    BERT.named("camembert"),
    BERT.named("data2vec-text"),
    BERT.named("ernie"),
    BERT.named("layoutlm"),
    BERT.named("splinter"),
    BERT.named("bert-generation"),
    BERT.named("rembert"),
    PRE_NORM_ROBERTA,
    XLM_ROBERTA_XL,
    ESM,
    MEGATRON_BERT,
    MPNET,
    DISTILBERT,
    MODERNBERT,
    EUROBERT,
    NOMIC_BERT,
    T5,
    GATED_T5,
    T5.named("mt5"),
    GATED_T5.named("mt5"),
    CLIP,
    CLIP.named("siglip_text_model"),
    CLIP.named("clip_vision_model"),
    CLIP.named("siglip_vision_model"),
    VIT,
    VIT.named("deit"),
    VIT.named("ijepa"),
    VIT.named("vit_msn"),
    DINOV2,
    EARLIER_DINOV2,
    DINOV2.named("dinov2_with_registers"),
    EARLIER_DINOV2.named("dinov2_with_registers"),
    VIT.named("audio-spectrogram-transformer"),
    WAV2VEC2,
    STABLE_WAV2VEC2,
    WAV2VEC2.named("hubert"),
    STABLE_WAV2VEC2.named("hubert"),
    replace(WAV2VEC2.named("data2vec-audio"), when=None),
    BART,
    BART.named("marian"),
    MBART,
    MBART.named("m2m_100"),
    MBART.named("pegasus"),
    MBART.named("whisper"),
    LLAMA,
    LLAMA.named("qwen2"),
    LLAMA.named("mistral"),
    LLAMA.named("smollm3"),
    LLAMA.named("seed_oss"),
    QWEN3,
    GRANITE,
    GEMMA,
    STABLELM,
    STARCODER2,
    GPT2,
    OPT,
    POST_NORM_OPT,
    BIOGPT,
)


@door
def register_architecture(model_type: str, like: str | Architecture) -> None:
    """Let models of another kind be pruned, in this process.

    Only what the layers are made of is told; that they compute what the record says is found out
    by `convert`, which compares every layer with the stock one. They must be transformers' own.

    Args:
        model_type: of the config.
        like: a known kind whose layers are built the same, or a record
            (`secateurs.architectures.schema.Architecture`).

    Raises FamilyError for a kind that has a record, and for an unknown `like`.
    """
    if not model_type or model_type in ARCHITECTURES:
        raise FamilyError(f"expected a kind of model without a record, got {model_type!r}")
    if isinstance(like, Architecture):
        records: tuple[Architecture, ...] = (like,)
    elif like in ARCHITECTURES:
        records = ARCHITECTURES[like]
    else:
        raise FamilyError(f"expected a known kind of model as like, got {like!r}")
    ARCHITECTURES[model_type] = tuple(record.named(model_type) for record in records)
