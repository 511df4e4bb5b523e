"""A document becomes a few summary vectors, and a model answers a question from the vectors alone.

python examples/ask_a_document.py
"""

import os

import torch
from transformers import AutoTokenizer

from auto_compressor import LlamaAutoCompressorConfig, LlamaAutoCompressorModel
from auto_compressor.files.bundled import BUNDLED_TOKENIZER


STEPS = int(os.environ.get("STEPS", 250))  # about 30 seconds on two cores
THINGS = ("bread", "water", "gold", "silver", "wine", "cattle", "horses", "sheep")
DOCUMENT = "In the days of the king, the people came to the city and brought him {}, and they went away in peace."
QUESTION = "What they brought to him was"

tokenizer = AutoTokenizer.from_pretrained(BUNDLED_TOKENIZER)


def ids_of(texts: list[str]) -> torch.LongTensor:
    return tokenizer(texts, add_special_tokens=False, return_tensors="pt").input_ids


documents = ids_of([DOCUMENT.format(thing) for thing in THINGS])
answers = ids_of([f"{QUESTION} {thing}" for thing in THINGS])  # a thing is one token
question = ids_of([QUESTION])

torch.manual_seed(0)
sizes = {"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
model = LlamaAutoCompressorModel(LlamaAutoCompressorConfig(vocab_size=len(tokenizer), summary_length=2, **sizes))
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
for _ in range(STEPS):  # reads document and answer as two segments: the second sees the vectors of the first
    ids = torch.cat([documents, answers], dim=1)
    labels = ids.clone()
    labels[:, :-1] = -100  # only the thing counts
    model(ids, segment_lengths=[documents.shape[1], answers.shape[1]], labels=labels).loss.backward()
    optimizer.step()
    optimizer.zero_grad()

model.eval()
softprompt = model.compress(documents)  # (documents, 2, hidden): what is kept of them
print(f"{documents.shape[1]} tokens of each document -> {softprompt.shape[1]} summary vectors")
for index in (0, 2, 5):
    print(DOCUMENT.format(THINGS[index]))
    told = model.generate(question, softprompt=softprompt[[index]], max_new_tokens=1, do_sample=False)
    print(f"  from its vectors: {tokenizer.decode(told[0])}")
print("  without any:     ", tokenizer.decode(model.generate(question, max_new_tokens=1, do_sample=False)[0]))
