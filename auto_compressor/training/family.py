"""What `train.py` must know of a family of models, and the trainer that follows from it."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, Trainer
from transformers import TrainingArguments as HfTrainingArguments
from transformers.utils import logging

from ..files.loading import load
from .arguments import DataTrainingArguments, OptimArguments
from .data import load_datasets
from .report import metric_rows


logger = logging.get_logger(__name__)


class RunArguments(NamedTuple):
    """The three groups of arguments of a run."""

    model: Any
    data: DataTrainingArguments
    training: HfTrainingArguments


def vocabulary_of_the_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    return model.config.vocab_size


def nothing_else(model: PreTrainedModel, arguments: RunArguments, block_size: int):
    """Does nothing: most models are ready as they are loaded."""


@dataclass(frozen=True)
class Family:
    """
    What `train.py` must know of a family of models.

    Args:
        trainer (`type[Trainer]`): The trainer of the family.
        model_arguments (`type`): The group of arguments that says which model is trained.
        load (`Callable`): Arguments -> model and tokenizer.
        block_size (`Callable`): Model and arguments -> tokens of a row where `--block_size` is not given.
        trainer_options (`Callable`): Model, tokenizer and arguments -> what else the trainer takes; `model` too, where
            it is to train another one.
        training_arguments (`type`): The group of arguments that says how it is trained.
        prepare (`Callable`): Model, arguments and tokens of a row; what must be done before the text is read.
        cut (`Callable`): Config -> how documents become rows: `cut_documents`, or None for rows that go across them.
        default_data (`Callable`, *optional*): Data arguments and the cache folder -> those of the text that is read
            where none is named; None for the bundled text.
        vocab_size (`Callable`): Model and tokenizer -> how many ids the rows may have.
        report_rows (`Callable`): Name of a validation set, metrics and training arguments -> rows of its report.
    """

    trainer: type[Trainer]
    model_arguments: type
    load: Callable[[RunArguments], tuple[Any, PreTrainedTokenizerBase]]
    block_size: Callable[[Any, RunArguments], int]
    trainer_options: Callable[[Any, PreTrainedTokenizerBase, RunArguments], dict[str, Any]]
    training_arguments: type = OptimArguments
    prepare: Callable[[Any, RunArguments, int], None] = nothing_else
    cut: Callable[[PreTrainedConfig], Callable | None] = lambda config: None
    default_data: Callable[[DataTrainingArguments, str | None], DataTrainingArguments] | None = None
    vocab_size: Callable[[Any, PreTrainedTokenizerBase], int] = vocabulary_of_the_model
    report_rows: Callable[..., list[dict[str, Any]]] = metric_rows

    @property
    def argument_groups(self) -> tuple[type, type, type]:
        return self.model_arguments, DataTrainingArguments, self.training_arguments


def make_trainer(family: Family, arguments: RunArguments) -> Trainer:
    """The trainer of a run, with the model and the text that the arguments name."""
    model, tokenizer = family.load(arguments)
    given = arguments.data.block_size
    block_size = family.block_size(model, arguments) if given is None else given
    family.prepare(model, arguments, block_size)
    datasets = read_datasets(family, arguments, model, tokenizer, block_size)
    options = {"model": model, "args": arguments.training} | family.trainer_options(model, tokenizer, arguments)
    return family.trainer(**options, **datasets)


def read_datasets(
    family: Family, arguments: RunArguments, model: Any, tokenizer: PreTrainedTokenizerBase, block_size: int
) -> dict[str, Any]:
    """The datasets of a trainer, `train_dataset` and `eval_dataset`. A `ValueError` if one is needed and missing."""
    data_args, training_args, options = arguments.data, arguments.training, {}
    cut, cache_dir = family.cut(model.config), arguments.model.cache_dir
    if family.default_data is not None:
        with training_args.main_process_first(desc="looking for the text"):
            data_args = family.default_data(data_args, cache_dir)
    if cut is not None:
        # A document ends with the end-of-text token, and no row goes on into the next one.
        data_args, options = replace(data_args, add_special_tokens=True), {"cut": cut}
    options |= {"vocab_size": family.vocab_size(model, tokenizer), "seed": training_args.seed}
    with training_args.main_process_first(desc="tokenising the text"):
        train_set, validation_sets = load_datasets(data_args, tokenizer, block_size, cache_dir=cache_dir, **options)
    if training_args.do_train and train_set is None:
        raise ValueError("--do_train needs training data, there are only validation sets.")
    if training_args.do_eval and not validation_sets:
        raise ValueError("--do_eval needs validation data: --validation_file, or a split of the dataset.")
    return {"train_dataset": train_set if training_args.do_train else None, "eval_dataset": validation_sets or None}


def given_fields(model_args: Any, **required) -> dict[str, Any]:
    """What is given other than as the default, which needs the `required` fields."""
    default = type(model_args)(**required)
    values = {field.name: getattr(model_args, field.name) for field in fields(model_args)}
    return {name: value for name, value in values.items() if value != getattr(default, name)}


def make_or_load(
    auto_class: type,
    config_class: type[PreTrainedConfig],
    model_args: Any,
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


__all__ = ["Family", "RunArguments", "given_fields", "make_or_load", "make_trainer", "report_parameters"]
