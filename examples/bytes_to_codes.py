"""A text as a short row of discrete codes, and the text again from the codes alone.

python examples/bytes_to_codes.py
"""

import os
from difflib import SequenceMatcher

import torch

from auto_compressor import ByteTokenizer, HierarchicalAutoencoder, HierarchicalAutoencoderConfig
from auto_compressor.files.bundled import BUNDLED_TRAIN_TEXT


STEPS = int(os.environ.get("STEPS", 150))  # about 40 seconds on two cores
LEVEL = {"codebook_size": 1024, "max_patch_length": 2, "window": 8, "ema_decay": 0.99, "dead_code_threshold": 0.03}
SENTENCE = "Naomi said to her two daughters-in-law, Go, return each of you to her mother's house."


def train(model: HierarchicalAutoencoder, data: bytes, rows: int = 4, length: int = 256):
    """Reads windows drawn from the text, and learns to write them again from their codes."""
    text, optimizer = torch.tensor(list(data)), torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.95))
    for _ in range(STEPS):
        starts = torch.randint(len(text) - length, (rows, 1))
        windows = text[starts + torch.arange(length)]  # (rows, length)
        model(windows, labels=windows).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


torch.manual_seed(0)
model = HierarchicalAutoencoder(HierarchicalAutoencoderConfig(block_size=256, level_configs=[LEVEL]))
train(model, BUNDLED_TRAIN_TEXT.read_bytes())
model.eval()

inputs = ByteTokenizer()(SENTENCE, add_special_tokens=False, return_tensors="pt")
with torch.no_grad():
    encoded = model.encode(**inputs)
codes, lengths = encoded.codes[0, 0].tolist(), encoded.lengths[0].tolist()
ends = torch.tensor(lengths).cumsum(dim=0).tolist()
print("pieces:", "|".join(SENTENCE[end - length : end] for length, end in zip(lengths, ends, strict=True)))
print(f"{len(SENTENCE)} bytes -> {len(codes)} codes: {codes[:8]}...")

again = model.reconstruct(SENTENCE)
print("from the codes:", again)
print(f"alike: {SequenceMatcher(None, SENTENCE, again, autojunk=False).ratio():.0%}")
