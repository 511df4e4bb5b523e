"""Published checkpoints of the byte language models: a config, `config`, and weights by name, `model_state`."""

from collections.abc import Mapping
from typing import Any

import torch

from ..files.published import PublishedConfig, PublishedFormat
from ..tokenization_bytes import ByteTokenizer
from .modeling_adaptive_byte import AdaptiveByteForCausalLM
from .modeling_gru_byte import GRUByteForCausalLM


GRU = r"gru\.(\w+)_l(\d)"
ADAPTIVE_WEIGHTS = [
    (r"byte_embedding\.", r"levels.0.embed_tokens."),
    (r"byte_encoder_head\.", r"levels.0.head."),
    (r"byte_decoder_head\.", r"lm_head."),
    (rf"encoder_blocks\.(\d+)\.{GRU}", r"levels.\1.encoder.layers.\3.\2_l0"),
    (rf"decoder_blocks\.(\d+)\.gru\.{GRU}", r"levels.\1.decoder.layers.\3.\2_l0"),
    (r"decoder_blocks\.(\d+)\.parent_projection\.", r"levels.\1.patch_proj."),
    (r"meta_predictors\.(\d+)\.", r"levels.+\1.predictor."),
    (r"meta_uncertainty_heads\.(\d+)\.", r"levels.+\1.uncertainty_head."),
    (r"meta_eos_embeddings\.(\d+)", r"levels.+\1.end_state"),
]
GRU_WEIGHTS = [
    (r"parameter_match_pad", r"padding_parameters"),
    (r"byte_embedding\.", r"embed_tokens."),
    (r"byte_head\.", r"lm_head."),
    (rf"blocks\.(\d+)\.gru_block\.{GRU}", r"blocks.\1.layers.\3.\2_l0"),
]
SAME_FIELDS = (
    *("vocab_size", "hidden_size", "num_levels", "dropout", "border_mode"),
    *("byte_entropy_threshold", "meta_uncertainty_threshold", "entropy_floor", "entropy_reg_weight"),
    *("encoder_loss_weight", "decoder_loss_weight", "meta_loss_weight", "uncertainty_loss_weight"),
)
FIELDS = {name: name for name in SAME_FIELDS} | {"byte_eos_id": "eos_token_id", "threshold": "border_error_threshold"}


class ByteLMFormat(PublishedFormat):
    tokenizer = ByteTokenizer()
    contents = "a published config, `config`, and weights by name, `model_state`"

    def find(self, checkpoint: Any) -> tuple[dict[str, Any], dict[str, torch.Tensor]] | None:
        return (vars(checkpoint["config"]), checkpoint["model_state"]) if is_published(checkpoint) else None

    def own_fields(self, published: Mapping[str, Any]) -> dict[str, Any]:
        fields = super().own_fields(published)
        if "eos_token_id" in fields:
            fields["pad_token_id"] = fields["eos_token_id"]
        if published.get("level_thresholds"):
            fields["meta_uncertainty_threshold"] = published["level_thresholds"]
        return fields


def is_published(checkpoint: Any) -> bool:
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("config"), PublishedConfig):
        return False
    weights = checkpoint.get("model_state")
    named = isinstance(weights, dict) and all(isinstance(name, str) for name in weights)
    return named and all(isinstance(tensor, torch.Tensor) for tensor in weights.values())


FORMATS = {
    "adaptive_byte": ByteLMFormat(AdaptiveByteForCausalLM, ADAPTIVE_WEIGHTS, FIELDS),
    "gru_byte": ByteLMFormat(GRUByteForCausalLM, GRU_WEIGHTS, FIELDS),
}

__all__ = ["FORMATS"]
