"""Tiny random models of every family."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
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

IMAGE = {"image_size": 24, "patch_size": 8}
_PAIRS = {"num_key_value_heads": 2}
_SOUND = {
    "conv_dim": (16, 16),
    "conv_kernel": (4, 3),
    "conv_stride": (3, 2),
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
}
_STABLE = {**_SOUND, "do_stable_layer_norm": True, "feat_extract_norm": "layer"}
_SCALES = {
    "residual_multiplier": 0.3,
    "attention_multiplier": 0.2,
    "embedding_multiplier": 2.0,
    "logits_scaling": 3.0,
}
_NO_ROTARY = {"no_rope_layers": [1, 0, 1]}  # in the middle one of three
_ENDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_OPT = {**_ENDS, "ffn_dim": 96, "word_embed_proj_dim": 64}
_GEMMA3 = {
    "head_dim": 16,
    "query_pre_attn_scalar": 12,
    "sliding_window": 4,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
# Families of one record each, on code that those above go through: the names of their config and
# their model, and what the config is given besides the sizes. One compact test runs on each.
RECORD_FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "camembert": ("CamembertConfig", "CamembertModel", {}),
    "data2vec-text": ("Data2VecTextConfig", "Data2VecTextModel", {}),
    "ernie": ("ErnieConfig", "ErnieModel", {}),
    "layoutlm": ("LayoutLMConfig", "LayoutLMModel", {}),
    "splinter": ("SplinterConfig", "SplinterModel", {}),
    "bert-generation": ("BertGenerationConfig", "BertGenerationEncoder", {}),
    "rembert": ("RemBertConfig", "RemBertModel", {"input_embedding_size": 32}),
    "xlm-roberta-xl": ("XLMRobertaXLConfig", "XLMRobertaXLModel", {}),
    "esm": (
        "EsmConfig",
        "EsmModel",
        {"position_embedding_type": "rotary", "pad_token_id": 0, "mask_token_id": 1},
    ),
    "albert": ("AlbertConfig", "AlbertModel", {"embedding_size": 32}),
    "megatron-bert": ("MegatronBertConfig", "MegatronBertModel", {}),
    "mpnet": ("MPNetConfig", "MPNetModel", {"relative_attention_num_buckets": 32}),
    "modernbert": (
        "ModernBertConfig",
        "ModernBertModel",
        {
            **_ENDS,
            "local_attention": 4,
            "global_attn_every_n_layers": 2,
            "cls_token_id": 1,
            "sep_token_id": 2,
        },
    ),
    "biased modernbert": (
        "ModernBertConfig",
        "ModernBertForMaskedLM",
        {
            **_ENDS,
            "attention_bias": True,
            "mlp_bias": True,
            "norm_bias": True,
            "cls_token_id": 1,
            "sep_token_id": 2,
        },
    ),
    "xlm-roberta": ("XLMRobertaConfig", "XLMRobertaModel", {}),
    "roberta-prelayernorm": ("RobertaPreLayerNormConfig", "RobertaPreLayerNormModel", {}),
    "eurobert": ("EuroBertConfig", "EuroBertModel", {**_PAIRS, **_ENDS}),
    "nomic_bert": ("NomicBertConfig", "NomicBertModel", {}),
    "deit": ("DeiTConfig", "DeiTModel", IMAGE),
    "ijepa": ("IJepaConfig", "IJepaModel", IMAGE),
    "vit_msn": ("ViTMSNConfig", "ViTMSNModel", IMAGE),
    "beit": ("BeitConfig", "BeitModel", {**IMAGE, "use_relative_position_bias": True}),
    "shared beit": (
        "BeitConfig",
        "BeitModel",
        {**IMAGE, "use_shared_relative_position_bias": True, "layer_scale_init_value": 0.0},
    ),
    "dinov2": ("Dinov2Config", "Dinov2Model", {**IMAGE, "mlp_ratio": 2}),
    "dinov2_with_registers": (
        "Dinov2WithRegistersConfig",
        "Dinov2WithRegistersModel",
        {**IMAGE, "mlp_ratio": 2},
    ),
    "audio-spectrogram-transformer": (
        "ASTConfig",
        "ASTModel",
        {"max_length": 24, "num_mel_bins": 16, "patch_size": 8, "time_stride": 8},
    ),
    "clip_text_model": ("CLIPTextConfig", "CLIPTextModel", _ENDS),
    "clip_vision_model": ("CLIPVisionConfig", "CLIPVisionModel", IMAGE),
    "siglip_text_model": ("SiglipTextConfig", "SiglipTextModel", _ENDS),
    "siglip_vision_model": ("SiglipVisionConfig", "SiglipVisionModel", IMAGE),
    "wav2vec2": ("Wav2Vec2Config", "Wav2Vec2Model", _SOUND),
    "stable wav2vec2": ("Wav2Vec2Config", "Wav2Vec2Model", _STABLE),
    "hubert": ("HubertConfig", "HubertModel", _SOUND),
    "stable hubert": ("HubertConfig", "HubertModel", _STABLE),
    "data2vec-audio": ("Data2VecAudioConfig", "Data2VecAudioModel", _SOUND),
    "whisper": (
        "WhisperConfig",
        "WhisperForAudioClassification",
        {
            **_ENDS,
            "d_model": 64,
            "encoder_layers": 3,
            "encoder_attention_heads": 4,
            "encoder_ffn_dim": 96,
            "num_mel_bins": 8,
            "max_source_positions": 9,
            "classifier_proj_size": 32,
        },
    ),
    "smollm3": ("SmolLM3Config", "SmolLM3ForCausalLM", {**_PAIRS, **_ENDS, **_NO_ROTARY}),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {**_PAIRS, "head_dim": 16}),
    "granite": ("GraniteConfig", "GraniteForCausalLM", {**_PAIRS, **_SCALES}),
    "gemma": ("GemmaConfig", "GemmaForCausalLM", {**_PAIRS, "head_dim": 16}),
    "gemma2": (
        "Gemma2Config",
        "Gemma2ForCausalLM",
        {
            **_PAIRS,
            "head_dim": 16,
            "query_pre_attn_scalar": 12,
            "sliding_window": 4,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "attn_logit_softcapping": 0.5,
        },
    ),
    "gemma3_text": ("Gemma3TextConfig", "Gemma3ForCausalLM", {**_PAIRS, **_GEMMA3}),
    "two-way gemma3_text": (
        "Gemma3TextConfig",
        "Gemma3TextModel",
        {**_PAIRS, **_GEMMA3, "use_bidirectional_attention": True, "sliding_window": 2},
    ),
    "phi3": ("Phi3Config", "Phi3ForCausalLM", {**_PAIRS, **_ENDS}),
    "seed_oss": ("SeedOssConfig", "SeedOssForCausalLM", {**_PAIRS, "head_dim": 16}),
    "opt": ("OPTConfig", "OPTForCausalLM", _OPT),
    "post-norm opt": ("OPTConfig", "OPTForCausalLM", {**_OPT, "do_layer_norm_before": False}),
    "biogpt": ("BioGptConfig", "BioGptForCausalLM", _ENDS),
    "stablelm": ("StableLmConfig", "StableLmForCausalLM", {**_PAIRS, **_ENDS}),
    "parallel stablelm": (
        "StableLmConfig",
        "StableLmForCausalLM",
        {**_PAIRS, **_ENDS, "use_parallel_residual": True},
    ),
    "gpt_neox": ("GPTNeoXConfig", "GPTNeoXForCausalLM", _ENDS),
    "sequential gpt_neox": (
        "GPTNeoXConfig",
        "GPTNeoXForCausalLM",
        {**_ENDS, "use_parallel_residual": False},
    ),
    "phi": ("PhiConfig", "PhiForCausalLM", {**_PAIRS, **_ENDS}),
    "starcoder2": ("Starcoder2Config", "Starcoder2ForCausalLM", _PAIRS),
}


_LONG = {**_ENDS, "decoder_start_token_id": 2, "max_position_embeddings": 32}
_STACKS = {
    **_LONG,
    "d_model": 64,
    "encoder_layers": 2,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 96,
    "decoder_layers": 3,
    "decoder_attention_heads": 2,
    "decoder_ffn_dim": 80,
    "forced_eos_token_id": None,
}
_T5 = {
    **_ENDS,
    "decoder_start_token_id": 0,
    "d_model": 64,
    "d_kv": 16,
    "d_ff": 96,
    "num_layers": 3,  # no fewer than in the decoder, or stock T5 does not generate
    "num_decoder_layers": 3,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 10,
}
_GATED = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
# Families with an encoder and a decoder, whose stacks differ in their sizes.
TWO_STACKS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bart": ("BartConfig", "BartForConditionalGeneration", _STACKS),
    "mbart": ("MBartConfig", "MBartForConditionalGeneration", _STACKS),
    "marian": ("MarianConfig", "MarianMTModel", _STACKS),
    "m2m_100": ("M2M100Config", "M2M100ForConditionalGeneration", _STACKS),
    "pegasus": ("PegasusConfig", "PegasusForConditionalGeneration", _STACKS),
    "whole whisper": (
        "WhisperConfig",
        "WhisperForConditionalGeneration",
        {**_STACKS, "num_mel_bins": 8, "max_source_positions": 9, "max_target_positions": 32},
    ),
    "whole t5": ("T5Config", "T5ForConditionalGeneration", _T5),
    "whole gated t5": ("T5Config", "T5ForConditionalGeneration", {**_T5, **_GATED}),
    "mt5": ("MT5Config", "MT5ForConditionalGeneration", {**_T5, "feed_forward_proj": "relu"}),
    "gated mt5": ("MT5Config", "MT5ForConditionalGeneration", {**_T5, **_GATED}),
}


def tiny_model(kind: str, **changes: object) -> nn.Module:
    """A random model with biases and norms that are not their initial zeros and ones. Skips a test
    of a family that this transformers does not have."""
    torch.manual_seed(0)
    sizes = {**SIZES, **changes}
    if kind in TWO_STACKS:
        config, made, more = TWO_STACKS[kind]
        sizes = {"vocab_size": 100, **more, **changes}
        model = getattr(transformers, made)(getattr(transformers, config)(**sizes))
    elif kind in RECORD_FAMILIES:
        config, made, more = RECORD_FAMILIES[kind]
        if not hasattr(transformers, made):
            pytest.skip(f"this transformers has no {made}")
        if kind == "gemma2" and getattr(transformers, made)._supports_sdpa:
            pytest.skip("this transformers leaves the cap of its scores out by default")
        model = getattr(transformers, made)(
            getattr(transformers, config)(**{**sizes, **more, **changes})
        )
    elif kind == "bert":
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
        model = ViTForImageClassification(ViTConfig(**sizes, **IMAGE, num_labels=3))
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
    computed = {*(getattr(model, "_keys_to_ignore_on_save", None) or ())}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in computed:  # stock models write no other values of it
                continue
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn(parameter.shape))
            else:
                parameter.normal_(std=0.1)
    return model.eval()


def tiny_batch(model: nn.Module, size: int = 3, seed: int = 1) -> dict[str, Tensor]:
    """What a tiny model takes: images, waveforms, spectrograms, or sequences of nine tokens, some
    of them padded, and seven for a decoder behind an encoder."""
    random = torch.Generator().manual_seed(seed)
    if model.config.is_encoder_decoder and model.can_generate():
        ids = torch.randint(3, 100, (size, 7), generator=random)
        return {**_encoder_batch(model, size, random), "decoder_input_ids": ids}
    return _encoder_batch(model, size, random)


def _encoder_batch(model: nn.Module, size: int, random: torch.Generator) -> dict[str, Tensor]:
    if model.main_input_name == "pixel_values":
        return {"pixel_values": torch.randn(size, 3, 24, 24, generator=random)}
    if model.main_input_name == "input_values":
        shape = (24, 16) if hasattr(model.config, "num_mel_bins") else (60,)
        return {"input_values": torch.randn(size, *shape, generator=random)}
    if model.main_input_name == "input_features":
        return {"input_features": torch.randn(size, 8, 18, generator=random)}
    ids = torch.randint(3, 100, (size, 9), generator=random)
    mask = torch.ones_like(ids)
    mask[0, 5:] = 0
    mask[2, 7:] = 0
    return {"input_ids": ids, "attention_mask": mask}
