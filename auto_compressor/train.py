"""Trains and evaluates the models of a family: AutoCompressors, or those of `--model_type`.

    bash run/train.sh                                      # the published setting, every variable on top of the file
    python train.py --config_name tiny --output_dir checkpoints/tiny --do_train --do_eval --max_steps 200
    torchrun --standalone --nproc_per_node 8 train.py --model_name_or_path facebook/opt-2.7b ...
    python train.py --model_type hierarchical_autoencoder --output_dir checkpoints/bytes --do_train --do_eval
    python train.py --model_type adaptive_byte --output_dir checkpoints/adaptive --do_train --do_eval
    python train.py --model_type activation_compressor --model_name_or_path smollm2 --output_dir checkpoints/cache ...
    python train.py --model_type continuous_text_autoencoder --output_dir checkpoints/continuous --do_train --do_eval

Installed, `auto-compressor train ...` and `torchrun ... -m auto_compressor.train ...` do the same from any folder.

Without arguments for the data, it reads the text that comes with the package. `--resume_from_checkpoint true` goes on
from the last whole checkpoint of `--output_dir`, if there is one.
"""

import argparse
import csv
import importlib.util
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from huggingface_hub.utils import logging as hub_logging
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from rich.console import Console
from rich.table import Table
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    HfArgumentParser,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    default_data_collator,
    set_seed,
)
from transformers import TrainingArguments as HfTrainingArguments
from transformers.utils import logging

from . import (
    ActivationCompressor,
    ActivationCompressorConfig,
    AdaptiveByteConfig,
    ByteTokenizer,
    ContinuousTextAutoencoder,
    ContinuousTextAutoencoderConfig,
    GRUByteConfig,
    HierarchicalAutoencoder,
    HierarchicalAutoencoderConfig,
    adapters,
    loading,
)
from .activation_trainer import ActivationTrainer, CompressorWithBase
from .adapters import check_untied, save_adapters
from .adaptive_trainer import ByteLMTrainer
from .bases import (
    autocompressor_class,
    load_autocompressor,
    load_base_config,
    load_base_model,
    resolve_base,
)
from .bundled import BUNDLED_TOKENIZER
from .configuration_autocompressor import AutoCompressorConfigMixin
from .continuous_trainer import ContinuousTrainer
from .control_tokens import add_control_tokens, check_tokenizer, resize_for_control_tokens
from .hierarchical_trainer import HierarchicalTrainer
from .loading import load, reading
from .modeling_continuous_text_autoencoder import check_tokenizer as check_vocabulary
from .training.arguments import (
    ActivationArguments,
    ActivationTrainingArguments,
    AdaptiveByteArguments,
    ByteLMTrainingArguments,
    ContinuousTextArguments,
    ContinuousTrainingArguments,
    DataTrainingArguments,
    HierarchicalArguments,
    ModelArguments,
    OptimArguments,
    TrainingArguments,
)
from .training.data import DataCollator, cut_documents, load_datasets, with_wikitext
from .training.reporting import add_reports, expected_messages_are_silent
from .training.resuming import (
    check_settings,
    find_checkpoint,
    last_whole_checkpoint,  # noqa: F401, a name of this module
    remove_left_over,
    settings_of,
    write_settings,
)
from .training.substep_trainer import SubstepTrainer
from .whole_files import whole_file


logger = logging.get_logger(__name__)

# The published runs read 6,144 tokens in 4 segments of at most 2,048: room for random lengths.
SHARE_OF_POSITIONS = 0.75

# Arguments that are fields of the levels of a hierarchical autoencoder, with a value for each.
LEVEL_FIELDS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_expander_layers", "max_patch_length")
LEVEL_FIELDS += ("window", "border_rule", "border_threshold", "target_ratio", "quantizer", "codebook_size")
LEVEL_FIELDS += ("codebook_dim", "num_quantizers", "ema_decay", "dead_code_threshold")

# Arguments of byte language models that are no fields of their configs.
BYTE_LM_OPTIONS = ("model_name_or_path", "cache_dir", "sequence_length")

# Arguments of activation compressors that are fields of their configs.
COMPRESSOR_FIELDS = {field.name for field in fields(ActivationArguments)}
COMPRESSOR_FIELDS &= {field.name for field in fields(ActivationCompressorConfig)}

