"""What the trainers of all families add to that of transformers."""

import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from huggingface_hub import CommitInfo
from torch import nn
from torch.utils._pytree import tree_map_only
from transformers import (
    EvalPrediction,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import EvalLoopOutput, HubStrategy, has_length
from transformers.utils import PushInProgress, logging

from ..files.hub import start_push
from .muon import muon_with_adamw


if TYPE_CHECKING:  # what a mixin stands in front of
    from transformers import Trainer
else:
    Trainer = object

logger = logging.get_logger(__name__)


def longest_first(dataset: Any) -> list[int] | None:
    """The places of rows by their length, equal ones in their order; `None` if lengths are not known beforehand."""
    if not isinstance(dataset, Dataset) or "input_ids" not in dataset.column_names:
        return None
    lengths = [len(row) for row in dataset["input_ids"]]
    return sorted(range(len(lengths)), key=lambda place: -lengths[place])


class SaveOnTime(TrainerCallback):
    """Asks for a checkpoint when the last one is `minutes` old. The clock of the first process counts for all."""

    def __init__(self, minutes: float):
        self.seconds = minutes * 60
        self.saved_at = time.monotonic()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        is_due = [time.monotonic() - self.saved_at >= self.seconds]
        if broadcast_object_list(is_due)[0]:
            control.should_save = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        self.saved_at = time.monotonic()


class TrainerMixin(Trainer):
    """
    Goes before [`~transformers.Trainer`] among the bases of a trainer whose steps `track` values by name.

    With every loss that the Trainer logs go their means over the optimisation steps since the last report, and over
    processes. A finished run that is resumed takes no further step. Evaluation reads rows of similar length together,
    so that little is padded, and returns them in their order. With `optim_family` muon in its arguments, the
    optimizer is [`~muon.MuonWithAdamW`]. What is pushed to the hub during a run is what [`push_folder`] would push.
    """

    args: Any  # the arguments of the Trainer

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if (minutes := getattr(self.args, "save_minutes", None)) is not None:
            self.add_callback(SaveOnTime(minutes))
        self.sums: dict[str, torch.Tensor] = {}
        self.last_logged_step = 0

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        # The arguments may be those of transformers, which know no `optim_family`.
        if self.optimizer is None and getattr(self.args, "optim_family", "adamw") == "muon":
            self.optimizer = muon_with_adamw(
                self.model if model is None else model,
                muon_heads=self.args.muon_heads,
                muon_scale=self.args.muon_scale,
                lr=self.args.learning_rate,
                weight_decay=self.args.weight_decay,
                betas=(self.args.adam_beta1, self.args.adam_beta2),
                eps=self.args.adam_epsilon,
            )
        return super().create_optimizer(model)

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, torch.Tensor | int | None]:
        """The batches of one step; none for a finished run that is resumed, where transformers takes one step more."""
        if self.state.global_step >= self.state.max_steps:
            return [], None
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    def _init_training_state(
        self, max_steps: int, steps_per_epoch: int, num_epochs: int, checkpoint: str | None, trial: Any
    ) -> tuple[int, int]:
        """The passes over the data that are done, and the batches of the next one: of a stream, as it was left."""
        begin = super()._init_training_state(max_steps, steps_per_epoch, num_epochs, checkpoint, trial)
        if checkpoint is None or self.state.epoch is None or has_length(self.train_dataset):
            return begin
        passes, batches = self.place_in_stream(checkpoint)
        return passes, 0 if self.args.ignore_data_skip else batches

    def place_in_stream(self, checkpoint: str) -> tuple[int, int]:
        """
        The passes over a stream before the one that a checkpoint was written in, and the batches read of that one.

        The length of a stream is not known. Transformers takes it to be `max_steps`, and resumes as if a pass were as
        long as that; but `epoch` in its state counts passes, and of the last one the steps as shares of `max_steps`.
        """
        saved = TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME))
        passes = max(0, math.ceil(saved.epoch) - 1)
        steps = round((saved.epoch - passes) * saved.max_steps)
        return passes, steps * self.args.gradient_accumulation_steps

    def _push_from_checkpoint(self, checkpoint_folder: str):
        """Pushes the model of a checkpoint in the background; where whole checkpoints are asked for, as they are."""
        args = self.args
        if args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            return super()._push_from_checkpoint(checkpoint_folder)
        jobs = [] if self.push_in_progress is None else [job for job in self.push_in_progress.jobs if not job.done()]
        waits = jobs and not args.hub_always_push
        if waits or args.hub_strategy == HubStrategy.END or not self.is_world_process_zero():
            return None
        self.callback_handler.on_push_begin(args, self.state, self.control)
        options = {"commit_message": f"Training in progress, step {self.state.global_step}", "token": args.hub_token}
        try:
            job = start_push(checkpoint_folder, self.hub_model_id, revision=args.hub_revision, **options)
        except OSError as error:  # as a disk that is full; the next checkpoint is pushed again
            logger.warning("The checkpoint %s is not pushed: %s", checkpoint_folder, error)
        else:
            self.push_in_progress = PushInProgress([*jobs, job])
        return None

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> "CommitInfo | Future[CommitInfo] | None":
        """As in transformers; `kwargs` are those of `create_model_card`."""
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self.create_model_card(**{"model_name": self.hub_model_id.split("/")[-1], **kwargs})
        self._finish_current_push()
        options = {"commit_message": commit_message, "token": token or self.args.hub_token}
        options["revision"] = revision or self.args.hub_revision
        job = start_push(self.args.output_dir, self.hub_model_id, **options)
        return job.result() if blocking else job

    def evaluation_order(self, dataset: Any) -> list[int] | None:
        """The places of the rows in the order in which they are read; `None` for what transformers does."""
        return longest_first(dataset)

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        order = self.evaluation_order(eval_dataset)
        return super()._get_eval_sampler(eval_dataset) if order is None else order

    def evaluation_loop(self, dataloader: Any, *args, **kwargs) -> EvalLoopOutput:
        output, order = super().evaluation_loop(dataloader, *args, **kwargs), self.evaluation_order(dataloader.dataset)
        if order is None:
            return output

        def in_order(rows: np.ndarray) -> np.ndarray:
            return rows[np.argsort(order[: len(rows)])]

        predictions, labels = tree_map_only(np.ndarray, in_order, (output.predictions, output.label_ids))
        return output._replace(predictions=predictions, label_ids=labels)

    def track(self, name: str, value: torch.Tensor):
        """Adds to what is reported; of several batches in one step, every one adds its share."""
        if not self.sums:
            self.last_logged_step = self.state.global_step
        self.sums[name] = self.sums.get(name, 0) + value

    def track_losses(self, losses: dict[str, torch.Tensor]):
        """Tracks the losses of one batch by their names."""
        for name, value in losses.items():
            self.track(f"{name}_loss", value.detach() / self.current_gradient_accumulation_steps)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self.sums:
            steps = self.state.global_step - self.last_logged_step
            means = self.accelerator.reduce(torch.stack([*self.sums.values()]).float() / steps, reduction="mean")
            logs = logs | dict(zip(self.sums, means.tolist(), strict=True))
            self.sums = {}
        super().log(logs, start_time)


class StatisticsMixin(TrainerMixin):
    """
    [`TrainerMixin`] for models whose outputs hold `losses` by name, and whose evaluation counts.

    A trainer says in `statistics` what is counted on a batch, tensors `(batch_size, ...)`, and in `metrics_of` what
    the figures of all rows are, so that they depend on neither batches nor processes.
    """

    statistics: Callable[[nn.Module, dict[str, torch.Tensor]], tuple[torch.Tensor, ...]]
    metrics_of: Callable[[EvalPrediction], dict[str, Any]]

    def __init__(self, *args, **kwargs):
        super().__init__(*args, compute_metrics=self.metrics_of, **kwargs)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **kwargs
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        self.track_losses(outputs.losses)
        return (loss, outputs) if return_outputs else loss

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[None, tuple[torch.Tensor, ...], torch.Tensor]:
        """Returns no loss, the statistics as predictions, and a placeholder."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            statistics = self.statistics(self.accelerator.unwrap_model(model), inputs)
        return None, statistics, statistics[0][:, 0]


__all__ = ["StatisticsMixin", "TrainerMixin"]
