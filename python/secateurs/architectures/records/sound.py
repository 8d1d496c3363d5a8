"""Encoders of sound."""

from __future__ import annotations

from dataclasses import replace

from secateurs.architectures.schema import Architecture, attention, feed_forward

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

RECORDS = (
    WAV2VEC2,
    STABLE_WAV2VEC2,
    WAV2VEC2.named("hubert"),
    STABLE_WAV2VEC2.named("hubert"),
    replace(WAV2VEC2.named("data2vec-audio"), when=None),
)
