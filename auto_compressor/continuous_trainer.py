"""Training continuous text autoencoders: the Trainer with every loss by its name, and what comes back of a text."""

from typing import Any

import torch
from torch import nn
from transformers import EvalPrediction, Trainer, TrainerCallback, TrainingArguments

from .evaluation.continuous import continuous_metrics, continuous_statistics
from .trainer_mixin import TrainerMixin


class SeedProcesses(TrainerCallback):
    """Gives every process noise of its own; the order of the data is drawn before."""

    def on_train_begin(self, args: TrainingArguments, *others, **kwargs):
        torch.manual_seed(args.seed + args.process_index)


class ContinuousTrainer(TrainerMixin, Trainer):
    """
    Trains a [`ContinuousTextAutoencoder`].

    Reports every loss by its name. Evaluation decodes the means of the latents, with the metrics of
    [`~evaluation.continuous.continuous_metrics`].
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, compute_metrics=self.metrics_of, **kwargs)
        self.add_callback(SeedProcesses())

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
    ) -> tuple[None, torch.Tensor, torch.Tensor]:
        """Returns no loss, the statistics `(batch, counts)` as predictions, and a placeholder."""
        inputs = self._prepare_inputs(inputs)
        with self.compute_loss_context_manager():
            statistics = continuous_statistics(
                self.accelerator.unwrap_model(model), inputs["input_ids"], inputs["attention_mask"]
            )
        return None, statistics, statistics[:, 0]

    def metrics_of(self, prediction: EvalPrediction) -> dict[str, float]:
        return continuous_metrics(torch.as_tensor(prediction.predictions))


__all__ = ["ContinuousTrainer"]
