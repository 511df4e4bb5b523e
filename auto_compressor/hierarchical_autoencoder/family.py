"""What `train.py` must know of hierarchical byte autoencoders."""

from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError

from ..files.loading import load
from ..tokenization_bytes import ByteTokenizer
from ..training.data import DataCollator, cut_documents
from ..training.family import Family, RunArguments
from .arguments import HierarchicalArguments, HierarchicalTrainingArguments
from .configuration_hierarchical_autoencoder import HierarchicalAutoencoderConfig
from .modeling_hierarchical_autoencoder import HierarchicalAutoencoder
from .trainer import HierarchicalTrainer


# Arguments that are fields of the levels, with a value for each.
LEVEL_FIELDS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_expander_layers", "max_patch_length")
LEVEL_FIELDS += ("window", "border_rule", "border_threshold", "target_ratio", "quantizer", "codebook_size")
LEVEL_FIELDS += ("codebook_dim", "num_quantizers", "ema_decay", "dead_code_threshold")


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


def load_family(arguments: RunArguments) -> tuple[HierarchicalAutoencoder, ByteTokenizer]:
    model = load_hierarchical(arguments.model, arguments.data.block_size)
    model.freeze_levels(arguments.model.freeze_levels)
    return model, ByteTokenizer()


def trainer_options(
    model: HierarchicalAutoencoder, tokenizer: ByteTokenizer, arguments: RunArguments
) -> dict[str, Any]:
    return {
        "data_collator": DataCollator(tokenizer.pad_token_id),
        "processing_class": tokenizer,
        "num_samples": arguments.model.num_samples,
    }


FAMILY = Family(
    trainer=HierarchicalTrainer,
    model_arguments=HierarchicalArguments,
    training_arguments=HierarchicalTrainingArguments,
    load=load_family,
    block_size=lambda model, arguments: model.config.block_size,
    cut=lambda config: cut_documents,
    vocab_size=lambda model, tokenizer: tokenizer.vocab_size,
    trainer_options=trainer_options,
)

__all__ = ["FAMILY"]
