"""Published checkpoints of byte language models as models of this package."""

import re


# Patterns of published names, and what they are called here; `+` counts levels above bytes.
GRU = r"gru\.(\w+)_l(\d)"
RENAMED = {
    "adaptive_byte": [
        (r"byte_embedding\.", r"levels.0.embed_tokens."),
        (r"byte_encoder_head\.", r"levels.0.head."),
        (r"byte_decoder_head\.", r"lm_head."),
        (rf"encoder_blocks\.(\d+)\.{GRU}", r"levels.\1.encoder.layers.\3.\2_l0"),
        (rf"decoder_blocks\.(\d+)\.gru\.{GRU}", r"levels.\1.decoder.layers.\3.\2_l0"),
        (r"decoder_blocks\.(\d+)\.parent_projection\.", r"levels.\1.patch_proj."),
        (r"meta_predictors\.(\d+)\.", r"levels.+\1.predictor."),
        (r"meta_uncertainty_heads\.(\d+)\.", r"levels.+\1.uncertainty_head."),
        (r"meta_eos_embeddings\.(\d+)", r"levels.+\1.end_state"),
    ],
    "gru_byte": [
        (r"parameter_match_pad", r"padding_parameters"),
        (r"byte_embedding\.", r"embed_tokens."),
        (r"byte_head\.", r"lm_head."),
        (rf"blocks\.(\d+)\.gru_block\.{GRU}", r"blocks.\1.layers.\3.\2_l0"),
    ],
}


def own_name(family: str, name: str) -> str:
    """The name of a published weight in the model of this package; as it is if it is unknown."""
    for pattern, replacement in RENAMED[family]:
        renamed, found = re.subn(rf"^{pattern}", replacement, name)
        if found:
            return re.sub(r"\+(\d+)", lambda number: str(int(number[1]) + 1), renamed)
    return name


__all__ = ["own_name"]
