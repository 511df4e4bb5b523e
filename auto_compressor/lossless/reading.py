"""How a language model reads streams: a symbol of each at a time, with a context that slides.

The keys and values of a stream lie in buffers of the size of the window. When they are full, the oldest quarter behind
the first few tokens is dropped: models attend to their first tokens whatever these are, and predict badly without them
([attention sinks](https://arxiv.org/abs/2309.17453)). Positions go on. Where they would leave the context that a model
has, and for models whose cache is another one, reading starts again from the last half of the window.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from ..cache_names import as_cache, cache_of
from .vocabulary import Vocabulary


SINKS = 4


class InFloat64(TorchFunctionMode):
    """Where a model asks for float32, as norms, rotary embeddings and softmax do, it computes in float64."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        func = torch.Tensor.double if func is torch.Tensor.float else func
        args = [torch.float64 if value is torch.float32 else value for value in args]
        kwargs = {name: torch.float64 if value is torch.float32 else value for name, value in (kwargs or {}).items()}
        return func(*args, **kwargs)


class WindowLayer(DynamicLayer):
    """Keys and values of a layer in buffers that grow up to the window, so that a step copies only its own."""

    def __init__(self, layer: DynamicLayer):
        super().__init__()
        self.device, self.is_initialized = layer.keys.device, True
        self.buffers = [layer.keys, layer.values]  # (rows, heads, capacity, head_dim)
        self.length = layer.keys.shape[2]

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any):
        end = self.length + key_states.shape[2]
        if end > self.buffers[0].shape[2]:
            self.buffers = [F.pad(buffer, (0, 0, 0, end)) for buffer in self.buffers]
        for buffer, states in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[:, :, self.length : end] = states
        self.length = end
        self.keys, self.values = (buffer[:, :, :end] for buffer in self.buffers)
        return self.keys, self.values

    def get_seq_length(self) -> int:
        return self.length

    def drop(self, count: int):
        """Forgets the oldest tokens behind the first ones."""
        self.length -= count
        for buffer in self.buffers:
            buffer[:, :, SINKS : self.length] = buffer[:, :, SINKS + count : self.length + count].clone()


def can_slide(model: PreTrainedModel, cache: Cache) -> bool:
    """Whether a cache holds keys of all tokens and nothing else, and the model is told their positions."""
    layers = getattr(cache, "layers", None) or [None]
    return (
        all(type(layer) is DynamicLayer for layer in layers)
        and "position_ids" in inspect.signature(model.forward).parameters
    )


class Context:
    """
    What a model has read of streams.

    Args:
        model (`PreTrainedModel`): A causal language model.
        window (`int`): Tokens that it holds, 4 and more; 0 if it holds all.
        slides (`bool`): Whether the window may slide; else reading starts again when it is full.
    """

    def __init__(self, model: PreTrainedModel, window: int, slides: bool):
        self.model, self.window, self.slides = model, window, slides
        self.limit = getattr(model.config, "max_position_embeddings", 0) or 0
        self.restart(0)

    def restart(self, first: int):
        self.cache: Any = None
        self.first = self.read = first

    @property
    def is_sliding(self) -> bool:
        return (
            self.cache is not None and isinstance(self.cache, Cache) and isinstance(self.cache.layers[0], WindowLayer)
        )

    def make_room(self, end: int):
        """For the tokens up to `end`."""
        most = self.limit if self.is_sliding else self.window
        if most and end - self.first > most:
            self.restart(end - max(self.window // 2, 1))
        elif self.is_sliding and self.cache.layers[0].length == self.window:
            for layer in self.cache.layers:
                layer.drop((self.window - SINKS + 3) // 4)

    def logits(self, token_ids: Callable[[int, int], torch.Tensor], end: int) -> torch.Tensor:
        """Logits `(rows, vocab_size)` of what follows the tokens up to `end`; `token_ids` gives those from and to."""
        self.make_room(end)
        input_ids = token_ids(self.read, end).to(self.model.device)  # (rows, new)
        positions = torch.arange(self.read - self.first, end - self.first, device=input_ids.device)[None]
        options = {"position_ids": positions} if self.is_sliding else {}
        output = self.model(input_ids, **options, **as_cache(self.cache), use_cache=True, logits_to_keep=1)
        self.cache, self.read = cache_of(output), end
        if self.slides and not self.is_sliding and can_slide(self.model, self.cache):
            self.cache.layers = [WindowLayer(layer) for layer in self.cache.layers]
        return output.logits[:, -1]


@torch.no_grad()
def distributions(
    model: PreTrainedModel, vocabulary: Vocabulary, symbols: torch.Tensor, window: int, version: int
) -> Iterator[torch.Tensor]:
    """
    Distributions over the symbols of every column of `symbols` `(rows, steps)`, each `(rows, vocabulary.size)`.

    A column is read after its own distribution was taken, so a decoder fills it in between.
    """
    context = Context(model, window, slides=version > 1 and window >= 2 * SINKS)
    for step in range(symbols.shape[1]):
        if step == 0 and vocabulary.start is None:
            yield vocabulary.uniform(len(symbols))
            continue
        with InFloat64() if version > 1 else nullcontext():
            logits = context.logits(partial(vocabulary.columns, symbols), step + vocabulary.lead)
        yield vocabulary.probabilities(logits)


__all__ = ["InFloat64", "WindowLayer", "distributions"]
