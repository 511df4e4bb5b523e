"""A small language model becomes an AutoCompressor with `SubstepTrainer`, in a few lines of your own.

python examples/train_with_substeps.py
"""

import os
import tempfile

import torch
from transformers import AutoTokenizer

from auto_compressor import LlamaAutoCompressorConfig, LlamaAutoCompressorModel
from auto_compressor.autocompressor.arguments import TrainingArguments
from auto_compressor.autocompressor.trainer import SubstepTrainer
from auto_compressor.files.bundled import BUNDLED_TINY, BUNDLED_TOKENIZER, BUNDLED_TRAIN_TEXT, BUNDLED_VALIDATION_TEXT
from auto_compressor.training.data import DataCollator
from auto_compressor.training.report import add_reports


STEPS = int(os.environ.get("STEPS", 100))  # about 50 seconds on two cores
tokenizer = AutoTokenizer.from_pretrained(BUNDLED_TOKENIZER)


def rows_of(path, length: int = 256) -> list[dict[str, torch.Tensor]]:
    """A text as rows of so many tokens."""
    text = path.read_text(encoding="utf-8")
    ids = tokenizer(text, add_special_tokens=False, verbose=False, return_tensors="pt").input_ids[0]
    return [{"input_ids": row} for row in ids.split(length)[:-1]]


torch.manual_seed(0)
model = LlamaAutoCompressorModel(LlamaAutoCompressorConfig.from_pretrained(BUNDLED_TINY, summary_length=4))
with tempfile.TemporaryDirectory() as folder:
    arguments = TrainingArguments(
        folder, max_steps=STEPS, learning_rate=3e-3, per_device_train_batch_size=4, use_cpu=True, report_to="none",
        training_substeps=2, segments_per_substep=2, save_strategy="no", logging_steps=25, disable_tqdm=True,
    )  # fmt: skip
    trainer = SubstepTrainer(
        model,
        arguments,
        train_dataset=rows_of(BUNDLED_TRAIN_TEXT),
        eval_dataset=rows_of(BUNDLED_VALIDATION_TEXT)[:16],
        data_collator=DataCollator(tokenizer.pad_token_id),
    )
    add_reports(trainer)  # a short line in place of all metrics
    before = trainer.evaluate()["eval_perplexity"]
    trainer.train()
    metrics = trainer.evaluate()
print(f"perplexity of held-out text: {before:.0f} before, {metrics['eval_perplexity']:.0f} after {STEPS} steps")
print(f"summary vectors of 256 tokens: {metrics['eval_vectors']:.0f}")
