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
from transformers import EvalPrediction, PreTrainedModel, Trainer

from ..training.mixin import TrainerMixin
from .arguments import TrainingArguments
from .gating import survival
from .losses import shift_labels_left
from .objectives import distillation_loss, reconstruction_loss
from .outputs import AutoCompressorOutput, SegmentSummary
from .segments import append_sum_tokens


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


def vectors_per_segment(outputs: AutoCompressorOutput, num_segments: int) -> torch.DoubleTensor:
    """Summary vectors that every segment left, `(batch, num_segments)`; 0 for segments that were not compressed."""
    batch_size = outputs.softprompt.shape[0]
    counts = outputs.softprompt.new_zeros(batch_size, num_segments, dtype=torch.double)
    for index, summary in enumerate(outputs.summaries):
        num_vectors = summary.vectors.shape[1] if summary.weights is None else summary.weights.sum(dim=1)
        counts[:, index] = num_vectors
    return counts


def summarize_statistics(statistics: np.ndarray) -> dict[str, float]:
    """
    Perplexity, accuracy and tokens, and the summary vectors per sequence; without targets the latter two only.

    Args:
        statistics (`np.ndarray` of shape `(sequences, ..., 4)`): Sums of [nll, correct, targets, vectors].
    """
    nll, correct, tokens, vectors = statistics.reshape(-1, 4).sum(axis=0)
    counts = {"tokens": int(tokens), "vectors": float(vectors / len(statistics))}
    if tokens == 0:
        return counts
    return {"perplexity": float(np.exp(nll / tokens)), "accuracy": float(correct / tokens)} | counts


def length_statistics(summary: SegmentSummary, threshold: float) -> dict[str, torch.Tensor]:
    """Means over the rows that were compressed: expected length, length by the hard rule, probability of stopping."""
    compressed = summary.weights.detach()[:, 0]  # s_1 is 1
    stop_probs = summary.stop_probs.detach()
    realised = survival(stop_probs, threshold).sum(dim=1)
    rows = {"expected_length": summary.weights.detach().sum(dim=1), "realised_length": realised}
    rows["stop_prob"] = stop_probs.mean(dim=1)
    count = compressed.sum().clamp(min=1)
    return {name: (values * compressed).sum() / count for name, values in rows.items()}


def draw_summary_length(most: int) -> int:
    """The full budget every other time, else one drawn log-uniformly from 1 to `most`: small ones differ the most."""
    is_full, share = torch.rand(2).tolist()
    return most if is_full < 0.5 else int((most + 1) ** share)


def carried_over(outputs: AutoCompressorOutput) -> dict[str, torch.Tensor]:
    """What the next substep starts from: the summary vectors without their gradient, and their mask."""
    return {
        "softprompt": outputs.softprompt.detach(),
        "softprompt_attention_mask": outputs.softprompt_attention_mask.detach(),
    }


