"""Whether the logits of a causal language model depend on nothing that comes later, on every path to them.

The logits of a whole text are compared, at every position, with those of each of its prefixes, with those where all
later tokens are others, and with those that a cache gives for the same tokens in pieces. The first two find a model
that sees the future, the others also one whose cache loses or changes the past.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from transformers import PreTrainedModel

from ..cache_names import as_cache, cache_of


Progress = Callable[[range], Iterable[int]]
PieceOfLogits = tuple[int, torch.Tensor]  # where it starts, (batch_size, length, vocab_size)
CACHED_TOKENS = (1, 7)


@dataclass(frozen=True)
class CausalityCheck:
    """
    What one path gives beside the whole text.

    Args:
        path (`str`): How the logits were made.
        difference (`float`): Largest |logits of the path - logits of the whole|, over all positions.
        position (`int`): Where it is.
        threshold (`float`): What rounding explains.
        refusal (`str`): Why the model does not take this path; empty if it does.
    """

    path: str
    difference: float
    position: int
    threshold: float
    refusal: str = ""

    @property
    def leaks(self) -> bool:
        """Whether the difference is beyond rounding, or no number."""
        return not self.refusal and not self.difference <= self.threshold


def prefix_path(model: PreTrainedModel, input_ids: torch.LongTensor, progress: Progress) -> Iterator[PieceOfLogits]:
    """Every prefix by itself."""
    for length in progress(range(1, input_ids.shape[1])):
        yield 0, model(input_ids[:, :length], use_cache=False).logits


def changed_path(
    model: PreTrainedModel, input_ids: torch.LongTensor, progress: Progress, generator: torch.Generator
) -> Iterator[PieceOfLogits]:
    """Every prefix in front of other tokens than its own, as many as there are behind it."""
    for length in progress(range(1, input_ids.shape[1])):
        others = torch.randint(model.config.vocab_size, input_ids[:, length:].shape, generator=generator)
        changed = torch.cat([input_ids[:, :length], others.to(input_ids.device)], dim=1)
        yield 0, model(changed, use_cache=False).logits[:, :length]


def cached_path(
    model: PreTrainedModel, input_ids: torch.LongTensor, progress: Progress, num_tokens: int
) -> Iterator[PieceOfLogits]:
    """So many tokens at a time, on top of the cache of those before."""
    cache = None
    for start in progress(range(0, input_ids.shape[1], num_tokens)):
        piece = input_ids[:, start : start + num_tokens]
        output = model(piece, **as_cache(cache), use_cache=True)
        cache = cache_of(output)
        yield start, output.logits


def largest_differences(whole: torch.Tensor, pieces: Iterable[PieceOfLogits]) -> torch.Tensor:
    """At every position, over the batch and the vocabulary: `(length,)`."""
    differences = whole.new_zeros(whole.shape[1])
    for start, logits in pieces:
        span = slice(start, start + logits.shape[1])
        difference = (logits - whole[:, span]).abs().amax(dim=(0, 2))
        differences[span] = torch.maximum(differences[span], difference)
    return differences


def rounding_threshold(logits: torch.Tensor) -> float:
    """
    The largest difference that rounding explains: the machine epsilon to the power of 2/3, relative to the largest
    logit. That is 2e-5 in float32, also for float64, as many models take norms in float32, and 0.04 in bfloat16.
    """
    epsilon = max(torch.finfo(logits.dtype).eps, torch.finfo(torch.float32).eps)
    return epsilon ** (2 / 3) * float(logits.abs().max())


@torch.no_grad()
def check_causality(
    model: PreTrainedModel, input_ids: torch.LongTensor, seed: int = 0, progress: Progress = iter
) -> list[CausalityCheck]:
    """
    Compares all paths to the logits of a text with its one forward pass.

    Args:
        model (`PreTrainedModel`): A causal language model, in evaluation mode.
        input_ids (`torch.LongTensor` of shape `(batch_size, length)`): Texts of one length, without padding.
        seed (`int`, defaults to 0): Seed of the tokens that replace the later ones.
        progress (`Callable`, *optional*): Wraps the range over the steps of every path, as `tqdm.tqdm` does.

    Raises:
        ValueError: if the texts are shorter than two tokens, or the model is in training mode.
    """
    if input_ids.ndim != 2 or input_ids.shape[1] < 2:
        raise ValueError(f"`input_ids` must be (batch_size, 2 or more), got the shape {tuple(input_ids.shape)}.")
    if model.training:
        raise ValueError("`model` must be in evaluation mode, it is in training mode, where dropout changes logits.")
    paths = {
        "prefixes": prefix_path,
        "other tokens behind": partial(changed_path, generator=torch.Generator().manual_seed(seed)),
    }
    paths |= {f"cached, {number} at a time": partial(cached_path, num_tokens=number) for number in CACHED_TOKENS}
    whole = model(input_ids, use_cache=False).logits
    return [check_path(name, whole, path(model, input_ids, progress)) for name, path in paths.items()]


def check_path(name: str, whole: torch.Tensor, pieces: Iterable[PieceOfLogits]) -> CausalityCheck:
    threshold = rounding_threshold(whole)
    try:
        difference, position = largest_differences(whole, pieces).max(dim=0)
    except ValueError as error:
        return CausalityCheck(name, 0.0, 0, threshold, refusal=str(error))
    return CausalityCheck(name, float(difference), int(position), threshold)


__all__ = ["CausalityCheck", "check_causality"]
