"""Encoders of text built like BERT."""

from __future__ import annotations

from dataclasses import replace

from secateurs.architectures.schema import (
    Architecture,
    attention,
    feed_forward,
    fused_attention,
    fused_feed_forward,
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

ALBERT = Architecture(
    "albert",
    "encoder.albert_layer_groups.0.albert_layers",
    attention(
        "attention.query",
        "attention.key",
        "attention.value",
        "attention.dense",
        norm="attention.LayerNorm",
    ),
    feed_forward("ffn", "ffn_output", activation="activation", norm="full_layer_layer_norm"),
    count="inner_group_num",
    when=("num_hidden_groups", 1),
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

MODERNBERT = Architecture(
    "modernbert",
    "layers",
    fused_attention("attn.Wqkv", "attn.Wo", norm="attn_norm"),
    fused_feed_forward("mlp.Wi", "mlp.Wo", activation="mlp.act", norm="mlp_norm"),
    norm_first=True,
    told=("attention_type",),
)

RECORDS = (
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
    ALBERT,
    MEGATRON_BERT,
    MPNET,
    DISTILBERT,
    MODERNBERT,
)
