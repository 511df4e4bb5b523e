"""What `train.py` must know of AutoCompressors."""

import importlib.util
import math
from functools import partial
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from transformers import (
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from ..files import loading
from ..files.bases import load_base_config, resolve_base, resolve_tokenizer
from ..files.hub import push_to_hub
from ..files.loading import NEW_MODULES, load, reading
from ..training.data import DataCollator
from ..training.family import Family, RunArguments
from . import adapters
from .adapters import check_untied, save_adapters
from .arguments import ModelArguments, TrainingArguments
from .bases import autocompressor_class, load_autocompressor
from .configuration_autocompressor import AutoCompressorConfigMixin
from .control_tokens import add_control_tokens, check_tokenizer, resize_for_control_tokens
from .trainer import SubstepTrainer


logger = logging.get_logger(__name__)

# The published runs read 6,144 tokens in 4 segments of at most 2,048: room for random lengths.
SHARE_OF_POSITIONS = 0.75
# Training arguments that are fields of the config.
SUMMARY_FIELDS = (
    "summary_length",
    "summary_source",
    "summary_scale",
    "summary_residual",
    "ordinary_summary_positions",
    "accumulate_summary",
    "segment_gradient_checkpointing",
    "compression_max_len",
    "compression_lambda",
    "compression_alpha",
    "truncate_bptt_segments",
    "compress_stop_threshold",
)
# Fields of a config that makes no summary vectors; without control tokens `compression_max_len` means nothing, but may
# not be 0 beside `summary_length` 0.
PLAIN = {"summary_length": 0, "sum_token_id": None, "eoc_token_id": None, "segment_length": None}
PLAIN |= {"compression_max_len": AutoCompressorConfigMixin.compression_max_len}


def load_tokenizer(model_args: ModelArguments) -> PreTrainedTokenizerBase:
    """Loads --tokenizer_name, else the tokenizer of the model; the `tiny` model has the bundled one."""
    name = model_args.tokenizer_name or model_args.model_name_or_path or model_args.config_name
    return loading.load_tokenizer(
        resolve_tokenizer(name),
        cache_dir=model_args.cache_dir,
        use_fast=model_args.use_fast_tokenizer,
        revision=model_args.model_revision,
    )


def choose_attention(model_args: ModelArguments, training_args: TrainingArguments) -> str | None:
    """`--fast_attention` takes flash attention where it is installed and can run, sdpa elsewhere."""
    if not training_args.fast_attention:
        return model_args.attn_implementation
    if model_args.attn_implementation is not None:
        raise ValueError("Give one of --fast_attention and --attn_implementation, not both.")
    half = training_args.bf16 or training_args.fp16
    flash = half and torch.cuda.is_available() and importlib.util.find_spec("flash_attn") is not None
    return "flash_attention_2" if flash else "sdpa"


def summary_config(
    training_args: TrainingArguments, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig
) -> dict[str, Any]:
    """The fields of the config that say how summary vectors are made, where they are not to be as in `config`."""
    fields = {name: getattr(training_args, name) for name in SUMMARY_FIELDS}
    fields = {name: value for name, value in fields.items() if value is not None}
    if training_args.full_attention:
        return fields | PLAIN
    if training_args.compression_max_len and not getattr(config, "variable_length", False):
        fields |= add_control_tokens(tokenizer)
    return fields


def quantization(model_args: ModelArguments, dtype: torch.dtype) -> dict[str, Any]:
    """
    How the weights are held: --load_in_4bit takes all linear layers but the head and what makes summary vectors.

    Raises:
        ValueError: for --load_in_4bit without adapters, or without bitsandbytes.
    """
    if not model_args.load_in_4bit:
        return {}
    if not (model_args.lora or model_args.lora_path):
        raise ValueError("--load_in_4bit needs --lora or --lora_path: weights of 4 bits are not trained.")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError("--load_in_4bit needs bitsandbytes: pip install bitsandbytes")
    skipped = ["lm_head", *NEW_MODULES]
    options = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype, "llm_int8_skip_modules": skipped}
    return {"quantization_config": BitsAndBytesConfig(load_in_4bit=True, **options)}