class SubstepTrainer(TrainerMixin, Trainer):
    """
    [`~transformers.Trainer`] that makes one backward pass per substep, with detached summary vectors in between.

    The loss of a step is the mean over all its target tokens, whatever batch, process or substep they are in. Its
    gradient is the sum over substeps of the gradient of their mean losses: `training_substeps` times that of the
    whole mean. Evaluation reports perplexity, accuracy and summary vectors in all, per substep and per segment.

    Args:
        args ([`TrainingArguments`]): The arguments of this package, not those of transformers alone.
        teacher ([`~transformers.PreTrainedModel`], *optional*): Full-context model of `distillation_weight`.
        kwargs: As for [`~transformers.Trainer`].

    Raises:
        ValueError: for `label_smoothing_factor`, which the chunked loss does not have; for `distillation_weight`
            without a teacher; for `reconstruction_weight` without an end-of-text token.
    """

    def __init__(
        self,
        model=None,
        args: TrainingArguments | None = None,
        teacher: PreTrainedModel | None = None,
        **kwargs,
    ):
        if args is not None and args.label_smoothing_factor != 0:
            raise ValueError(f"`label_smoothing_factor` must be 0 for substeps, got {args.label_smoothing_factor}.")
        if args is not None and args.distillation_weight > 0 and teacher is None:
            raise ValueError(f"`distillation_weight` {args.distillation_weight} needs a `teacher`.")
        if args is not None and args.reconstruction_weight > 0 and model.config.end_of_text_id is None:
            raise ValueError(
                f"`reconstruction_weight` {args.reconstruction_weight} needs an `eos_token_id`, got None."
            )
        kwargs.setdefault("compute_metrics", self.segment_metrics)
        super().__init__(model, args, **kwargs)
        self.teacher = None if teacher is None else teacher.to(self.args.device).eval().requires_grad_(False)
        self.carried: dict[str, torch.Tensor] = {}
        self.observed: dict[str, torch.Tensor] = {}

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
            return random_segment_lengths(length, self.args.segments_per_substep, self.longest_segment())
        return self.args.segment_lengths or equal_parts(length, self.args.segments_per_substep)

    def longest_segment(self) -> int:
        """Most tokens of a segment that is drawn; those of the summary vectors are not among them."""
        config = self.model.config
        longest = config.max_position_embeddings - config.variable_length
        if not self.model.shares_position_table:
            return longest
        num_segments = self.args.training_substeps * self.args.segments_per_substep
        return longest - config.max_vectors * (num_segments - 1)

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
        targets = shift_labels_left(inputs["labels"]).split(lengths, dim=1)
        if not self.args.predict_substep_borders:
            targets = [shift_labels_left(part) for part in inputs["labels"].split(lengths, dim=1)]
        texts = {name: inputs[name].split(lengths, dim=1) for name in ("input_ids", "attention_mask")}
        substeps = []
        for index in range(len(lengths)):
            substep = {name: part[index] for name, part in texts.items()} | {"shift_labels": targets[index]}
            if self.model.config.variable_length:
                sum_token_id = self.model.config.sum_token_id
                substep, segments[index] = append_sum_tokens(substep, segments[index], sum_token_id)
            substep["segment_lengths"] = None if self.args.full_attention else segments[index]
            # Nobody reads the summary of the last substep.
            substep |= {"output_softprompt": index < len(lengths) - 1, "use_cache": False}
            substeps.append(substep)
        return substeps, segments

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, torch.Tensor | int | None]:
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
        inputs = self._prepare_inputs(inputs)
        substeps, segments = self.split_substeps(inputs)
        if self.teacher is not None:
            self.add_teacher_states(substeps, segments, self.crop_to_segments(inputs))
        if not self.args.predict_substep_borders:
            num_items_in_batch = None
        elif num_items_in_batch is not None:
            num_items_in_batch = num_items_in_batch.clamp(min=1) / len(substeps)
        losses, self.carried = [], {}
        for index, substep in enumerate(substeps):
            with nullcontext() if substep is substeps[-1] else self.accelerator.no_sync(model):
                losses.append(super().training_step(model, substep, num_items_in_batch))
            self.track(f"substep_{index}_loss", losses[-1])
            for name, value in self.observed.items():
                self.track(f"substep_{index}_{name}", value / self.current_gradient_accumulation_steps)
        self.carried = {}
        return torch.stack(losses).mean()

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """The loss of one substep, after the summary vectors of the one before and without its logits."""
        teacher_states = inputs.pop("teacher_states", None)
        options = {"skip_logits": True, "use_liger_kernel": self.args.use_liger_kernel}
        inputs = inputs | self.carried | options
        if self.args.nested_summaries:
            inputs["max_summary_length"] = draw_summary_length(self.model.config.max_vectors)
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        self.carried = carried_over(outputs)
        self.observed = self.length_metrics(outputs)
        objectives = self.objectives(model, inputs, outputs, teacher_states)
        self.observed |= {name: value.detach() for name, (_, value) in objectives.items()}
        if objectives:
            total = sum(weight * value for weight, value in objectives.values())
            loss = loss + total * self.share_of_targets(inputs["shift_labels"], num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def length_metrics(self, outputs: AutoCompressorOutput) -> dict[str, torch.Tensor]:
        """Lengths and stop probability of every segment, and the penalty; nothing where the length is fixed."""
        if outputs.length_penalty is None:
            return {}
        metrics = {"length_penalty": outputs.length_penalty.detach()}
        threshold = self.model.config.stop_threshold
        for index, summary in enumerate(outputs.summaries):
            metrics |= prefixed(f"segment_{index}_", length_statistics(summary, threshold))
        return metrics

    def objectives(
        self, model: nn.Module, inputs: dict[str, Any], outputs: AutoCompressorOutput, teacher_states
    ) -> dict[str, tuple[float, torch.Tensor]]:
        """The further objectives that are asked for: weight and mean loss of each, by name."""
        objectives, weight = {}, self.args.reconstruction_weight
        if weight > 0 and outputs.summaries:
            lengths = inputs["segment_lengths"]
            texts = zip(*(inputs[name].split(lengths, dim=1) for name in ("input_ids", "attention_mask")), strict=True)
            # `<sum>` ends a segment and is no text.
            end = -1 if self.model.config.variable_length else None
            segments = [{"input_ids": ids[:, :end], "attention_mask": mask[:, :end]} for ids, mask in texts]
            # No text begins with the end-of-text token: it is the autoencoding prompt.
            loss = reconstruction_loss(model, segments, outputs.summaries, self.model.config.end_of_text_id)
            objectives["reconstruction_loss"] = (weight, loss)
        if teacher_states is not None:
            student = self.accelerator.unwrap_model(model)
            states = (outputs.last_hidden_state, self.teacher, teacher_states)
            loss = distillation_loss(student, *states, inputs["shift_labels"] != -100)
            objectives["distillation_loss"] = (self.args.distillation_weight, loss)
        return objectives

    def share_of_targets(
        self, targets: torch.LongTensor, num_items_in_batch: torch.Tensor | None
    ) -> torch.Tensor | int:
        """What a mean over `targets` weighs beside the loss, which is a sum divided by `num_items_in_batch`."""
        if num_items_in_batch is None:
            return 1
        num_processes = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
        return (targets != -100).sum() * num_processes / num_items_in_batch.to(targets.device)

    @torch.no_grad()
    def add_teacher_states(self, substeps: list[dict], segments: list[list[int]], inputs: dict[str, torch.Tensor]):
        """Gives every substep the teacher's last hidden states at its tokens, after a pass over the whole text."""
        text = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        with self.compute_loss_context_manager():
            states = self.teacher(**text, skip_logits=True, use_cache=False).last_hidden_state
        has_sum = self.model.config.variable_length
        lengths = [length - has_sum for lengths in segments for length in lengths]
        # A column of zeros stands for `<sum>`, which has no target.
        padded = [F.pad(part, (0, 0, 0, int(has_sum))) for part in states.split(lengths, dim=1)]
        states = torch.cat(padded, dim=1).split([substep["input_ids"].shape[1] for substep in substeps], dim=1)
        for substep, part in zip(substeps, states, strict=True):
            substep["teacher_states"] = part

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[None, torch.Tensor, torch.Tensor]:
        """Returns no loss, the statistics `(batch, substeps, segments, 4)` as predictions, and a placeholder."""
        substeps, segments = self.split_substeps(self._prepare_inputs(inputs))
        statistics, carried = [], {}
        with torch.no_grad(), self.compute_loss_context_manager():
            for substep, lengths in zip(substeps, segments, strict=True):
                targets = substep.pop("shift_labels")
                outputs = model(**substep, **carried)
                carried = carried_over(outputs)
                predictions = segment_statistics(outputs.logits, targets, lengths)
                vectors = vectors_per_segment(outputs, len(lengths))
                statistics.append(torch.cat([predictions, vectors[..., None]], dim=-1))
        statistics = torch.cat(statistics, dim=1).unflatten(1, (self.args.training_substeps, -1))
        return None, statistics, statistics[..., 2]

    @staticmethod
    def segment_metrics(prediction: EvalPrediction) -> dict[str, float]:
        """Metrics of all tokens, of every substep and of every segment, from the sums of `prediction_step`."""
        statistics = prediction.predictions  # (sequences, substeps, segments, 4)
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
