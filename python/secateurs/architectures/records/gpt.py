"""Decoders built like GPT-2 and OPT."""

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

RECORDS = (
    GPT2,
    OPT,
    POST_NORM_OPT,
    BIOGPT,
)
