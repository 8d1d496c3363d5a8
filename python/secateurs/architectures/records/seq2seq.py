"""Models with an encoder and a decoder."""

from __future__ import annotations

from dataclasses import replace

from secateurs.architectures.records.gpt import POST_NORM_OPT
from secateurs.architectures.schema import Architecture, attention, cross_attention, feed_forward

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

RECORDS = (
    T5,
    GATED_T5,
    T5.named("mt5"),
    GATED_T5.named("mt5"),
    BART,
    BART.named("marian"),
    MBART,
    MBART.named("m2m_100"),
    MBART.named("pegasus"),
    MBART.named("whisper"),
)
