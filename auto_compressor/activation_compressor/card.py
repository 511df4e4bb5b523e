"""What the card of an activation compressor says."""

from transformers import PreTrainedConfig

from ..files.model_card import Card, is_repository


WHAT = """A compressor of the key/value cache of a language model: tokens share slots, and the model, which is not
changed, reads on in the smaller cache."""
EXAMPLE = """from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

compressor = AutoModel.from_pretrained(name).eval()
base_name = "{base}"  # the model that it belongs to
base = AutoModelForCausalLM.from_pretrained(base_name).eval()
tokenizer = AutoTokenizer.from_pretrained(base_name)
inputs = tokenizer("In the beginning God created the heavens and the earth. " * 20, return_tensors="pt")
with compressor.attach(base):
    cache = compressor.compress(base, inputs.input_ids[:, :-1])
    print(cache.num_bytes, "bytes")
    print(tokenizer.decode(base.generate(**inputs, cache=cache, max_new_tokens=20)[0, -20:]))"""


def ratio(config: PreTrainedConfig) -> str:
    base = f"`{config.base_name_or_path}`" if is_repository(config.base_name_or_path) else "its base"
    size = f"{config.num_slots} slots" if config.num_slots else f"1/{config.compression_ratio:g} of the bytes"
    return f"It belongs to {base}, whose cache shrinks to {size}."


def example(config: PreTrainedConfig) -> str:
    return EXAMPLE.format(base=config.base_name_or_path)


CARD = Card(what=WHAT, ratio=ratio, example=example)

__all__ = ["CARD"]
