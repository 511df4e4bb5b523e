"""What the card of a hierarchical byte autoencoder says."""

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
    bytes_per_patch, top = 1.0, config.level_configs[-1]
    for level in config.level_configs:
        bytes_per_patch *= level.target_ratio / level.symbols_per_unit
    return (
        f"{config.num_levels} level(s). Trained for {bytes_per_patch:.3g} bytes per patch, of {top.num_quantizers}"
        f" code(s) with {top.codebook_size} values: {top.bits_per_code:.3g} bits."
    )


CARD = Card(what=WHAT, ratio=ratio, example=lambda config: EXAMPLE)

__all__ = ["CARD"]
