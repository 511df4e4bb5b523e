"""Arguments of `train.py` that every family has; each family has a group for its models, and may add to the training.

`python train.py --help` lists those of AutoCompressors, `python train.py --model_type hierarchical_autoencoder --help`
those of another family. Every argument of [`transformers.TrainingArguments`] is accepted too.
"""

import importlib.util
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from transformers import TrainingArguments as HfTrainingArguments

from ..moved_modules import moved_names


@dataclass
class DataTrainingArguments:
    """Where the text comes from, and how it is cut into blocks of tokens.

    One kind of source at a time: a dataset by name, files, or datasets that are tokenised already. Without any, the
    text that comes with the package is used.
    """

    dataset_name: str | None = field(
        default=None, metadata={"help": "Dataset of the hub, or a folder that `datasets` reads."}
    )
    dataset_config_name: str | None = field(
        default=None, metadata={"help": "Configuration of --dataset_name, where it has several."}
    )
    train_file: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Training files: txt, json, jsonl, csv or parquet, all of one kind.",
            "aliases": ["--data_path"],
        },
    )
    validation_file: list[str] = field(
        default_factory=list,
        metadata={"help": "Validation files, each PATH or NAME=PATH; every one is a validation set of its own."},
    )
    text_column: str = field(
        default="text",
        metadata={
            "help": "Column that holds the text, or conversations: lists of messages with role and content, which are"
            " written in the chat template of the tokenizer."
        },
    )
    preprocessed_train_datasets: list[str] = field(
        default_factory=list,
        metadata={"help": "Tokenised training sets (column input_ids): hub names, saved folders, parquet or jsonl."},
    )
    preprocessed_validation_datasets: list[str] = field(
        default_factory=list, metadata={"help": "Tokenised validation sets, each NAME, PATH or LABEL=PATH."}
    )
    block_size: int | None = field(
        default=None,
        metadata={
            "help": "Tokens of a training sequence, bytes for the byte families (default: what the model takes in).",
            "aliases": ["--sequence_length", "--max_length"],
        },
    )
    add_special_tokens: bool = field(
        default=False, metadata={"help": "Let the tokenizer add bos/eos to every document."}
    )
    keep_linebreaks: bool = field(default=True, metadata={"help": "Keep the line ends of txt files."})
    streaming: bool = field(default=False, metadata={"help": "Read the training data as a stream; needs --max_steps."})
    validation_split_percentage: float = field(
        default=5.0,
        metadata={
            "help": "Percentage of the training text that is held out, at its end, where there is no validation set."
        },
    )
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Use only so many training sequences, the first ones (default: all)."}
    )
    max_eval_samples: int | None = field(
        default=None,
        metadata={"help": "Use only so many sequences of each validation set, the first ones (default: all)."},
    )
    preprocessing_num_workers: int | None = field(
        default=None, metadata={"help": "Processes that tokenise side by side (default: this one alone)."}
    )
    overwrite_cache: bool = field(default=False, metadata={"help": "Tokenise again even if a cached result exists."})


@dataclass
class OptimArguments(HfTrainingArguments):
    """Everything of [`transformers.TrainingArguments`], and Muon, for every family."""

    has_liger_loss: ClassVar[bool] = False  # whether there is something for --use_liger_kernel to do

    optim_family: str = field(
        default="adamw",
        metadata={"help": "adamw (or what --optim says), or muon: Muon for matrices, AdamW for all else."},
    )
    muon_scale: float = field(
        default=0.2,
        metadata={
            "help": "Scale of the steps of Muon, lr x this x sqrt(max(rows, columns)); published: 1 (default: 0.2)."
        },
    )
    muon_heads: bool = field(
        default=False, metadata={"help": "Use Muon for output heads too, as far as they are matrices."}
    )
    save_minutes: float | None = field(
        default=None,
        metadata={
            "help": "Write a checkpoint when the last one is so many minutes old, beside those of --save_steps."
        },
    )

    def __post_init__(self):
        super().__post_init__()
        if self.optim_family not in ("adamw", "muon"):
            raise ValueError(f"`optim_family` must be adamw or muon, got {self.optim_family!r}.")
        if self.save_minutes is not None and not self.save_minutes > 0:
            raise ValueError(f"`save_minutes` must be above 0, got {self.save_minutes}.")
        if not 0 < self.muon_scale < float("inf"):
            raise ValueError(f"`muon_scale` must be above 0, and finite, got {self.muon_scale}.")
        if self.use_liger_kernel:
            self.check_liger_kernel()

    def check_liger_kernel(self):
        """Raises a `ValueError` where `use_liger_kernel` would do nothing, or could not."""
        if not self.has_liger_loss:
            raise ValueError("`use_liger_kernel` must be False: of these models, AutoCompressors alone can use it.")
        if importlib.util.find_spec("liger_kernel") is None:
            raise ValueError("`use_liger_kernel` needs liger-kernel: pip install liger-kernel")
        if self.use_cpu or not torch.cuda.is_available():
            raise ValueError("`use_liger_kernel` needs a GPU with CUDA, got a CPU.")


# The groups of the families were in this module.
__getattr__ = moved_names("auto_compressor", "training.arguments")

__all__ = ["DataTrainingArguments", "OptimArguments"]
