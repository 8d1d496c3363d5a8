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
    LlamaConfig,
    LlamaForCausalLM,
    RobertaConfig,
    RobertaForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
)

TEXT_FAMILIES = ("bert", "roberta", "electra", "distilbert", "llama")
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
    else:
        model = LlamaForCausalLM(LlamaConfig(**{"num_key_value_heads": 2, **sizes}))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn(parameter.shape))
            else:
                parameter.normal_(std=0.1)
    return model.eval()
