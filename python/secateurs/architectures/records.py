"""The architectures that secateurs knows, one record each: supporting another one means adding a
record, and its name to ARCHITECTURES.

Where one kind of model is built in several ways, each has a record; the one whose linears are there
is taken.
"""

from __future__ import annotations

from secateurs.architectures.schema import (
    Architecture,
    attention,
    feed_forward,
    fused_attention,
)

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

GPT2 = Architecture(
    "gpt2",
    "h",
    fused_attention("attn.c_attn", "attn.c_proj", norm="ln_1", transposed=True),
    feed_forward("mlp.c_fc", "mlp.c_proj", activation="mlp.act", norm="ln_2", transposed=True),
    norm_first=True,
    causal=True,
)

_T5_ATTENTION = attention(
    "layer.0.SelfAttention.q",
    "layer.0.SelfAttention.k",
    "layer.0.SelfAttention.v",
    "layer.0.SelfAttention.o",
    norm="layer.0.layer_norm",
    relative_bias="layer.0.SelfAttention.relative_attention_bias",
    scale=1.0,
)

T5_ENCODER = Architecture(
    "t5",
    "encoder.block",
    _T5_ATTENTION,
    feed_forward(
        "layer.1.DenseReluDense.wi",
        "layer.1.DenseReluDense.wo",
        activation="layer.1.DenseReluDense.act",
        norm="layer.1.layer_norm",
    ),
    norm_first=True,
    rms_norm=True,
)

GATED_T5_ENCODER = Architecture(
    "t5",
    "encoder.block",
    _T5_ATTENTION,
    feed_forward(
        "layer.1.DenseReluDense.wi_1",
        "layer.1.DenseReluDense.wo",
        activation="layer.1.DenseReluDense.act",
        norm="layer.1.layer_norm",
        gate="layer.1.DenseReluDense.wi_0",
    ),
    norm_first=True,
    rms_norm=True,
)

# By kind of model, in the order in which they are tried.
ARCHITECTURES: dict[str, tuple[Architecture, ...]] = {
    "bert": (BERT,),  # MiniLM is a BERT
    "roberta": (BERT.named("roberta"),),
    "xlm-roberta": (BERT.named("xlm-roberta"),),
    "electra": (BERT.named("electra"),),
    "distilbert": (DISTILBERT,),
    "vit": (VIT,),
    "llama": (LLAMA,),
    "qwen2": (LLAMA.named("qwen2"),),
    "mistral": (LLAMA.named("mistral"),),
    "gpt2": (GPT2,),
    "t5": (T5_ENCODER, GATED_T5_ENCODER),
}
