"""Sentences as continuous vectors, the sentences again, and what lies between two of them.

python examples/interpolate_latents.py
"""

import os

import torch
from transformers import AutoTokenizer

from auto_compressor import ContinuousTextAutoencoder, ContinuousTextAutoencoderConfig
from auto_compressor.files.bundled import BUNDLED_TOKENIZER, BUNDLED_TRAIN_TEXT


STEPS = int(os.environ.get("STEPS", 300))  # about 30 seconds on two cores
SENTENCES = "The king went down to the city.", "The woman came up to the house."


def train(model: ContinuousTextAutoencoder, ids: torch.LongTensor, rows: int = 16, length: int = 128):
    """Gives windows of the text back from their latents."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(STEPS):
        windows = ids[torch.randint(len(ids) - length, (rows, 1)) + torch.arange(length)]  # (rows, length)
        model(windows, labels=windows).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


torch.manual_seed(0)
tokenizer = AutoTokenizer.from_pretrained(BUNDLED_TOKENIZER)
model = ContinuousTextAutoencoder(ContinuousTextAutoencoderConfig(vocab_size=len(tokenizer), architecture="chunk"))
text = BUNDLED_TRAIN_TEXT.read_text(encoding="utf-8")
train(model, tokenizer(text, add_special_tokens=False, verbose=False, return_tensors="pt").input_ids[0])
model.eval()

with torch.no_grad():
    ids = [tokenizer(each, add_special_tokens=False, return_tensors="pt").input_ids for each in SENTENCES]
    first, second = (model.encode(each).mean for each in ids)  # (1, latents, numbers of a latent)
    print(f"{ids[0].shape[1]} tokens -> {first.shape[1]} latents of {first.shape[2]} numbers")
    for share in (0, 0.25, 0.5, 0.75, 1):
        between = torch.lerp(first, second, share)
        tokens = model.decode(between).logits.argmax(dim=-1)[0, : ids[0].shape[1]]
        print(f"{share:4.0%}  {tokenizer.decode(tokens)}")
