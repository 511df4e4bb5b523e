"""What the cards of byte language models say."""

from transformers import PreTrainedConfig

from ..files.model_card import Card


ADAPTIVE = """A language model over bytes that puts the borders of its patches where it is surprised. With it, files
become smaller without loss, by about its bits per byte."""
GRU = """A language model over bytes, a plain GRU: a baseline for models with adaptive borders. With it, files become
smaller without loss, by about its bits per byte."""
EXAMPLE = """from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(name).eval()
tokenizer = AutoTokenizer.from_pretrained(name)
inputs = tokenizer("In the beginning", add_special_tokens=False, return_tensors="pt")
print(model(**inputs, labels=inputs.input_ids).loss.item() / 0.6931, "bits per byte")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=20)[0]))"""


def ratio(config: PreTrainedConfig) -> str:
    return "A file of n bytes takes about n times the bits per byte of the model, divided by 8."


CARDS = {
    name: Card(what=what, ratio=ratio, example=lambda config: EXAMPLE, pipeline="text-generation")
    for name, what in {"adaptive_byte": ADAPTIVE, "gru_byte": GRU}.items()
}

__all__ = ["CARDS"]
