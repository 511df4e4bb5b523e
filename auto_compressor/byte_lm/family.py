"""What `train.py` must know of byte language models."""

from dataclasses import fields
from functools import partial
from typing import Any

from transformers import (
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)

from ..tokenization_bytes import ByteTokenizer
from ..training.data import DataCollator, cut_documents, with_wikitext
from ..training.family import Family, RunArguments, given_fields, make_or_load, report_parameters
from .arguments import AdaptiveByteArguments, ByteLMTrainingArguments
from .configuration_adaptive_byte import AdaptiveByteConfig
from .configuration_gru_byte import GRUByteConfig
from .trainer import ByteLMTrainer


WINDOW = 128  # bytes, as published
# Arguments that are no fields of the configs.
OPTIONS = ("model_name_or_path", "cache_dir")


def byte_lm_fields(model_args: AdaptiveByteArguments) -> dict[str, Any]:
    """The fields of the config of a byte language model that are given other than as the default."""
    given = given_fields(model_args)
    thresholds = given.get("meta_uncertainty_threshold", ())
    if len(thresholds) == 1:
        given["meta_uncertainty_threshold"] = thresholds[0]
    if "threshold" in given:
        given["border_error_threshold"] = given.pop("threshold")
    return {name: value for name, value in given.items() if name not in OPTIONS}


def load_byte_lm(config_class: type[PreTrainedConfig], model_args: AdaptiveByteArguments) -> PreTrainedModel:
    """`make_or_load` for a byte language model of this config."""
    known = {field.name for field in fields(config_class)}
    given = {name: value for name, value in byte_lm_fields(model_args).items() if name in known}
    return make_or_load(AutoModelForCausalLM, config_class, model_args, given)


def load_family(
    config_class: type[PreTrainedConfig], arguments: RunArguments
) -> tuple[PreTrainedModel, ByteTokenizer]:
    return load_byte_lm(config_class, arguments.model), ByteTokenizer()


def prepare(model: PreTrainedModel, arguments: RunArguments, block_size: int):
    report_parameters(model)
    training_args = arguments.training
    windows = training_args.per_device_train_batch_size * training_args.world_size
    name = f"{model.config.model_type}_L{block_size}_B{windows * block_size // 1000}k"
    training_args.run_name = training_args.run_name or name


def cut(config: PreTrainedConfig) -> Any:
    """Published windows go across documents; those that carry a state, or predict the ends of documents, do not."""
    return None if config.window_end_target and not config.carry_state else cut_documents


def trainer_options(model: PreTrainedModel, tokenizer: ByteTokenizer, arguments: RunArguments) -> dict[str, Any]:
    # As its `processing_class`, the tokenizer would give the model a padding token that it has no embedding of.
    return {"data_collator": DataCollator(model.config.pad_token_id)}


FAMILY = {
    config_class.model_type: Family(
        trainer=ByteLMTrainer,
        model_arguments=AdaptiveByteArguments,
        training_arguments=ByteLMTrainingArguments,
        load=partial(load_family, config_class),
        block_size=lambda model, arguments: WINDOW,
        prepare=prepare,
        cut=cut,
        default_data=with_wikitext,
        trainer_options=trainer_options,
    )
    for config_class in (AdaptiveByteConfig, GRUByteConfig)
}

__all__ = ["FAMILY"]