# Arguments of continuous text autoencoders that are no fields of their config, and the published length of a sequence.
SOURCE_OPTIONS = ("model_name_or_path", "tokenizer_name", "cache_dir")
CONTINUOUS_BLOCK_SIZE = 128

TRACKERS = ("mlflow", "tensorboard", "wandb")

# Fields of a config that makes no summary vectors; without control tokens `compression_max_len` means nothing, but may
# not be 0 beside `summary_length` 0.
PLAIN = {"summary_length": 0, "sum_token_id": None, "eoc_token_id": None, "segment_length": None}
PLAIN |= {"compression_max_len": AutoCompressorConfigMixin.compression_max_len}


def load_tokenizer(model_args: ModelArguments) -> PreTrainedTokenizerBase:
    """Loads --tokenizer_name, else the tokenizer of the model; the `tiny` model has the bundled one."""
    name = model_args.tokenizer_name or model_args.model_name_or_path or model_args.config_name
    return loading.load_tokenizer(
        BUNDLED_TOKENIZER if name == "tiny" else resolve_base(name),
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
    names = ("summary_length", "accumulate_summary", "segment_gradient_checkpointing", "compression_max_len")
    names += ("compression_lambda", "compression_alpha", "truncate_bptt_segments", "compress_stop_threshold")
    fields = {name: getattr(training_args, name) for name in names if getattr(training_args, name) is not None}
    if training_args.full_attention:
        return fields | PLAIN
    if training_args.compression_max_len and not getattr(config, "variable_length", False):
        fields |= add_control_tokens(tokenizer)
    return fields


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
        model = model_class._from_config(config, attn_implementation=attention)
    else:
        # Adapters train beside frozen weights in half precision; full training keeps float32 weights.
        half = torch.bfloat16 if training_args.bf16 else torch.float16 if training_args.fp16 else torch.float32
        dtype = half if model_args.lora or model_args.lora_path else torch.float32
        folder = resolve_base(name)
        model = load(model_class, folder, config=config, dtype=dtype, attn_implementation=attention, **hub)
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
    check_untied("--lora_target_modules", model_args.lora_target_modules, model)
    check_untied("--lora_modules_to_save", model_args.lora_modules_to_save, model)
    own = {"embed_summary": model.embed_summary, "stop_head": model.stop_head}
    modules = [name for name in model_args.lora_modules_to_save if name not in own]
    modules += [name for name, module in own.items() if module is not None]
    control_tokens = [model.config.sum_token_id, model.config.eoc_token_id]
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=model_args.lora_r,
        lora_alpha=model_args.lora_alpha,
        lora_dropout=model_args.lora_dropout,
        target_modules=model_args.lora_target_modules,
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


def write_report(rows: list[dict], path: Path):
    """Prints the rows as a table and writes them as CSV."""
    table = Table(title="Evaluation")
    for column in rows[0]:
        table.add_column(column, justify="left" if column in ("set", "part", "metric") else "right")
    formats = {"perplexity": "{:.2f}", "accuracy": "{:.3f}", "tokens": "{:,}", "vectors": "{:.1f}", "value": "{:,.4g}"}
    for row in rows:
        cells = (formats.get(key, "{}").format(value) if value is not None else "-" for key, value in row.items())
        table.add_row(*cells)
    Console().print(table)
    with whole_file(path, "w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def metric_rows(name: str, metrics: dict[str, Any], training_args: HfTrainingArguments) -> list[dict[str, Any]]:
    """Rows of the report on one validation set, one per metric; histograms are left out."""
    prefix = f"eval_{name}_"
    timing = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time")
    return [
        {"set": name, "metric": key.removeprefix(prefix), "value": value}
        for key, value in metrics.items()
        if key.startswith(prefix) and key.removeprefix(prefix) not in timing and not isinstance(value, list)
    ]


def train(trainer: Trainer, checkpoint: str | None):
    """Trains to the end and saves model, tokenizer, metrics and state; adapters get the config beside them."""
    if checkpoint is not None:
        logger.warning("Going on from %s", checkpoint)
    result = trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()
    if trainer.is_world_process_zero():
        trainer.model.config.save_pretrained(trainer.args.output_dir)
    trainer.log_metrics("train", result.metrics)
    trainer.save_metrics("train", result.metrics)
    trainer.save_state()


def evaluate(trainer: Trainer, report_rows: Callable[..., list[dict]]):
    """Evaluates on every validation set; writes `eval_results.json` and `evaluation.csv`, and prints the table."""
    metrics = trainer.evaluate()
    trainer.save_metrics("eval", metrics)
    if trainer.is_world_process_zero():
        rows = [row for name in trainer.eval_dataset for row in report_rows(name, metrics, trainer.args)]
        write_report(rows, Path(trainer.args.output_dir) / "evaluation.csv")


def make_autocompressor_trainer(
    model_args: ModelArguments, data_args: DataTrainingArguments, training_args: TrainingArguments
) -> SubstepTrainer:
    model, tokenizer = load_model_and_tokenizer(model_args, training_args)
    block_size = data_args.block_size or default_block_size(model, training_args)
    if training_args.do_train:
        prepare_for_sequences(model, training_args, block_size)
    datasets = load_checked_datasets(
        data_args, training_args, tokenizer, block_size, model_args.cache_dir, vocab_size=model.config.vocab_size
    )
    model = add_lora(model, model_args, training_args)
    pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return SubstepTrainer(
        model=model,
        args=training_args,
        teacher=load_teacher(training_args, model) if training_args.do_train else None,
        data_collator=DataCollator(pad_token_id),
        processing_class=tokenizer,
        **datasets,
    )


def hierarchical_config(
    model_args: HierarchicalArguments, block_size: int | None, start: HierarchicalAutoencoderConfig | None = None
) -> HierarchicalAutoencoderConfig:
    """The config of a new model, or of one that has the levels of `start` and new ones over them.

    A field of the levels has one value for all, or one for each; the levels of `start` keep theirs.

    Raises:
        ValueError: for another number of values, or values that make no model.
    """
    kept = [] if start is None else start.level_configs
    levels: list[dict[str, Any]] = [{} for _ in range(model_args.num_levels or len(kept) or 1)]
    for name in LEVEL_FIELDS:
        values = getattr(model_args, name)
        if len(values) not in (0, 1, len(levels)):
            raise ValueError(f"--{name} must have one value, or one per level ({len(levels)}), got {values}.")
        for index, level in enumerate(levels if values else []):
            level[name] = values[index % len(values)]
    given = {"block_size": block_size, "code_loss_weight": model_args.code_loss_weight}
    fields = {} if start is None else {name: getattr(start, name) for name in given}
    fields |= {name: value for name, value in given.items() if value is not None}
    new = [level | ({"fsq_levels": model_args.fsq_levels} if model_args.fsq_levels else {}) for level in levels]
    try:
        return HierarchicalAutoencoderConfig(level_configs=[*kept, *new[len(kept) :]], **fields)
    except StrictDataclassError as error:
        raise ValueError(str(error.__cause__ or error)) from error


def load_hierarchical(model_args: HierarchicalArguments, block_size: int | None) -> HierarchicalAutoencoder:
    """Makes a new model, or loads --model_name_or_path, with further levels if --num_levels asks for them.

    Raises:
        ValueError: if the checkpoint has more levels than --num_levels.
        OSError: if it cannot be read.
    """
    name, attention = model_args.model_name_or_path, {"attn_implementation": model_args.attn_implementation}
    problem = f"--model_name_or_path {name!r} cannot be loaded"
    if name is None:
        return HierarchicalAutoencoder._from_config(hierarchical_config(model_args, block_size), **attention)
    options = {"cache_dir": model_args.cache_dir, "problem": problem}
    start = load(HierarchicalAutoencoderConfig, name, **options)
    if (model_args.num_levels or start.num_levels) < start.num_levels:
        raise ValueError(
            f"--num_levels must be {start.num_levels} or more, as {name} has, got {model_args.num_levels}."
        )
    config = hierarchical_config(model_args, block_size, start)
    # The language model over the codes starts anew where they are those of a new level.
    grown = {"ignore_mismatched_sizes": config.num_levels > start.num_levels}
    return load(HierarchicalAutoencoder, name, config=config, dtype=torch.float32, **grown, **options, **attention)


def make_hierarchical_trainer(
    model_args: HierarchicalArguments, data_args: DataTrainingArguments, training_args: HfTrainingArguments
) -> HierarchicalTrainer:
    model, tokenizer = load_hierarchical(model_args, data_args.block_size), ByteTokenizer()
    model.freeze_levels(model_args.freeze_levels)
    # A document ends with the end-of-text token, and no block goes on into the next one.
    data_args = replace(data_args, add_special_tokens=True)
    datasets = load_checked_datasets(
        data_args,
        training_args,
        tokenizer,
        model.config.block_size,
        model_args.cache_dir,
        cut=cut_documents,
        vocab_size=tokenizer.vocab_size,
    )
    return HierarchicalTrainer(
        model=model,
        args=training_args,
        data_collator=DataCollator(tokenizer.pad_token_id),
        processing_class=tokenizer,
        num_samples=model_args.num_samples,
        **datasets,
    )


def given_fields(model_args: Any, **required) -> dict[str, Any]:
    """What is given other than as the default, which needs the `required` fields."""
    default = type(model_args)(**required)
    values = {field.name: getattr(model_args, field.name) for field in fields(model_args)}
    return {name: value for name, value in values.items() if value != getattr(default, name)}


def byte_lm_fields(model_args: AdaptiveByteArguments) -> dict[str, Any]:
    """The fields of the config of a byte language model that are given other than as the default."""
    given = given_fields(model_args)
    thresholds = given.get("meta_uncertainty_threshold", ())
    if len(thresholds) == 1:
        given["meta_uncertainty_threshold"] = thresholds[0]
    if "threshold" in given:
        given["border_error_threshold"] = given.pop("threshold")
    return {name: value for name, value in given.items() if name not in BYTE_LM_OPTIONS}


def load_byte_lm(config_class: type[PreTrainedConfig], model_args: AdaptiveByteArguments) -> PreTrainedModel:
    """`make_or_load` for a byte language model of this config."""
    known = {field.name for field in fields(config_class)}
    given = {name: value for name, value in byte_lm_fields(model_args).items() if name in known}
    return make_or_load(AutoModelForCausalLM, config_class, model_args, given)


def make_or_load(
    auto_class: type,
    config_class: type[PreTrainedConfig],
    model_args: AdaptiveByteArguments | ContinuousTextArguments,
    given: dict[str, Any],
) -> PreTrainedModel:
    """Makes a new model of this config, or loads --model_name_or_path, with the fields that are given.

    Raises:
        ValueError: for values that make no model.
        OSError: if it cannot be read.
    """
    name = model_args.model_name_or_path
    try:
        if name is None:
            return auto_class.from_config(config_class(**given))
    except StrictDataclassError as error:
        raise ValueError(str(error.__cause__ or error)) from error
    options = {"cache_dir": model_args.cache_dir, "problem": f"--model_name_or_path {name!r} cannot be loaded"}
    config = load(config_class, name, **options, **given)
    return load(auto_class, name, config=config, dtype=torch.float32, **options)


def report_parameters(model: PreTrainedModel):
    """Says how many parameters are trained, and how many of them have an effect."""
    trainable = model.num_parameters(only_trainable=True)
    effective = getattr(model, "num_effective_parameters", trainable)
    logger.warning("%s: %d trainable parameters, %d effective", model.config.model_type, trainable, effective)


def make_byte_lm_trainer(
    config_class: type[PreTrainedConfig],
    model_args: AdaptiveByteArguments,
    data_args: DataTrainingArguments,
    training_args: HfTrainingArguments,
) -> ByteLMTrainer:
    model, tokenizer = load_byte_lm(config_class, model_args), ByteTokenizer()
    report_parameters(model)
    window, windows = model_args.sequence_length, training_args.per_device_train_batch_size * training_args.world_size
    training_args.run_name = (
        training_args.run_name or f"{config_class.model_type}_L{window}_B{windows * window // 1000}k"
    )
    with training_args.main_process_first(desc="looking for WikiText-103"):
        data_args = with_wikitext(data_args, model_args.cache_dir)
    options: dict[str, Any] = {"vocab_size": model.config.vocab_size}
    if not model.config.window_end_target or model.config.carry_state:
        # A document ends with the end-of-text token, and no window goes on into the next one.
        data_args, options = replace(data_args, add_special_tokens=True), options | {"cut": cut_documents}
    datasets = load_checked_datasets(data_args, training_args, tokenizer, window, model_args.cache_dir, **options)
    # As its `processing_class`, the tokenizer would give the model a padding token that it has no embedding of.
    return ByteLMTrainer(
        model=model, args=training_args, data_collator=DataCollator(model.config.pad_token_id), **datasets
    )


def compressor_fields(model_args: ActivationArguments) -> dict[str, Any]:
    """The fields of the config of an activation compressor that are given other than as the default."""
    given = given_fields(model_args, model_name_or_path=model_args.model_name_or_path)
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


def make_activation_trainer(
    model_args: ActivationArguments, data_args: DataTrainingArguments, training_args: HfTrainingArguments
) -> ActivationTrainer:
    name, hub = model_args.model_name_or_path, {"cache_dir": model_args.cache_dir}
    half = training_args.bf16 and model_args.freeze_base
    base_model = load_base_model(
        name,
        dtype=torch.bfloat16 if half else torch.float32,
        attn_implementation=model_args.attn_implementation,
        **hub,
    )
    tokenizer = loading.load_tokenizer(resolve_base(model_args.tokenizer_name or name), **hub)
    check_tokenizer(tokenizer, base_model.config)
    compressor = load_compressor(model_args, base_model)
    report_parameters(compressor)
    datasets = load_checked_datasets(
        data_args,
        training_args,
        tokenizer,
        model_args.max_length,
        model_args.cache_dir,
        vocab_size=base_model.config.vocab_size,
    )
    return ActivationTrainer(
        model=CompressorWithBase(compressor, base_model, model_args.continuation_length, model_args.segment_length),
        args=training_args,
        # Rows of one length: without a mask, attention is faster.
        data_collator=default_data_collator,
        tokenizer=tokenizer,
        **datasets,
    )


def load_continuous_text(
    model_args: ContinuousTextArguments,
) -> tuple[ContinuousTextAutoencoder, PreTrainedTokenizerBase]:
    """Makes a new model for the tokenizer, or loads --model_name_or_path, whose tokenizer it must be.

    Raises:
        ValueError: for values that make no model, or a tokenizer of another size than the model.
        OSError: if model or tokenizer cannot be read.
    """
    tokenizer_name = model_args.tokenizer_name or model_args.model_name_or_path or BUNDLED_TOKENIZER
    try:
        tokenizer = loading.load_tokenizer(tokenizer_name, cache_dir=model_args.cache_dir)
    except OSError as error:
        raise OSError(f"There is no tokenizer in {str(tokenizer_name)!r}: give --tokenizer_name.") from error
    values = {field.name: getattr(model_args, field.name) for field in fields(model_args)}
    given = {name: value for name, value in values.items() if value not in (None, []) and name not in SOURCE_OPTIONS}
    if model_args.model_name_or_path is None:
        given["vocab_size"] = len(tokenizer)
    model = make_or_load(AutoModel, ContinuousTextAutoencoderConfig, model_args, given)
    check_vocabulary(tokenizer, model.config.vocab_size)
    return model, tokenizer


def make_continuous_trainer(
    model_args: ContinuousTextArguments, data_args: DataTrainingArguments, training_args: ContinuousTrainingArguments
) -> ContinuousTrainer:
    model, tokenizer = load_continuous_text(model_args)
    block_size = CONTINUOUS_BLOCK_SIZE if data_args.block_size is None else data_args.block_size
    datasets = load_checked_datasets(
        data_args, training_args, tokenizer, block_size, model_args.cache_dir, vocab_size=model.config.vocab_size
    )
    return ContinuousTrainer(
        model=model,
        args=training_args,
        data_collator=DataCollator(pad_token_id=0),  # rows of other lengths are masked
        processing_class=tokenizer,
        **datasets,
    )


def load_checked_datasets(
    data_args: DataTrainingArguments,
    training_args: HfTrainingArguments,
    tokenizer: PreTrainedTokenizerBase,
    block_size: int,
    cache_dir: str | None,
    **options,
) -> dict[str, Any]:
    """The datasets of a trainer, `train_dataset` and `eval_dataset`. A `ValueError` if one is needed and missing."""
    with training_args.main_process_first(desc="tokenising the text"):
        train_set, validation_sets = load_datasets(
            data_args, tokenizer, block_size, cache_dir=cache_dir, seed=training_args.seed, **options
        )
    if training_args.do_train and train_set is None:
        raise ValueError("--do_train needs training data, there are only validation sets.")
    if training_args.do_eval and not validation_sets:
        raise ValueError("--do_eval needs validation data: --validation_file, or a split of the dataset.")
    return {"train_dataset": train_set if training_args.do_train else None, "eval_dataset": validation_sets or None}


@dataclass
class Family:
    """What `--model_type` chooses: the groups of arguments, how its trainer is made, and the rows of its report."""

    arguments: tuple[type, type, type]
    make_trainer: Callable[..., Trainer]
    report_rows: Callable[..., list[dict]]


FAMILIES = {
    "autocompressor": Family(
        (ModelArguments, DataTrainingArguments, TrainingArguments), make_autocompressor_trainer, report_rows
    ),
    "hierarchical_autoencoder": Family(
        (HierarchicalArguments, DataTrainingArguments, OptimArguments),
        make_hierarchical_trainer,
        metric_rows,
    ),
    "activation_compressor": Family(
        (ActivationArguments, DataTrainingArguments, ActivationTrainingArguments), make_activation_trainer, metric_rows
    ),
    "continuous_text_autoencoder": Family(
        (ContinuousTextArguments, DataTrainingArguments, ContinuousTrainingArguments),
        make_continuous_trainer,
        metric_rows,
    ),
}
for config_class in (AdaptiveByteConfig, GRUByteConfig):
    FAMILIES[config_class.model_type] = Family(
        (AdaptiveByteArguments, DataTrainingArguments, ByteLMTrainingArguments),
        partial(make_byte_lm_trainer, config_class),
        metric_rows,
    )


def check_trackers(training_args: HfTrainingArguments):
    """Raises a `ValueError` for a tracker of --report_to that is not installed, before the work is done."""
    for name in training_args.report_to:
        if name in TRACKERS and importlib.util.find_spec(name) is None:
            raise ValueError(f'--report_to {name} needs {name}: pip install "auto-compressor[track]"')


def begin_run(model_args: Any, data_args: DataTrainingArguments, training_args: HfTrainingArguments) -> str | None:
    """The checkpoint to go on from, whose run must have these settings; they are written for the next time."""
    settings, checkpoint = settings_of(model_args, data_args, training_args), find_checkpoint(training_args)
    check_settings(Path(training_args.output_dir) if checkpoint is None else Path(checkpoint).parent, settings)
    if training_args.process_index == 0:
        remove_left_over(Path(training_args.output_dir))
        write_settings(Path(training_args.output_dir), settings)
    return checkpoint


def run(family: Family, model_args: Any, data_args: DataTrainingArguments, training_args: HfTrainingArguments):
    if not (training_args.do_train or training_args.do_eval):
        raise ValueError("Nothing to do: give --do_train, --do_eval or both.")
    check_trackers(training_args)
    checkpoint = begin_run(model_args, data_args, training_args) if training_args.do_train else None
    set_seed(training_args.seed)
    trainer = family.make_trainer(model_args, data_args, training_args)
    add_reports(trainer)
    if training_args.do_train:
        train(trainer, checkpoint)
    if training_args.do_eval:
        evaluate(trainer, family.report_rows)
    # A process that leaves while its last messages are under way can hang in gloo, and so can DDP freed at exit.
    trainer.accelerator.wait_for_everyone()
    trainer.model_wrapped = None
    trainer.accelerator.free_memory()
    trainer.accelerator.end_training()


def main(argv: Sequence[str] | None = None, prog: str | None = None):
    """Trains and evaluates as `argv` says, else the command line; errors and --help call the program `prog`."""
    # An unreachable hub is one error of one line, without the warnings of every try before it.
    hub_logging.set_verbosity_error()
    chooser = argparse.ArgumentParser(prog, add_help=False, allow_abbrev=False)
    chooser.add_argument("--model_type", choices=list(FAMILIES), default="autocompressor")
    chosen, arguments = chooser.parse_known_args(argv)
    family = FAMILIES[chosen.model_type]
    epilog = f"--model_type chooses the family: {', '.join(FAMILIES)}."
    parser = HfArgumentParser(family.arguments, prog=prog, epilog=epilog)
    try:
        with expected_messages_are_silent():
            run(family, *parser.parse_args_into_dataclasses(arguments))
    except (OSError, ValueError) as error:
        sys.exit(f"{parser.prog}: error: {error}")


if __name__ == "__main__":
    main(prog="python -m auto_compressor.train")
