"""What the card of a hierarchical byte autoencoder says."""

import math

from transformers import PreTrainedConfig

from ..files.model_card import Card


WHAT = """A hierarchical byte autoencoder: it turns bytes into discrete codes, level over level, and codes into bytes
again. A language model over the codes comes with it."""
EXAMPLE = """from transformers import AutoModel, AutoTokenizer

model = AutoModel.from_pretrained(name).eval()
tokenizer = AutoTokenizer.from_pretrained(name)
inputs = tokenizer("In the beginning God created", add_special_tokens=False, return_tensors="pt")
codes = model.encode(**inputs).codes  # (1, codebooks, patches)
print(inputs.input_ids.shape[1], "bytes are", codes.shape[2], "patches")
print(tokenizer.decode(model.decode(codes).sequences[0]))"""


def ratio(config: PreTrainedConfig) -> str:
    top, aims = config.level_configs[-1], all(level.border_rule == "target_ratio" for level in config.level_configs)
    bytes_each = math.prod(level.target_ratio for level in config.level_configs)
    size = f"about {bytes_each:.3g} bytes" if aims else "as many bytes as the entropies of the text say"
    codes = f"{top.num_quantizers} of {top.codebook_size} codes, {top.bits_per_code:.3g} bits"
    return f"Levels: {config.num_levels}. A patch, {size}, becomes {codes}."


CARD = Card(what=WHAT, ratio=ratio, example=lambda config: EXAMPLE)

__all__ = ["CARD"]
