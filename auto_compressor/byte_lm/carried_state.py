"""Windows of a text that go on from the state of those before: their order, and what is carried."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch.utils.data import Sampler

from ..files.whole_files import write_whole
from ..tokenization_bytes import NUM_BYTES
from .outputs import ByteLMOutput
from .recurrent_cache import RecurrentCache


class LaneSampler(Sampler[int]):
    """
    The order of rows in which `num_lanes` lanes are read side by side, each a part of the rows that is of one piece.

    In batches of `num_lanes` rows, a row goes on where that at its place in the batch before ended. Lanes differ by
    one row at most, and the longer ones come first: what is left for the last batch keeps its place too.
    """

    def __init__(self, num_rows: int, num_lanes: int):
        self.num_rows, self.num_lanes = num_rows, num_lanes

    def __len__(self) -> int:
        return self.num_rows

    def __iter__(self) -> Iterator[int]:
        length, longer = divmod(self.num_rows, self.num_lanes)
        starts = [lane * length + min(lane, longer) for lane in range(self.num_lanes)]
        for step in range(length):
            yield from (start + step for start in starts)
        yield from (start + length for start in starts[:longer])


@dataclass
class CarriedState:
    """
    What windows leave for those that go on from them; where a document ended, it is that of the beginning of a text.

    Args:
        cache (`RecurrentCache`): States of the model, without their gradients.
        logits (`torch.Tensor` of shape `(batch_size, vocab_size)`): Predictions of the first id of the next window; 0
            at the beginning of a text.
    """

    cache: RecurrentCache
    logits: torch.Tensor

    @classmethod
    def after(cls, outputs: ByteLMOutput, input_ids: torch.LongTensor, attention_mask: torch.Tensor) -> "CarriedState":
        """What windows leave, `(batch_size, length)` each, of which these are the outputs."""
        last = attention_mask.sum(dim=1, keepdim=True) - 1
        ended = input_ids.gather(1, last)[:, 0] == NUM_BYTES
        logits = outputs.logits.detach().take_along_dim(last[..., None], dim=1)[:, 0]
        for layer in outputs.cache.layers:
            layer.remember(**{name: without_rows(state, ended) for name, state in layer.states.items()})
        return cls(outputs.cache, without_rows(logits, ended))

    def first_rows(self, num_rows: int) -> "CarriedState":
        """The state of the first windows alone: the last batch may be smaller."""
        if num_rows < len(self.logits):
            self.cache.batch_select_indices(torch.arange(num_rows))
        return CarriedState(self.cache, self.logits[:num_rows])

    def save(self, path: Path):
        """Writes a safetensors file, whole or not at all."""
        tensors = {"logits": self.logits}
        for index, layer in enumerate(self.cache.layers):
            tensors |= {f"{index}.{name}": state for name, state in layer.states.items()}
        write_whole(path, save({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}))

    @classmethod
    def load(cls, path: Path, device: torch.device) -> "CarriedState":
        tensors = load_file(path, device=str(device))
        logits = tensors.pop("logits")
        cache = RecurrentCache(1 + max(int(name.split(".")[0]) for name in tensors))
        for name, state in tensors.items():
            index, name = name.split(".", 1)
            cache.layers[int(index)].remember(**{name: state})
        return cls(cache, logits)


def without_rows(state: torch.Tensor, ended: torch.BoolTensor) -> torch.Tensor:
    """Zeros, the state at the beginning of a text, in the rows that ended."""
    return state.masked_fill(ended.view(-1, *[1] * (state.ndim - 1)), 0)


__all__ = ["CarriedState", "LaneSampler"]
