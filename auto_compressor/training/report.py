"""What a run says: a short line for every report, a warning where nothing can be learned, and a table at the end."""

import csv
import logging as python_logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback, TrainerState, TrainingArguments
from transformers.utils import logging

from ..files.loading import NEW_MODULES, reports_only
from ..files.whole_files import whole_file


logger = logging.get_logger(__name__)

# Messages of transformers about what is as it should be: control tokens whose rows are added after the config is made,
# a head that is tied to the embeddings, and the summary vectors of a model that starts from a plain base.
EXPECTED = (
    "sum_token_id must be",
    "eoc_token_id must be",
    "missing keys in the checkpoint model loaded: ['lm_head.weight']",
)
# Schedules that know no warm-up.
UNWARMED = ("constant", "reduce_lr_on_plateau", "greedy")


@dataclass(frozen=True)
class Begin:
    """The time at which a training began or went on, and its steps and tokens until then."""

    time: float = 0.0
    step: int = 0
    tokens: int = 0


def short_line(state: TrainerState, logs: dict[str, Any], begin: Begin) -> str:
    """`step 10/100  loss 5.31  learning_rate 0.002  left 0:01:20`; of evaluations, the losses.

    Where tokens are counted (`--include_num_input_tokens_seen`), how many were trained on per second too.
    """
    losses = {name: value for name, value in logs.items() if name.startswith("eval_") and name.endswith("_loss")}
    shown = losses or {name: logs[name] for name in ("loss", "train_loss", "learning_rate") if name in logs}
    parts = [f"step {state.global_step}/{state.max_steps}"]
    parts += [f"{name} {value:.4g}" for name, value in shown.items()]
    done, elapsed = state.global_step - begin.step, time.monotonic() - begin.time
    if "loss" in logs and done > 0:
        if state.num_input_tokens_seen > begin.tokens:
            parts.append(f"tokens/s {(state.num_input_tokens_seen - begin.tokens) / elapsed:,.0f}")
        seconds = elapsed / done * (state.max_steps - state.global_step)
        parts.append(f"left {int(seconds) // 3600}:{int(seconds) % 3600 // 60:02}:{int(seconds) % 60:02}")
    return "  ".join(parts)


class ShortLines(ProgressCallback):
    """The bar of transformers, with one short line in place of all metrics, which the state and the trackers keep."""

    def __init__(self, bars: bool):
        super().__init__()
        self.bars, self.begin = bars, Begin()

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control, **kwargs):
        self.begin = Begin(time.monotonic(), state.global_step, state.num_input_tokens_seen)
        if self.bars:
            super().on_train_begin(args, state, control, **kwargs)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control, **kwargs):
        if self.bars:
            super().on_step_end(args, state, control, **kwargs)

    def on_prediction_step(self, args: TrainingArguments, state: TrainerState, control, **kwargs):
        if self.bars:
            super().on_prediction_step(args, state, control, **kwargs)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control, **kwargs):
        if self.bars:
            super().on_train_end(args, state, control, **kwargs)

    def on_log(self, args: TrainingArguments, state: TrainerState, control, logs=None, **kwargs):
        if not state.is_world_process_zero or state.max_steps == 0:
            return
        line = short_line(state, logs, self.begin)
        print(line, flush=True) if self.training_bar is None else self.training_bar.write(line)


class WarmUpCheck(TrainerCallback):
    """Warns where the learning rate still rises when the run is over."""

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control, **kwargs):
        warm_up, schedule = args.get_warmup_steps(state.max_steps), getattr(args.lr_scheduler_type, "value", "")
        if state.is_world_process_zero and schedule not in UNWARMED and 0 < state.max_steps <= warm_up:
            logger.warning(
                "--warmup_steps %d is as long as the run, %d steps, or longer: the learning rate never gets to %g.",
                warm_up,
                state.max_steps,
                args.learning_rate,
            )


def add_reports(trainer: Trainer):
    """Gives a trainer these callbacks in place of those that print everything."""
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    trainer.add_callback(ShortLines(bars=not trainer.args.disable_tqdm))
    trainer.add_callback(WarmUpCheck())


def is_news(record: python_logging.LogRecord) -> bool:
    """Whether a message of transformers is about anything that is not expected."""
    text = record.getMessage()
    return not any(part in text for part in EXPECTED) and not reports_only(text, NEW_MODULES)


@contextmanager
def expected_messages_are_silent() -> Iterator[None]:
    """Within it, transformers does not say what is as it should be."""
    handlers = [*python_logging.getLogger("transformers").handlers, *python_logging.getLogger().handlers]
    for handler in handlers:
        handler.addFilter(is_news)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(is_news)


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


def metric_rows(name: str, metrics: dict[str, Any], training_args: TrainingArguments) -> list[dict[str, Any]]:
    """Rows of the report on one validation set, one per metric; histograms are left out."""
    prefix = f"eval_{name}_"
    timing = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time")
    return [
        {"set": name, "metric": key.removeprefix(prefix), "value": value}
        for key, value in metrics.items()
        if key.startswith(prefix) and key.removeprefix(prefix) not in timing and not isinstance(value, list)
    ]


__all__ = ["add_reports", "expected_messages_are_silent", "metric_rows", "write_report"]
