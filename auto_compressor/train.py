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
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub.utils import logging as hub_logging
from transformers import HfArgumentParser, Trainer, set_seed
from transformers import TrainingArguments as HfTrainingArguments
from transformers.utils import logging

from .families import DEFAULT, MODEL_TYPES, training_family
from .files.hub import push_folder, write_card
from .files.model_card import is_repository
from .moved_modules import moved_names
from .training.arguments import DataTrainingArguments
from .training.checkpoints import check_settings, find_checkpoint, remove_left_over, settings_of, write_settings
from .training.family import Family, RunArguments, make_trainer
from .training.report import add_reports, expected_messages_are_silent, write_report


logger = logging.get_logger(__name__)

TRACKERS = ("mlflow", "tensorboard", "wandb")


def check_trackers(training_args: HfTrainingArguments):
    """Raises a `ValueError` for a tracker of --report_to that is not installed, before the work is done."""
    for name in training_args.report_to:
        if name in TRACKERS and importlib.util.find_spec(name) is None:
            raise ValueError(f'--report_to {name} needs {name}: pip install "auto-compressor[track]"')


def begin_run(arguments: RunArguments) -> str | None:
    """The checkpoint to go on from, whose run must have these settings; they are written for the next time."""
    training_args = arguments.training
    settings, checkpoint = settings_of(*arguments), find_checkpoint(training_args)
    check_settings(Path(training_args.output_dir) if checkpoint is None else Path(checkpoint).parent, settings)
    if training_args.process_index == 0:
        remove_left_over(Path(training_args.output_dir))
        write_settings(Path(training_args.output_dir), settings)
    return checkpoint


def train(trainer: Trainer, checkpoint: str | None):
    """Trains to the end and saves model, tokenizer, metrics and state; the config too where weights are sharded."""
    if checkpoint is not None:
        logger.warning("Going on from %s", checkpoint)
    result = trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()
    if trainer.is_world_process_zero() and not (Path(trainer.args.output_dir) / "config.json").exists():
        trainer.model.config.save_pretrained(trainer.args.output_dir)
    trainer.log_metrics("train", result.metrics)
    trainer.save_metrics("train", result.metrics)
    trainer.save_state()


def evaluate(trainer: Trainer, family: Family) -> list[dict[str, Any]]:
    """Evaluates on every validation set; writes `eval_results.json` and `evaluation.csv`, and prints the table."""
    metrics = trainer.evaluate()
    trainer.save_metrics("eval", metrics)
    rows = [row for name in trainer.eval_dataset for row in family.report_rows(name, metrics, trainer.args)]
    if trainer.is_world_process_zero():
        write_report(rows, Path(trainer.args.output_dir) / "evaluation.csv")
    return rows


def training_data(data_args: DataTrainingArguments) -> str:
    """The text of a run in words, without the folders in which files lie."""
    files = [Path(name).name for name in [*data_args.train_file, *data_args.preprocessed_train_datasets]]
    named = [data_args.dataset_name, data_args.dataset_config_name] if data_args.dataset_name else files
    return ", ".join(f"`{name}`" for name in named if name) or "The text that `train.py` reads where none is named."


def write_card_of_run(trainer: Trainer, arguments: RunArguments, rows: list[dict[str, Any]]):
    """Writes the model card of a run, with the rows of its report."""
    if trainer.is_world_process_zero():
        write_card(
            trainer.model.config,
            trainer.args.output_dir,
            Path(trainer.args.output_dir).absolute().name,
            base_model=arguments.model.model_name_or_path,
            datasets=[name for name in [arguments.data.dataset_name] if is_repository(name)],
            data=training_data(arguments.data),
            rows=rows,
        )


def run(family: Family, arguments: RunArguments):
    """A run from its arguments to its report."""
    training_args = arguments.training
    if not (training_args.do_train or training_args.do_eval):
        raise ValueError("Nothing to do: give --do_train, --do_eval or both.")
    check_trackers(training_args)
    checkpoint = begin_run(arguments) if training_args.do_train else None
    set_seed(training_args.seed)
    trainer = make_trainer(family, arguments)
    add_reports(trainer)
    rows: list[dict[str, Any]] = []
    # The Trainer calls it when it pushes.
    trainer.create_model_card = lambda **kwargs: write_card_of_run(trainer, arguments, rows)  # type: ignore[method-assign]
    if training_args.do_train:
        train(trainer, checkpoint)
    if training_args.do_eval:
        rows += evaluate(trainer, family)
    if training_args.do_train:
        trainer.create_model_card()
        if training_args.push_to_hub and trainer.is_world_process_zero():
            push_folder(training_args.output_dir, trainer.hub_model_id, token=training_args.hub_token)
    # A process that leaves while its last messages are under way can hang in gloo, and so can DDP freed at exit.
    trainer.accelerator.wait_for_everyone()
    trainer.model_wrapped = None
    trainer.accelerator.free_memory()
    trainer.accelerator.end_training()


def without_default_steps(flags: list[str]) -> list[str]:
    """The flags; where --num_train_epochs is one and --max_steps is not, without the default steps of a family."""
    given = {flag.partition("=")[0] for flag in flags}
    epochs_decide = given & {"--num_train_epochs", "--epochs"} and "--max_steps" not in given
    return [*flags, "--max_steps", "-1"] if epochs_decide else flags


def main(argv: Sequence[str] | None = None, prog: str | None = None):
    """Trains and evaluates as `argv` says, else the command line; errors and --help call the program `prog`."""
    # An unreachable hub is one error of one line, without the warnings of every try before it.
    hub_logging.set_verbosity_error()
    chooser = argparse.ArgumentParser(prog, add_help=False, allow_abbrev=False)
    chooser.add_argument("--model_type", choices=MODEL_TYPES, default=DEFAULT)
    chosen, rest = chooser.parse_known_args(argv)
    family = training_family(chosen.model_type)
    epilog = f"--model_type chooses the family: {', '.join(MODEL_TYPES)}."
    parser = HfArgumentParser(family.argument_groups, prog=prog, epilog=epilog)
    try:
        with expected_messages_are_silent():
            run(family, RunArguments(*parser.parse_args_into_dataclasses(without_default_steps(rest))))
    except (OSError, ValueError) as error:
        sys.exit(f"{parser.prog}: error: {error}")


# Names of this module from the time before families had folders.
__getattr__ = moved_names(__package__, "train")

if __name__ == "__main__":
    main(prog="python -m auto_compressor.train")
