"""What is a context worth: perplexity of a text without it, with its summary vectors, and with all of it."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from .losses import summed_cross_entropy


@dataclass
class ContextResult:
    """
    How well a model predicts the ends of texts, given their beginnings in one form.

    Args:
        context (`str`): The form: none, summary vectors, those of another text (the control), or all tokens.
        seen (`int`): Columns in front of the texts that were attended to, summed over the texts.
        texts (`int`): Texts predicted.
        nll (`float`): Summed negative log-likelihood of the predicted tokens, in nats.
        correct (`int`), tokens (`int`): Tokens predicted right, and predicted.
    """

    context: str
    seen: int = 0
    texts: int = 0
    nll: float = 0.0
    correct: int = 0
    tokens: int = 0

    @property
    def positions(self) -> float:
        """Columns that the context takes up in front of a text, on average."""
        return self.seen / self.texts

    @property
    def perplexity(self) -> float:
        return math.exp(self.nll / self.tokens)

    @property
    def accuracy(self) -> float:
        return self.correct / self.tokens

    def add(self, logits: torch.Tensor, targets: torch.LongTensor, seen: int):
        """Counts a batch: `logits` `(batch, length, vocab_size)` for `targets` `(batch, length)`."""
        self.seen += seen
        self.texts += targets.shape[0]
        self.nll += summed_cross_entropy(logits, targets).item()
        self.correct += (logits.argmax(dim=-1) == targets).sum().item()
        self.tokens += targets.numel()


NO_CONTEXT, SUMMARY, OTHER_SUMMARY, FULL_CONTEXT = (
    "no context",
    "summary vectors",
    "summary vectors of another text",
    "full context",
)
FULL_CONTEXT_ITSELF = "full context (this model)"


@torch.no_grad()
def compare_contexts(
    model: PreTrainedModel,
    batches: Iterable[torch.LongTensor],
    segment_lengths: list[int],
    full_context_model: PreTrainedModel | None = None,
    max_summary_length: int | None = None,
) -> list[ContextResult]:
    """
    Predicts the last segment of each text after four forms of the segments before it.

    All forms are scored on the same tokens: the last segment without its first token. The control gives every text
    the summary vectors of its neighbour in the batch; if they helped as much, they would not be about the text.

    Args:
        model (`PreTrainedModel`): An AutoCompressor, in evaluation mode.
        batches (`Iterable[torch.LongTensor]`): Texts `(batch_size of 2 or more, length)`, on the model's device.
        segment_lengths (`list[int]`): Two or more segments that sum to `length`; the last one is predicted.
        full_context_model (`PreTrainedModel`, *optional*): Reads the whole context in place of `model`. A row of
            `model` itself is named as such: a compressor was not trained to read so much at once.
        max_summary_length (`int`, *optional*): Most summary vectors per segment.

    Returns:
        `list[ContextResult]`: One for each form.

    Raises:
        ValueError: if there is no batch, or one has fewer than two rows, or there are fewer than two segments.
    """
    if len(segment_lengths) < 2:
        raise ValueError(f"`segment_lengths` needs a context and a text, two or more segments, got {segment_lengths}.")
    full_context = FULL_CONTEXT_ITSELF if full_context_model is None else FULL_CONTEXT
    results = {name: ContextResult(name) for name in (NO_CONTEXT, SUMMARY, OTHER_SUMMARY, full_context)}
    context_length, length = sum(segment_lengths[:-1]), segment_lengths[-1]
    for batch in batches:
        if batch.shape[0] < 2:
            raise ValueError("`batches` must have two or more rows: the control exchanges their summary vectors.")
        context, text = batch.split([context_length, length], dim=1)
        budget = {"max_summary_length": max_summary_length, "return_attention_mask": True}
        summary = model.compress(context, segment_lengths=segment_lengths[:-1], **budget)
        other = tuple(tensor.roll(1, dims=0) for tensor in summary)
        for name, (softprompt, mask) in ((NO_CONTEXT, (None, None)), (SUMMARY, summary), (OTHER_SUMMARY, other)):
            outputs = model(text, softprompt=softprompt, softprompt_attention_mask=mask, use_cache=False)
            results[name].add(outputs.logits[:, :-1], text[:, 1:], 0 if mask is None else int(mask.sum()))
        logits = (full_context_model or model)(batch, use_cache=False, logits_to_keep=length).logits[:, :-1]
        results[full_context].add(logits, text[:, 1:], context.numel())
    if not results[NO_CONTEXT].tokens:
        raise ValueError("`batches` must hold at least one batch of texts.")
    return list(results.values())


__all__ = ["ContextResult", "compare_contexts"]
