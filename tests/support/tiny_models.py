"""Tiny random models of every family."""

from __future__ import annotations

import torch
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    ElectraConfig,
    ElectraModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    RobertaConfig,
    RobertaForSequenceClassification,
    T5Config,
    T5EncoderModel,
    ViTConfig,
    ViTForImageClassification,
)

CAUSAL_FAMILIES = ("llama", "qwen2", "mistral", "gpt2")
TEXT_FAMILIES = ("bert", "roberta", "electra", "distilbert", "t5", "gated t5", *CAUSAL_FAMILIES)
SIZES = {
    "vocab_size": 100,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 96,
}


def tiny_model(kind: str, **changes: object) -> nn.Module:
    """A random model with biases and norms that are not their initial zeros and ones."""
    torch.manual_seed(0)
    sizes = {**SIZES, **changes}
    if kind == "bert":
        model = BertModel(BertConfig(**sizes))
    elif kind == "roberta":
        config = RobertaConfig(**sizes, pad_token_id=1, max_position_embeddings=64)
        model = RobertaForSequenceClassification(config)
    elif kind == "electra":
        model = ElectraModel(ElectraConfig(**sizes, embedding_size=32))
    elif kind == "distilbert":
        model = DistilBertModel(
            DistilBertConfig(vocab_size=100, dim=64, n_layers=3, n_heads=4, hidden_dim=96)
        )
    elif kind == "vit":
        image = {"image_size": 24, "patch_size": 8}
        model = ViTForImageClassification(ViTConfig(**sizes, **image, num_labels=3))
    elif kind == "gpt2":
        model = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=100, n_embd=64, n_layer=3, n_head=4, n_inner=96, n_positions=64,
                bos_token_id=1, eos_token_id=2,
            )
        )  # fmt: skip
    elif kind in ("t5", "gated t5"):
        ffn = "gated-gelu" if kind == "gated t5" else "relu"
        model = T5EncoderModel(
            T5Config(
                vocab_size=100, d_model=64, d_kv=16, d_ff=96, num_layers=3, num_heads=4,
                relative_attention_num_buckets=8, relative_attention_max_distance=10,
                feed_forward_proj=ffn,
            )
        )  # fmt: skip
    elif kind == "qwen2":
        model = Qwen2ForCausalLM(Qwen2Config(**{"num_key_value_heads": 2, **sizes}))
    elif kind == "mistral":
        window = {"sliding_window": 5, "num_key_value_heads": 2}
        model = MistralForCausalLM(MistralConfig(**{**window, **sizes}))
    else:
        model = LlamaForCausalLM(LlamaConfig(**{"num_key_value_heads": 2, **sizes}))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn(parameter.shape))
            else:
                parameter.normal_(std=0.1)
    return model.eval()
