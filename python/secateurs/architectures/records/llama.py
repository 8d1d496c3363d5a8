"""Decoders built like Llama, and encoders of text built like them."""

from __future__ import annotations

from dataclasses import replace

from secateurs.architectures.schema import (
    Architecture,
    attention,
    feed_forward,
    fused_attention,
    fused_feed_forward,
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

GEMMA3 = replace(
    GEMMA.named("gemma3_text"),
    attention=replace(QWEN3.attention, output_norm="post_attention_layernorm"),
    ffn=replace(
        GEMMA.ffn, norm="pre_feedforward_layernorm", output_norm="post_feedforward_layernorm"
    ),
)

GEMMA2 = replace(GEMMA3.named("gemma2"), attention=replace(GEMMA3.attention, head_norms=()))

PHI3 = replace(
    LLAMA.named("phi3"),
    attention=fused_attention(
        "self_attn.qkv_proj", "self_attn.o_proj", norm="input_layernorm", grouped=True
    ),
    ffn=fused_feed_forward(
        "mlp.gate_up_proj",
        "mlp.down_proj",
        activation="mlp.activation_fn",
        norm="post_attention_layernorm",
    ),
)

STABLELM = replace(LLAMA.named("stablelm"), rms_norm=False, when=("use_parallel_residual", False))

PARALLEL_STABLELM = replace(
    STABLELM,
    ffn=replace(LLAMA.ffn, norm="input_layernorm"),
    parallel=True,
    when=("use_parallel_residual", True),
)

PHI = replace(
    LLAMA.named("phi"),
    attention=attention(
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.dense",
        norm="input_layernorm",
    ),
    ffn=feed_forward("mlp.fc1", "mlp.fc2", activation="mlp.activation_fn", norm="input_layernorm"),
    parallel=True,
    rms_norm=False,
    when=("qk_layernorm", False),
)

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

RECORDS = (
    EUROBERT,
    NOMIC_BERT,
    LLAMA,
    LLAMA.named("qwen2"),
    LLAMA.named("mistral"),
    LLAMA.named("smollm3"),
    LLAMA.named("seed_oss"),
    QWEN3,
    GRANITE,
    GEMMA,
    GEMMA2,
    GEMMA3,
    PHI3,
    STABLELM,
    PARALLEL_STABLELM,
    PHI,
    STARCODER2,
)
