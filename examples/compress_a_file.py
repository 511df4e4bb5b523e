"""A file in fewer bytes than zlib needs, and every bit of it back, by what a byte language model predicts.

python examples/compress_a_file.py      # needs constriction: pip install "auto-compressor[codec]"
"""

import os
import zlib

import torch

from auto_compressor import GRUByteConfig, GRUByteForCausalLM
from auto_compressor.files.bundled import BUNDLED_TRAIN_TEXT, BUNDLED_VALIDATION_TEXT
from auto_compressor.lossless.codec import compress_bytes, decompress_bytes


STEPS = int(os.environ.get("STEPS", 200))  # about 30 seconds on two cores


def train(model: GRUByteForCausalLM, data: bytes, rows: int = 16, length: int = 128):
    """Predicts the next byte in windows drawn from the text."""
    text, optimizer = torch.tensor(list(data)), torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(STEPS):
        starts = torch.randint(len(text) - length, (rows, 1))
        windows = text[starts + torch.arange(length)]  # (rows, length)
        model(windows, labels=windows).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


torch.manual_seed(0)
model = GRUByteForCausalLM(GRUByteConfig(hidden_size=96, num_blocks=2, num_padding_parameters=0))
train(model, BUNDLED_TRAIN_TEXT.read_bytes())

data = BUNDLED_VALIDATION_TEXT.read_bytes()[:16_000]  # text that the model has not seen
blob = compress_bytes(model.eval(), data, num_streams=16)
print(f"{len(data):,} bytes of text")
print(f"{len(zlib.compress(data, 9)):,} bytes by zlib")
print(f"{len(blob):,} bytes by the model")
print(f"every bit comes back: {decompress_bytes(model, blob) == data}")
