"""The arguments of `train.py`, of all families."""

from auto_compressor.activation_compressor.arguments import ActivationArguments, ActivationTrainingArguments
from auto_compressor.autocompressor.arguments import ModelArguments, TrainingArguments
from auto_compressor.byte_lm.arguments import AdaptiveByteArguments, ByteLMTrainingArguments
from auto_compressor.continuous_text_autoencoder.arguments import ContinuousTextArguments, ContinuousTrainingArguments
from auto_compressor.hierarchical_autoencoder.arguments import HierarchicalArguments, HierarchicalTrainingArguments
from auto_compressor.training.arguments import DataTrainingArguments, OptimArguments


__all__ = [
    "ActivationArguments",
    "ActivationTrainingArguments",
    "AdaptiveByteArguments",
    "ByteLMTrainingArguments",
    "ContinuousTextArguments",
    "ContinuousTrainingArguments",
    "DataTrainingArguments",
    "HierarchicalArguments",
    "HierarchicalTrainingArguments",
    "ModelArguments",
    "OptimArguments",
    "TrainingArguments",
]
