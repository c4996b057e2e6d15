"""Networks of transformers, from small configurations whose sizes differ, so that no coincidence hides an error."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from tests.zoo.case import Case, Inputs

VOCABULARY = 61


def _tokens(length: int = 9) -> Tensor:
    """Token numbers that are none of the special ones."""
    return torch.randint(3, VOCABULARY, (2, length))


def _text() -> Inputs:
    return {"input_ids": _tokens(), "attention_mask": torch.ones(2, 9, dtype=torch.long)}


def _two_texts() -> Inputs:
    return {"input_ids": _tokens(), "decoder_input_ids": _tokens(7)}


def _image(size: int = 32) -> Inputs:
    return {"pixel_values": torch.randn(2, 3, size, size)}


def _image_and_text() -> Inputs:
    return {"input_ids": _tokens(), "pixel_values": torch.randn(2, 3, 32, 32)}


def _sound() -> Inputs:
    return {"input_values": torch.randn(2, 400)}


def _spectrum() -> Inputs:
    return {"input_features": torch.randn(2, 10, 32), "decoder_input_ids": _tokens(7)}


def _build(model: str, config: str, sizes: dict[str, Any]) -> nn.Module:
    built: nn.Module = getattr(transformers, model)(getattr(transformers, config)(**sizes))
    return built


def _case(model: str, inputs: Callable[[], Inputs], sizes: dict[str, Any], config: str = "", suffix: str = "") -> Case:
    """`model` is a class; its configuration is called as the class up to ``For``, ``Model`` or ``LMHead``."""
    stem = model.partition("For")[0].partition("LMHead")[0].removesuffix("Model").removesuffix("MT")
    build = partial(_build, model, config or f"{stem}Config", sizes)
    return Case(library="transformers", name=model + suffix, build=build, inputs=inputs)


_BERT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 56,
    "max_position_embeddings": 40,
}
_SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_GPT = {**_SPECIAL, "vocab_size": VOCABULARY, "n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 40, "n_inner": 56}
_LLAMA = {**_BERT, "num_key_value_heads": 2}
_BART = {
    "vocab_size": VOCABULARY,
    "d_model": 48,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 3,
    "encoder_ffn_dim": 56,
    "decoder_ffn_dim": 60,
    "max_position_embeddings": 40,
}
_T5 = {
    "vocab_size": VOCABULARY,
    "d_model": 40,
    "d_kv": 12,
    "d_ff": 52,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 3,
    "decoder_start_token_id": 0,
}
_VIT = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 56,
    "image_size": 32,
    "patch_size": 8,
}
_CLIP_TEXT = {**_BERT, **_SPECIAL}
_CLIP_VISION = {**_VIT, "hidden_size": 36, "num_attention_heads": 3, "intermediate_size": 44}
_SWIN = {"embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4, "image_size": 32, "patch_size": 2}
_STAGES: dict[str, Any] = {"hidden_sizes": [16, 24, 32, 40], "depths": [1, 1, 2, 1]}
_WAV = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 56,
    "conv_dim": (20, 24),
    "conv_kernel": (10, 3),
    "conv_stride": (5, 2),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
    "mask_time_prob": 0.0,  # masks are drawn with numpy
}
_DEBERTA = {**_BERT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False}

_ENCODERS: dict[str, dict[str, Any]] = {
    "BertForSequenceClassification": _BERT,
    "BertForMaskedLM": _BERT,
    "RobertaForTokenClassification": _BERT,
    "XLMRobertaForSequenceClassification": _BERT,
    "DistilBertForSequenceClassification": {
        "vocab_size": VOCABULARY,
        "dim": 48,
        "n_layers": 2,
        "n_heads": 4,
        "hidden_dim": 56,
        "max_position_embeddings": 40,
    },
    "AlbertForSequenceClassification": {**_BERT, "embedding_size": 20},
    "ElectraForSequenceClassification": {**_BERT, "embedding_size": 20},
    "MPNetForSequenceClassification": _BERT,
    "DebertaForSequenceClassification": {**_DEBERTA, "max_relative_positions": 16},
    "DebertaV2ForSequenceClassification": {
        **_DEBERTA,
        "position_buckets": 8,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
    },
    "ModernBertForMaskedLM": {**_BERT, **_SPECIAL, "cls_token_id": 1, "sep_token_id": 2},
}
_DECODERS: dict[str, dict[str, Any]] = {
    "GPT2LMHeadModel": _GPT,
    "GPTJForCausalLM": {**_GPT, "rotary_dim": 4},
    "GPTNeoXForCausalLM": _BERT,
    "GPTNeoForCausalLM": {
        "vocab_size": VOCABULARY,
        "hidden_size": 48,
        "num_layers": 2,
        "attention_types": [[["global", "local"], 1]],
        "num_heads": 4,
        "intermediate_size": 56,
        "max_position_embeddings": 40,
        "window_size": 4,
    },
    "OPTForCausalLM": {
        "vocab_size": VOCABULARY,
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "ffn_dim": 56,
        "num_attention_heads": 4,
        "max_position_embeddings": 40,
        "word_embed_proj_dim": 20,
    },
    "BloomForCausalLM": {"vocab_size": VOCABULARY, "hidden_size": 48, "n_layer": 2, "n_head": 4},
    "FalconForCausalLM": {
        "vocab_size": VOCABULARY,
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    },
    "LlamaForCausalLM": _LLAMA,
    "MistralForCausalLM": {**_LLAMA, "sliding_window": 4},
    "Qwen2ForCausalLM": _LLAMA,
    "Qwen3ForCausalLM": {**_LLAMA, "head_dim": 20},
    "PhiForCausalLM": _LLAMA,
    "Phi3ForCausalLM": {**_LLAMA, **_SPECIAL},
    "Olmo2ForCausalLM": _LLAMA,
    "Gemma2ForCausalLM": {**_LLAMA, "head_dim": 20},
    "MixtralForCausalLM": {**_LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2},
    "Qwen2MoeForCausalLM": {
        **_LLAMA,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 28,
        "shared_expert_intermediate_size": 36,
    },
    "MambaForCausalLM": {"vocab_size": VOCABULARY, "hidden_size": 24, "num_hidden_layers": 2, "state_size": 6},
}
_BOTH: dict[str, dict[str, Any]] = {
    "T5ForConditionalGeneration": _T5,
    "BartForConditionalGeneration": _BART,
    "MBartForConditionalGeneration": _BART,
    "PegasusForConditionalGeneration": _BART,
    "MarianMTModel": {**_BART, "decoder_start_token_id": 0, "pad_token_id": 0},
}
_IMAGES: dict[str, dict[str, Any]] = {
    "ViTForImageClassification": _VIT,
    "DeiTForImageClassification": _VIT,
    "BeitForImageClassification": {**_VIT, "use_relative_position_bias": True},
    "Dinov2ForImageClassification": {**{k: v for k, v in _VIT.items() if k != "intermediate_size"}, "mlp_ratio": 2},
    "SwinForImageClassification": _SWIN,
    "Swinv2ForImageClassification": _SWIN,
    "ConvNextForImageClassification": _STAGES,
    "ConvNextV2ForImageClassification": _STAGES,
    "ResNetForImageClassification": {**_STAGES, "embedding_size": 12},
    "PvtForImageClassification": {
        **_STAGES,
        "image_size": 32,
        "num_attention_heads": [1, 2, 4, 5],
    },
}
_LARGER: dict[str, dict[str, Any]] = {
    "SegformerForSemanticSegmentation": {
        **_STAGES,
        "num_attention_heads": [1, 2, 4, 5],
        "decoder_hidden_size": 36,
    },
    "MobileViTForImageClassification": {
        "hidden_sizes": [24, 32, 40],
        "neck_hidden_sizes": [8, 12, 16, 24, 32, 40, 48],
        "image_size": 64,
    },
    "SamVisionModel": {
        **_VIT,
        "image_size": 64,
        "output_channels": 20,
        "window_size": 3,
        "global_attn_indexes": [1],
        "mlp_dim": 56,
        "num_pos_feats": 10,
    },
    "DPTForSemanticSegmentation": {
        **_VIT,
        "image_size": 64,
        "num_hidden_layers": 4,
        "backbone_out_indices": [0, 1, 2, 3],
        "neck_hidden_sizes": [12, 16, 20, 24],
        "fusion_hidden_size": 28,
    },
}

CASES: list[Case] = [
    *(_case(model, _text, sizes) for model, sizes in (_ENCODERS | _DECODERS).items()),
    *(
        _case(model, _text, {**(_ENCODERS | _DECODERS)[model], "attn_implementation": "eager"}, suffix=" eager")
        for model in ("BertForMaskedLM", "GPT2LMHeadModel", "LlamaForCausalLM")
    ),
    _case("T5EncoderModel", _text, _T5, "T5Config"),
    *(_case(model, _two_texts, sizes) for model, sizes in _BOTH.items()),
    _case("T5ForConditionalGeneration", _two_texts, {**_T5, "feed_forward_proj": "gated-gelu"}, suffix=" gated"),
    *(_case(model, _image, sizes) for model, sizes in _IMAGES.items()),
    *(_case(model, partial(_image, 64), sizes) for model, sizes in _LARGER.items()),
    _case(
        "CLIPModel", _image_and_text, {"text_config": _CLIP_TEXT, "vision_config": _CLIP_VISION, "projection_dim": 28}
    ),
    _case(
        "SiglipModel",
        _image_and_text,
        {
            "text_config": {**_CLIP_TEXT, "hidden_size": 36, "num_attention_heads": 3, "projection_size": 36},
            "vision_config": _CLIP_VISION,
        },
    ),
    _case("ViltForQuestionAnswering", _image_and_text, {**_BERT, "image_size": 32, "patch_size": 8}),
    _case(
        "WhisperForConditionalGeneration",
        _spectrum,
        {
            **{k: v for k, v in _BART.items() if k != "max_position_embeddings"},
            **_SPECIAL,
            "num_mel_bins": 10,
            "max_source_positions": 16,
            "max_target_positions": 40,
            "decoder_start_token_id": 1,
        },
    ),
    _case("Wav2Vec2ForSequenceClassification", _sound, _WAV),
    _case("HubertForSequenceClassification", _sound, _WAV),
]
