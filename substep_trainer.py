"""Training AutoCompressors by truncated back-propagation through time (paper, section 3.3).

A sequence is cut into substeps, and a substep into segments. Every substep has its own forward and backward pass; the
summary vectors go on to the next one without their gradient, and the gradients of all substeps add up.
"""

import math
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import EvalPrediction, Trainer

from args import TrainingArguments
from auto_compressor import AutoCompressorOutput
from auto_compressor.losses import shift_labels_left


def random_segment_lengths(length: int, num_segments: int, max_position_embeddings: int) -> list[int]:
    """
    Draws the lengths of `num_segments` segments of `length` tokens, uniformly over those that are allowed.

    Every segment is long enough that the others together can never leave more than `max_position_embeddings` tokens
    to one segment, and at least 2 tokens long.

    Raises:
        ValueError: if that many segments do not fit.
    """
    if num_segments == 1:
        return [length]
    shortest = max(math.ceil((length - max_position_embeddings) / (num_segments - 1)), 2)
    spare = length - shortest * num_segments
    if num_segments - 1 > spare:
        raise ValueError(
            f"`num_segments` = {num_segments} segments of at least {shortest} tokens do not fit into {length} tokens."
        )
    borders = torch.randperm(spare)[: num_segments - 1].sort().values
    ends = torch.tensor([0, *borders.tolist(), spare])
    return (shortest + ends.diff()).tolist()


def equal_parts(length: int, num_parts: int) -> list[int]:
    """Cuts `length` into `num_parts` parts whose ends are the truncated multiples of `length / num_parts`."""
    return torch.linspace(0, length, num_parts + 1, dtype=torch.long).diff().tolist()


def segment_statistics(
    logits: torch.Tensor, targets: torch.LongTensor, segment_lengths: list[int]
) -> torch.DoubleTensor:
    """
    Sums over each segment: negative log-likelihood in nats, correct predictions, targets.

    Args:
        logits (`torch.Tensor` of shape `(batch, length, vocab_size)`): Predictions at every token.
        targets (`torch.LongTensor` of shape `(batch, length)`): The token after each; -100 is ignored.
        segment_lengths (`list[int]`): Sums to `length`.

    Returns:
        `torch.DoubleTensor` of shape `(batch, segments, 3)`.
    """
    is_target = targets != -100
    nll = F.cross_entropy(logits.float().transpose(1, 2), targets, ignore_index=-100, reduction="none")
    correct = (logits.argmax(dim=-1) == targets) & is_target
    statistics = torch.stack([nll.double(), correct.double(), is_target.double()], dim=-1)  # (batch, length, 3)
    return torch.stack([segment.sum(dim=1) for segment in statistics.split(segment_lengths, dim=1)], dim=1)


def summarize_statistics(statistics: np.ndarray) -> dict[str, float]:
    """Perplexity, accuracy and tokens from sums `(..., 3)` of [nll, correct, targets]; without targets only tokens."""
    nll, correct, tokens = statistics.reshape(-1, 3).sum(axis=0)
    if tokens == 0:
        return {"tokens": 0}
    return {"perplexity": float(np.exp(nll / tokens)), "accuracy": float(correct / tokens), "tokens": int(tokens)}


def carried_over(outputs: AutoCompressorOutput) -> dict[str, torch.Tensor]:
    """What the next substep starts from: the summary vectors without their gradient, and their mask."""
    return {
        "softprompt": outputs.softprompt.detach(),
        "softprompt_attention_mask": outputs.softprompt_attention_mask,
    }