def load_model_and_tokenizer(
    model_args: ModelArguments, training_args: TrainingArguments
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """
    Builds the AutoCompressor: from a checkpoint, or new from a config.

    For variable-length summaries, the tokenizer and the embeddings get the control tokens that they lack.

    Raises:
        ValueError: unless exactly one of --model_name_or_path and --config_name is given.
        OSError: if it cannot be read.
    """
    name, config_name = model_args.model_name_or_path, model_args.config_name
    if (name is None) == (config_name is None):
        raise ValueError("Give exactly one of --model_name_or_path (a checkpoint) and --config_name (a new model).")
    hub = {"cache_dir": model_args.cache_dir, "revision": model_args.model_revision}
    base_config = load_base_config(name or config_name, **hub)
    model_class = autocompressor_class(base_config.model_type)
    tokenizer = load_tokenizer(model_args)
    fields = summary_config(training_args, tokenizer, base_config)
    config = load(model_class.config_class, resolve_base(name or config_name), **hub, **fields)
    check_tokenizer(tokenizer, config)
    attention = choose_attention(model_args, training_args)
    if name is None:
        if model_args.load_in_4bit:
            raise ValueError("--load_in_4bit needs --model_name_or_path: a new model is trained in full.")
        model = model_class._from_config(config, attn_implementation=attention)
    else:
        # Adapters train beside frozen weights in half precision; full training keeps float32 weights.
        half = torch.bfloat16 if training_args.bf16 else torch.float16 if training_args.fp16 else torch.float32
        dtype = half if model_args.lora or model_args.lora_path else torch.float32
        options = {"dtype": dtype, "attn_implementation": attention} | quantization(model_args, dtype)
        model = load(model_class, resolve_base(name), config=config, **options, **hub)
    if fields.get("sum_token_id") is not None:
        resize_for_control_tokens(model, len(tokenizer))
    if training_args.max_position_embeddings not in (None, config.max_position_embeddings):
        model.resize_position_embeddings(training_args.max_position_embeddings)
    return model, tokenizer


def add_lora(model: PreTrainedModel, model_args: ModelArguments, training_args: TrainingArguments) -> PreTrainedModel:
    """Adds new or trained adapters, if asked for; what makes the summary vectors is trained and saved with them."""
    if model_args.lora_path is not None:
        adapted = load_adapters(model, model_args.lora_path, training_args.do_train)
    elif model_args.lora:
        adapted = get_peft_model(model, lora_config(model, model_args))
    else:
        return model
    adapted.save_pretrained = partial(save_adapters, adapted, PeftModel.save_pretrained)
    adapted.push_to_hub = partial(push_to_hub, adapted)
    adapted.create_or_update_model_card = lambda folder: None  # in place of PEFT's, the run writes one
    return adapted


def load_adapters(model: PreTrainedModel, folder: str, trained: bool) -> PeftModel:
    """The model with the adapters of --lora_path, unmerged. A `ValueError` for tied embeddings that are trained on."""
    with reading(f"--lora_path {folder!r} cannot be loaded"):
        config = PeftConfig.from_pretrained(folder)
        if trained:
            check_untied("--lora_path", adapters.named_modules(config), model)
        return PeftModel.from_pretrained(model, folder, is_trainable=trained)


def lora_config(model: PreTrainedModel, model_args: ModelArguments) -> LoraConfig:
    """Adapters for --lora_target_modules, and in full what makes the summary vectors.

    Raises:
        ValueError: for adapters of tied embeddings.
    """
    targets = model_args.lora_target_modules
    check_untied("--lora_target_modules", targets, model)
    check_untied("--lora_modules_to_save", model_args.lora_modules_to_save, model)
    learned = model.summary_norm if model.config.summary_scale == "learned" else None
    own = {"embed_summary": model.embed_summary, "stop_head": model.stop_head, "summary_norm": learned}
    own["summary_projection"] = model.summary_projection
    modules = [name for name in model_args.lora_modules_to_save if name not in own]
    modules += [name for name, module in own.items() if module is not None]
    control_tokens = [model.config.sum_token_id, model.config.eoc_token_id]
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=model_args.lora_r,
        lora_alpha=model_args.lora_alpha,
        lora_dropout=model_args.lora_dropout,
        target_modules="all-linear" if targets == ["all-linear"] else targets,
        modules_to_save=modules or None,
        trainable_token_indices=control_tokens if model.config.variable_length else None,
    )


