"""Training continuous text autoencoders: the Trainer with every loss by its name, and what comes back of a text."""

import torch
from torch import nn
from transformers import EvalPrediction, Trainer, TrainerCallback, TrainingArguments

from ..training.mixin import StatisticsMixin
from .metrics import continuous_metrics, continuous_statistics


class SeedProcesses(TrainerCallback):
    """Gives every process noise of its own; the order of the data is drawn before."""

    def on_train_begin(self, args: TrainingArguments, *others, **kwargs):
        torch.manual_seed(args.seed + args.process_index)


class ContinuousTrainer(StatisticsMixin, Trainer):
    """
    Trains a [`ContinuousTextAutoencoder`].

    Reports every loss by its name. Evaluation decodes the means of the latents, with the metrics of
    [`~metrics.continuous_metrics`].
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.add_callback(SeedProcesses())

    def statistics(self, model: nn.Module, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor]:
        return (continuous_statistics(model, inputs["input_ids"], inputs["attention_mask"]),)

    def metrics_of(self, prediction: EvalPrediction) -> dict[str, float]:
        return continuous_metrics(torch.as_tensor(prediction.predictions[0]))


__all__ = ["ContinuousTrainer"]
