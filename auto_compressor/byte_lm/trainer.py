"""Training byte language models: the Trainer with every loss by its name, bits per byte, and state that is carried."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset, Sampler
from transformers import EvalPrediction, Trainer, TrainerCallback
from transformers.integrations import TensorBoardCallback
from transformers.trainer_utils import has_length

from ..training.mixin import StatisticsMixin
from .carried_state import CarriedState, LaneSampler
from .metrics import ENTROPY_BIN, byte_lm_metrics, read_windows


class ForgetAtEpochs(TrainerCallback):
    """An epoch begins with the first windows of all lanes, which go on from nothing."""

    def __init__(self, trainer: "ByteLMTrainer"):
        self.trainer = trainer

    def on_epoch_begin(self, *args, **kwargs):
        self.trainer.carried = None


class ByteLMTrainer(StatisticsMixin, Trainer):
    """
    Trains a byte language model, [`AdaptiveByteForCausalLM`] or [`GRUByteForCausalLM`].

    Reports every loss by its name, and in evaluation the metrics of [`~metrics.byte_lm_metrics`]. With
    `carry_state` in the config of the model, batches have the order of [`LaneSampler`], and a window goes on from the
    state of the one before in its document, without its gradient; checkpoints hold the state of every process.

    Raises:
        ValueError: for a stream of training data with `carry_state`, as it has no lanes.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.carries = self.model.config.carry_state
        self.carried: CarriedState | None = None
        if self.carries and self.train_dataset is not None and not has_length(self.train_dataset):
            raise ValueError("`train_dataset` must have a length with `carry_state`, a stream has no lanes.")
        self.add_callback(ForgetAtEpochs(self))

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        if not self.carries:
            return super()._get_train_sampler(train_dataset)
        num_rows = len(self.train_dataset if train_dataset is None else train_dataset)
        return LaneSampler(num_rows, self.args.train_batch_size * self.args.world_size)

    def evaluation_order(self, dataset: Dataset) -> list[int] | None:
        if not self.carries:
            return super().evaluation_order(dataset)
        return list(LaneSampler(len(dataset), self.args.eval_batch_size * self.args.world_size))

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **kwargs
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        if self.carries:
            inputs["use_cache"] = True
        if self.carried is not None:
            inputs["cache"] = self.carried.first_rows(len(inputs["input_ids"])).cache
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        if self.carries:
            self.carried = CarriedState.after(outputs, inputs["input_ids"], inputs["attention_mask"])
        return (loss, outputs) if return_outputs else loss

    def statistics(self, model: nn.Module, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor]:
        statistics, self.carried = read_windows(
            model, inputs, self.model.config.window_end_target, self.carries, self.carried
        )
        return (statistics,)

    def metrics_of(self, prediction: EvalPrediction) -> dict[str, float | list[int]]:
        return byte_lm_metrics(torch.as_tensor(prediction.predictions[0]))

    def evaluation_loop(self, *args, **kwargs):
        """Training goes on after it from where it was."""
        carried, self.carried = self.carried, None
        output = super().evaluation_loop(*args, **kwargs)
        self.carried = carried
        return output

    def log(self, logs: dict[str, Any], start_time: float | None = None) -> None:
        """Histograms go to the history of the log as counts, and to TensorBoard as what they are."""
        histograms = {name: value for name, value in logs.items() if isinstance(value, list)}
        super().log({name: value for name, value in logs.items() if name not in histograms}, start_time)
        self.state.log_history[-1] |= histograms
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, TensorBoardCallback) and callback.tb_writer is not None:
                for name, counts in histograms.items():
                    edges = ENTROPY_BIN * np.arange(len(counts) + 1)
                    entropies = np.repeat(edges[:-1] + ENTROPY_BIN / 2, counts)
                    callback.tb_writer.add_histogram(name, entropies, self.state.global_step, bins=edges)

    # The states of all processes are saved and loaded where those of the random numbers are.

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        # At the end of an epoch nothing is carried on.
        if self.carried is not None and self.state.epoch % 1:
            self.carried.save(self.state_file(output_dir))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if checkpoint is not None and self.carries and self.state_file(checkpoint).exists():
            self.carried = CarriedState.load(self.state_file(checkpoint), self.args.device)

    def state_file(self, folder: str) -> Path:
        return Path(folder) / f"carried_state_{self.args.process_index}.safetensors"


__all__ = ["ByteLMTrainer"]