def load_teacher(training_args: TrainingArguments, model: PreTrainedModel) -> PreTrainedModel | None:
    """Loads --distillation_model, if there is one, as a reader of the full context.

    Raises:
        ValueError: if its vocabulary does not fit that of `model`.
    """
    if training_args.distillation_model is None:
        return None
    teacher = load_autocompressor(training_args.distillation_model, dtype=model.dtype, **PLAIN)
    if teacher.config.vocab_size > model.config.vocab_size:
        raise ValueError(
            f"--distillation_model must have the tokens of the model, {model.config.vocab_size} at most, it has"
            f" {teacher.config.vocab_size}."
        )
    return teacher


def default_block_size(model: PreTrainedModel, training_args: TrainingArguments) -> int:
    """Tokens of a sequence: what fixed segments take in, else three quarters of the positions per segment."""
    if training_args.segment_lengths:
        return sum(training_args.segment_lengths) * training_args.training_substeps
    segment_length = math.floor(SHARE_OF_POSITIONS * model.config.max_position_embeddings)
    return segment_length * training_args.segments_per_substep * training_args.training_substeps


def trained_segment_length(training_args: TrainingArguments, block_size: int) -> int | None:
    """Tokens of the segments that a model is trained with: of fixed ones the longest, of drawn ones their mean."""
    if training_args.full_attention:
        return None
    if training_args.segment_lengths and not training_args.randomize_substeps:
        return max(training_args.segment_lengths)
    return math.ceil(block_size / training_args.training_substeps / training_args.segments_per_substep)


def prepare_for_sequences(model: PreTrainedModel, training_args: TrainingArguments, block_size: int):
    """
    What the model that is trained must know of its sequences: the length of a segment, and positions for all of it.

    With full attention a sequence is one segment: a table of positions that is too short for it is repeated.
    """
    model.config.segment_length = trained_segment_length(training_args, block_size)
    longest = model.max_segment_length
    if not training_args.full_attention or longest is None or longest >= block_size:
        return
    if training_args.max_position_embeddings is not None:
        raise ValueError(
            f"--max_position_embeddings must be {block_size} or more, the tokens of a sequence, with --full_attention,"
            f" got {training_args.max_position_embeddings}."
        )
    logger.warning("--full_attention: the table of %d positions is repeated to %d.", longest, block_size)
    model.resize_position_embeddings(block_size)


def report_rows(name: str, metrics: dict[str, float], training_args: TrainingArguments) -> list[dict]:
    """Rows of the report on one validation set: all tokens, every substep, every segment."""
    parts = [("all", "")]
    num_segments = len(training_args.segment_lengths) or training_args.segments_per_substep
    for substep in range(training_args.training_substeps):
        parts.append((f"substep {substep}", f"substep_{substep}_"))
        for segment in range(num_segments):
            parts.append((f"substep {substep}, segment {segment}", f"substep_{substep}_segment_{segment}_"))
    return [
        {"set": name, "part": part}
        | {key: metrics.get(f"eval_{name}_{prefix}{key}") for key in ("perplexity", "accuracy", "tokens", "vectors")}
        for part, prefix in parts
    ]


def prepare(model: PreTrainedModel, arguments: RunArguments, block_size: int):
    if arguments.training.do_train:
        prepare_for_sequences(model, arguments.training, block_size)


def trainer_options(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, arguments: RunArguments
) -> dict[str, Any]:
    model = add_lora(model, arguments.model, arguments.training)
    pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return {
        "model": model,
        "teacher": load_teacher(arguments.training, model) if arguments.training.do_train else None,
        "data_collator": DataCollator(pad_token_id),
        "processing_class": tokenizer,
    }


FAMILY = Family(
    trainer=SubstepTrainer,
    model_arguments=ModelArguments,
    training_arguments=TrainingArguments,
    load=lambda arguments: load_model_and_tokenizer(arguments.model, arguments.training),
    block_size=lambda model, arguments: default_block_size(model, arguments.training),
    prepare=prepare,
    trainer_options=trainer_options,
    report_rows=report_rows,
)

__all__ = ["FAMILY"]