class SubstepTrainer(Trainer):
    """
    [`~transformers.Trainer`] that makes one backward pass per substep, with detached summary vectors in between.

    The loss of a step is the mean over all its target tokens, whatever batch, process or substep they are in. Its
    gradient is the sum over substeps of the gradient of their mean losses: `training_substeps` times that of the
    whole mean. Evaluation reports perplexity and accuracy in all, per substep and per segment.

    Args:
        args ([`TrainingArguments`]): Those of this project.
        kwargs: As for [`~transformers.Trainer`].

    Raises:
        ValueError: for `label_smoothing_factor`, which the chunked loss does not have.
    """

    def __init__(self, model=None, args: TrainingArguments | None = None, **kwargs):
        if args is not None and args.label_smoothing_factor != 0:
            raise ValueError(f"`label_smoothing_factor` must be 0 for substeps, got {args.label_smoothing_factor}.")
        kwargs.setdefault("compute_metrics", self.segment_metrics)
        super().__init__(model, args, **kwargs)
        self.carried: dict[str, torch.Tensor] = {}
        self.substep_losses, self.last_logged_step = None, 0

    def crop_to_segments(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Keeps the last tokens of a batch, as many as fixed `segment_lengths` take in."""
        if not self.args.segment_lengths or (self.args.randomize_substeps and self.model.training):
            return inputs
        length = sum(self.args.segment_lengths) * self.args.training_substeps
        if inputs["input_ids"].shape[1] < length:
            raise ValueError(
                f"`segment_lengths` {self.args.segment_lengths} in {self.args.training_substeps} substeps take"
                f" {length} tokens, a sequence has {inputs['input_ids'].shape[1]}."
            )
        return {name: tensor[:, -length:] for name, tensor in inputs.items()}

    def segment_lengths(self, length: int) -> list[int]:
        """Lengths of the segments of one substep: drawn in training if so asked, else fixed, else equal."""
        if self.args.randomize_substeps and self.model.training:
            longest = self.model.config.max_position_embeddings
            return random_segment_lengths(length, self.args.segments_per_substep, longest)
        return self.args.segment_lengths or equal_parts(length, self.args.segments_per_substep)

    def split_substeps(self, inputs: dict[str, torch.Tensor]) -> tuple[list[dict[str, Any]], list[list[int]]]:
        """
        Cuts a batch into the arguments of the model for each substep.

        Args:
            inputs: `input_ids`, `attention_mask` and `labels`, each `(batch, length)`.

        Returns:
            The substeps (one only with full attention), and for each the lengths by which its losses are reported.
        """
        inputs = self.crop_to_segments(inputs)
        lengths = equal_parts(inputs["input_ids"].shape[1], self.args.training_substeps)
        segments = [self.segment_lengths(length) for length in lengths]
        if self.args.full_attention:
            lengths, segments = [sum(lengths)], [sum(segments, [])]
        parts = {name: tensor.split(lengths, dim=1) for name, tensor in inputs.items()}
        labels = parts.pop("labels")
        targets = shift_labels_left(torch.cat(labels, dim=1)).split(lengths, dim=1)
        if not self.args.predict_substep_borders:
            targets = [shift_labels_left(part) for part in labels]
        substeps = [
            {name: part[index] for name, part in parts.items()}
            | {
                "shift_labels": targets[index],
                "segment_lengths": None if self.args.full_attention else segments[index],
                # Nobody reads the summary of the last substep.
                "output_softprompt": index < len(lengths) - 1,
                "use_cache": False,
            }
            for index in range(len(lengths))
        ]
        return substeps, segments

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, torch.Tensor | int | None]:
        """The batches of one step; none for a finished run that is resumed, where transformers takes one step more."""
        if self.state.global_step >= self.state.max_steps:
            return [], None
        self.model.train()  # an evaluation, which crops otherwise, may be just over
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> torch.Tensor | int | None:
        return super()._get_num_items_in_batch([self.crop_to_segments(batch) for batch in batch_samples], device)

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """One backward pass per substep; returns the mean of their losses. Gradients are synchronised in the last."""
        model.train()
        substeps, _ = self.split_substeps(self._prepare_inputs(inputs))
        if not self.args.predict_substep_borders:
            num_items_in_batch = None
        elif num_items_in_batch is not None:
            num_items_in_batch = num_items_in_batch.clamp(min=1) / len(substeps)
        losses, self.carried = [], {}
        for substep in substeps:
            is_last = substep is substeps[-1]
            with nullcontext() if is_last else self.accelerator.no_sync(model):
                losses.append(super().training_step(model, substep, num_items_in_batch))
        self.carried = {}
        if self.substep_losses is None:
            self.substep_losses, self.last_logged_step = torch.zeros_like(torch.stack(losses)), self.state.global_step
        self.substep_losses += torch.stack(losses)
        return torch.stack(losses).mean()

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """The loss of one substep, after the summary vectors of the one before and without its logits."""
        inputs = inputs | self.carried | {"skip_logits": True}
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        self.carried = carried_over(outputs)
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the loss of every substep, the mean over the steps since the last report."""
        if "loss" in logs and self.substep_losses is not None:
            steps = self.state.global_step - self.last_logged_step
            losses = self.accelerator.reduce(self.substep_losses / steps, reduction="mean").tolist()
            logs = logs | {f"substep_{index}_loss": loss for index, loss in enumerate(losses)}
            self.substep_losses = None
        super().log(logs, start_time)

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[None, torch.Tensor, torch.Tensor]:
        """Returns no loss, the statistics `(batch, substeps, segments, 3)` as predictions, and a placeholder."""
        substeps, segments = self.split_substeps(self._prepare_inputs(inputs))
        statistics, carried = [], {}
        with torch.no_grad(), self.compute_loss_context_manager():
            for substep, lengths in zip(substeps, segments, strict=True):
                targets = substep.pop("shift_labels")
                outputs = model(**substep, **carried)
                carried = carried_over(outputs)
                statistics.append(segment_statistics(outputs.logits, targets, lengths))
        statistics = torch.cat(statistics, dim=1).unflatten(1, (self.args.training_substeps, -1))
        return None, statistics, statistics[..., 2]

    @staticmethod
    def segment_metrics(prediction: EvalPrediction) -> dict[str, float]:
        """Metrics of all tokens, of every substep and of every segment, from the sums of `prediction_step`."""
        statistics = prediction.predictions  # (sequences, substeps, segments, 3)
        metrics = summarize_statistics(statistics)
        metrics["loss"] = math.log(metrics["perplexity"]) if metrics["tokens"] else 0.0
        for substep in range(statistics.shape[1]):
            prefix = f"substep_{substep}_"
            metrics |= prefixed(prefix, summarize_statistics(statistics[:, substep]))
            for segment in range(statistics.shape[2]):
                values = summarize_statistics(statistics[:, substep, segment])
                metrics |= prefixed(f"{prefix}segment_{segment}_", values)
        return metrics


def prefixed(prefix: str, metrics: dict[str, float]) -> dict[str, float]:
    return {prefix + name: value for name, value in metrics.items()}


__all__ = ["SubstepTrainer", "equal_parts", "random_segment_lengths", "segment_statistics", "summarize_statistics"]
