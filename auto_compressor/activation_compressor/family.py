"""What `train.py` must know of activation compressors."""

from dataclasses import fields
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    default_data_collator,
)

from ..files import loading
from ..files.bases import load_base_model, resolve_tokenizer
from ..files.loading import load
from ..training.family import Family, RunArguments, given_fields, report_parameters
from .arguments import ActivationArguments, ActivationTrainingArguments
from .configuration_activation_compressor import ActivationCompressorConfig
from .modeling_activation_compressor import ActivationCompressor
from .trainer import ActivationTrainer, CompressorWithBase


BLOCK_SIZE = 1152  # tokens: 1,024 that are compressed, and the default continuation
# Arguments of activation compressors that are fields of their configs.
COMPRESSOR_FIELDS = {field.name for field in fields(ActivationArguments)}
COMPRESSOR_FIELDS &= {field.name for field in fields(ActivationCompressorConfig)}


def compressor_fields(model_args: ActivationArguments) -> dict[str, Any]:
    """The fields of the config of an activation compressor that are given other than as the default.

    Of a new compressor the ratio too, whose default is not that of the config.
    """
    given = given_fields(model_args, model_name_or_path=model_args.model_name_or_path)
    if model_args.compressor_name_or_path is None:
        given |= {"compression_ratio": model_args.compression_ratio}
    return {name: value for name, value in given.items() if name in COMPRESSOR_FIELDS}


def load_compressor(model_args: ActivationArguments, base_model: PreTrainedModel) -> ActivationCompressor:
    """Makes a new compressor for the base model, or loads --compressor_name_or_path.

    Raises:
        ValueError: for values that make no compressor, or one that belongs to another base.
        OSError: if it cannot be read.
    """
    given, name = compressor_fields(model_args), model_args.compressor_name_or_path
    try:
        if name is None:
            return ActivationCompressor.from_base(base_model, **given)
    except StrictDataclassError as error:
        raise ValueError(str(error.__cause__ or error)) from error
    options = {"cache_dir": model_args.cache_dir, "problem": f"--compressor_name_or_path {name!r} cannot be loaded"}
    config = load(ActivationCompressorConfig, name, **options, **given)
    compressor = load(ActivationCompressor, name, config=config, dtype=torch.float32, **options)
    compressor.check_identity(base_model)
    return compressor


def load_family(arguments: RunArguments) -> tuple[CompressorWithBase, PreTrainedTokenizerBase]:
    model_args, training_args = arguments.model, arguments.training
    check_continuation(model_args, arguments.data.block_size or BLOCK_SIZE)
    name, hub = model_args.model_name_or_path, {"cache_dir": model_args.cache_dir}
    half = training_args.bf16 and model_args.freeze_base
    base_model = load_base_model(
        name,
        dtype=torch.bfloat16 if half else torch.float32,
        attn_implementation=model_args.attn_implementation,
        **hub,
    )
    tokenizer = loading.load_tokenizer(resolve_tokenizer(model_args.tokenizer_name or name), **hub)
    compressor = load_compressor(model_args, base_model)
    report_parameters(compressor)
    return CompressorWithBase(
        compressor, base_model, model_args.continuation_length, model_args.segment_length
    ), tokenizer


def check_continuation(model_args: ActivationArguments, block_size: int):
    """Raises a `ValueError` unless a row has both a context and a continuation."""
    if not 2 <= model_args.continuation_length < block_size:
        raise ValueError(
            f"`continuation_length` must be 2 or more and below `block_size` = {block_size}, got"
            f" {model_args.continuation_length}."
        )


def trainer_options(
    model: CompressorWithBase, tokenizer: PreTrainedTokenizerBase, arguments: RunArguments
) -> dict[str, Any]:
    # Rows of one length: without a mask, attention is faster.
    return {"data_collator": default_data_collator, "tokenizer": tokenizer}


FAMILY = Family(
    trainer=ActivationTrainer,
    model_arguments=ActivationArguments,
    training_arguments=ActivationTrainingArguments,
    load=load_family,
    block_size=lambda model, arguments: BLOCK_SIZE,
    vocab_size=lambda model, tokenizer: model.base_model.config.vocab_size,
    trainer_options=trainer_options,
)

__all__ = ["FAMILY"]
