"""Encoders of images, and of images and text side by side."""

from __future__ import annotations

from dataclasses import replace

from secateurs.architectures.schema import Architecture, attention, feed_forward

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

BEIT = replace(
    VIT.named("beit"),
    attention=replace(VIT.attention, relative_bias="relative_position_bias", scale="lambda_1"),
    ffn=replace(VIT.ffn, scale="lambda_2"),
    told=("patch_size",),
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

RECORDS = (
    CLIP,
    CLIP.named("siglip_text_model"),
    CLIP.named("clip_vision_model"),
    CLIP.named("siglip_vision_model"),
    VIT,
    VIT.named("deit"),
    VIT.named("ijepa"),
    VIT.named("vit_msn"),
    BEIT,
    DINOV2,
    EARLIER_DINOV2,
    DINOV2.named("dinov2_with_registers"),
    EARLIER_DINOV2.named("dinov2_with_registers"),
    VIT.named("audio-spectrogram-transformer"),
)
