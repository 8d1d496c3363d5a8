"""Decoders built like GPT-2, GPT-NeoX and OPT."""

from __future__ import annotations

from dataclasses import replace

from secateurs.architectures.schema import Architecture, attention, feed_forward, fused_attention

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

BIOGPT = replace(OPT.named("biogpt"), layers="layers", when=None)

GPT2 = Architecture(
    "gpt2",
    "h",
    fused_attention("attn.c_attn", "attn.c_proj", norm="ln_1", transposed=True),
    feed_forward("mlp.c_fc", "mlp.c_proj", activation="mlp.act", norm="ln_2", transposed=True),
    norm_first=True,
    causal=True,
)

GPT_NEOX = Architecture(
    "gpt_neox",
    "layers",
    fused_attention(
        "attention.query_key_value",
        "attention.dense",
        norm="input_layernorm",
        head_width="attention.head_size",
    ),
    feed_forward(
        "mlp.dense_h_to_4h",
        "mlp.dense_4h_to_h",
        activation="mlp.act",
        norm="post_attention_layernorm",
    ),
    norm_first=True,
    parallel=True,
    causal=True,
    when=("use_parallel_residual", True),
)

SEQUENTIAL_GPT_NEOX = replace(GPT_NEOX, parallel=False, when=("use_parallel_residual", False))

RECORDS = (
    GPT2,
    GPT_NEOX,
    SEQUENTIAL_GPT_NEOX,
    OPT,
    POST_NORM_OPT,
    BIOGPT,
)
