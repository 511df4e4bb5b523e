"""A long prompt in a smaller key/value cache, read once, and two questions that each go on from a fork of it.

python examples/fork_a_cache.py
"""

import os

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from auto_compressor import ActivationCompressor
from auto_compressor.files.bundled import BUNDLED_TINY, BUNDLED_TOKENIZER, BUNDLED_TRAIN_TEXT, BUNDLED_VALIDATION_TEXT


STEPS = int(os.environ.get("STEPS", 150))  # about 30 seconds on two cores
QUESTIONS = "Naomi said to", "The name of the man was"

tokenizer = AutoTokenizer.from_pretrained(BUNDLED_TOKENIZER)


def ids_of(text: str) -> torch.LongTensor:
    return tokenizer(text, add_special_tokens=False, verbose=False, return_tensors="pt").input_ids  # (1, length)


def train(model: torch.nn.Module, ids: torch.LongTensor, rows: int = 8, length: int = 128):
    """A language model of its own, so that no weights have to be downloaded."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(STEPS):
        windows = ids[torch.randint(len(ids) - length, (rows, 1)) + torch.arange(length)]  # (rows, length)
        model(windows, labels=windows).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


torch.manual_seed(0)
model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(BUNDLED_TINY))
train(model, ids_of(BUNDLED_TRAIN_TEXT.read_text(encoding="utf-8"))[0])
model.eval()

prompt = ids_of(BUNDLED_VALIDATION_TEXT.read_text(encoding="utf-8")[:1500])
compressor = ActivationCompressor.from_base(model, compression_ratio=4)
with compressor.attach(model):  # what it changes in the model ends with the block
    cache = compressor.compress(model, prompt)
    full = 2 * model.config.num_hidden_layers * model.config.hidden_size * prompt.shape[1] * 4
    print(f"{prompt.shape[1]} tokens: {cache.num_bytes:,} bytes in place of {full:,}")
    for text in QUESTIONS:
        question = ids_of(text)
        mask = question.new_ones(1, prompt.shape[1] + question.shape[1])
        told = model.generate(question, attention_mask=mask, cache=cache.fork(), max_new_tokens=12, do_sample=False)
        print(tokenizer.decode(told[0]))
    print(f"the cache still holds {cache.get_seq_length()} tokens")
