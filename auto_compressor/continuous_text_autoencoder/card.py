"""What the card of a continuous text autoencoder says."""

from transformers import PreTrainedConfig

from ..files.model_card import Card


WHAT = """A continuous text autoencoder: it turns tokens into latents, vectors that another model can work on, and
latents into tokens again."""
EXAMPLE = """from transformers import AutoModel, AutoTokenizer

model = AutoModel.from_pretrained(name).eval()
tokenizer = AutoTokenizer.from_pretrained(name)
inputs = tokenizer("In the beginning God created", add_special_tokens=False, return_tensors="pt")
print(inputs.input_ids.shape[1], "tokens are", model.encode(**inputs).mean.shape[1], "latents")
print(model.reconstruct("In the beginning God created", tokenizer=tokenizer))"""


def ratio(config: PreTrainedConfig) -> str:
    return f"{config.total_stride} tokens become one latent of {config.latent_dim} numbers."


CARD = Card(what=WHAT, ratio=ratio, example=lambda config: EXAMPLE)

__all__ = ["CARD"]
