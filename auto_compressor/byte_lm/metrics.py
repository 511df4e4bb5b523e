"""Bits per byte of byte language models, and where their borders lie.

[`byte_lm_statistics`] counts on a batch, by row; [`byte_lm_metrics`] makes the figures of the counts of all batches
and processes; [`measure_byte_lm`] does both on a text.
"""

import math
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from ..tokenization_bytes import NUM_BYTES
from .byte_rows import next_token_targets
from .cache_names import as_cache
from .carried_state import CarriedState, LaneSampler
from .outputs import ByteLMOutput


END = NUM_BYTES  # the id that ends a text

COUNTS = ("bytes", "nats", "targets", "encoder_nats", "decoder_nats")
# Histogram of the entropy of what comes next, in nats; that of 257 ids is 5.55 at most.
ENTROPY_BIN, NUM_ENTROPY_BINS = 0.25, 24


def nats_of_targets(logits: torch.Tensor, targets: torch.LongTensor) -> torch.DoubleTensor:
    """The sum of what the targets of a row cost, in nats: `(batch_size,)`; -100 is ignored."""
    nats = F.cross_entropy(logits.double().transpose(1, 2), targets, ignore_index=-100, reduction="none")
    return nats.sum(dim=1)


def nats_of_bytes(
    logits: torch.Tensor, input_ids: torch.LongTensor, attention_mask: torch.Tensor, first_logits: torch.Tensor
) -> torch.DoubleTensor:
    """
    What the bytes of a row cost given those before them, in a code for bytes alone: `(batch_size,)`, in nats.

    Args:
        logits (`torch.Tensor` of shape `(batch_size, length, vocab_size)`): Predictions of the next id.
        input_ids, attention_mask (`torch.Tensor` of shape `(batch_size, length)`): What is no byte costs nothing.
        first_logits (`torch.Tensor` of shape `(batch_size, vocab_size)`): Predictions of the first bytes; where they
            are zero, all bytes are as likely, and one costs 8 bits.
    """
    predictions = torch.cat([first_logits[:, None], logits[:, :-1]], dim=1)
    no_byte = (input_ids >= NUM_BYTES) | (attention_mask == 0)
    return nats_of_targets(predictions[..., :NUM_BYTES], input_ids.masked_fill(no_byte, -100))


def entropy_histogram(logits: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """How many positions of a row have their entropy in each bin: `(batch_size, NUM_ENTROPY_BINS)`."""
    entropies = torch.distributions.Categorical(logits=logits.float()).entropy()
    bins = (entropies / ENTROPY_BIN).long().clamp(0, NUM_ENTROPY_BINS - 1)
    counts = bins.new_zeros(len(bins), NUM_ENTROPY_BINS)
    return counts.scatter_add(1, bins, attention_mask.to(counts.dtype))


def byte_lm_statistics(
    outputs: ByteLMOutput,
    input_ids: torch.LongTensor,
    attention_mask: torch.Tensor,
    window_end_target: bool,
    first_logits: torch.Tensor | None = None,
) -> torch.DoubleTensor:
    """
    Counts on windows of text, by row.

    Args:
        outputs (`ByteLMOutput`): Outputs of the model.
        input_ids, attention_mask (`torch.Tensor` of shape `(batch_size, length)`): The windows.
        window_end_target (`bool`): Whether the end of a text is a target behind every window.
        first_logits (`torch.Tensor` of shape `(batch_size, vocab_size)`, *optional*): Predictions of the first bytes,
            of the windows before; without them, these cost 8 bits each.

    Returns:
        `torch.DoubleTensor` of shape `(batch_size, counts)`: `COUNTS`, the patches of every level, and the bins of the
        histogram of entropies.
    """
    encoder_logits = outputs.logits if outputs.encoder_logits is None else outputs.encoder_logits
    first_logits = torch.zeros_like(outputs.logits[:, 0]) if first_logits is None else first_logits
    targets = next_token_targets(input_ids, attention_mask.bool(), END if window_end_target else -100)
    counts = {
        "bytes": ((input_ids < NUM_BYTES) & (attention_mask != 0)).sum(dim=1),
        "nats": nats_of_bytes(outputs.logits, input_ids, attention_mask, first_logits),
        "targets": (targets != -100).sum(dim=1),
        "encoder_nats": nats_of_targets(encoder_logits, targets),
        "decoder_nats": nats_of_targets(outputs.logits, targets),
    }
    columns = [*counts.values()] + [borders.sum(dim=1) for borders in outputs.border_masks or ()]
    columns = torch.stack([column.double() for column in columns], dim=1)
    return torch.cat([columns, entropy_histogram(encoder_logits, attention_mask).double()], dim=1)


def byte_lm_metrics(statistics: torch.Tensor) -> dict[str, float | list[int]]:
    """
    The figures of windows of text.

    `bits_per_byte` is the rate of a lossless code of the bytes alone. `byte_encoder_bpb` and `byte_decoder_bpb` are
    the published ones, the mean losses in bits: the end of the text is among their targets where it is in training,
    the first byte of a window never. `level_K_compression_ratio` is in units of the level below, bytes for level 1.

    Args:
        statistics (`torch.Tensor` of shape `(windows, counts)`): What [`byte_lm_statistics`] gave.

    Raises:
        ValueError: if the windows have no bytes.
    """
    totals = statistics.double().sum(dim=0).tolist()
    count = dict(zip(COUNTS, totals, strict=False))
    units = [count["bytes"], *totals[len(COUNTS) : -NUM_ENTROPY_BINS]]
    if not count["bytes"]:
        raise ValueError("`statistics` must be those of one byte of text at least.")
    bits_per_target = 1 / math.log(2) / max(count["targets"], 1)
    metrics = {
        "bits_per_byte": count["nats"] / math.log(2) / count["bytes"],
        "byte_encoder_bpb": count["encoder_nats"] * bits_per_target,
        "byte_decoder_bpb": count["decoder_nats"] * bits_per_target,
        "bytes": int(count["bytes"]),
    }
    for level, (below, patches) in enumerate(pairwise(units), start=1):
        metrics |= {f"level_{level}_borders": int(patches), f"level_{level}_compression_ratio": below / patches}
    return metrics | {"entropy_histogram": [int(number) for number in totals[-NUM_ENTROPY_BINS:]]}


def read_windows(
    model: nn.Module,
    inputs: dict[str, torch.Tensor],
    window_end_target: bool,
    carry_state: bool = False,
    carried: CarriedState | None = None,
) -> tuple[torch.DoubleTensor, CarriedState | None]:
    """[`byte_lm_statistics`] of windows, which go on from `carried` or begin a text, and what they leave, if asked."""
    texts = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    past, first_logits = None, None
    if carried is not None:
        carried = carried.first_rows(len(texts["input_ids"]))
        past, first_logits = carried.cache, carried.logits
    outputs = model(**texts, **as_cache(past), use_cache=carry_state)
    left = CarriedState.after(outputs, **texts) if carry_state else None
    return byte_lm_statistics(outputs, **texts, window_end_target=window_end_target, first_logits=first_logits), left


def pad_windows(windows: list[torch.LongTensor]) -> dict[str, torch.LongTensor]:
    lengths = torch.tensor([len(window) for window in windows])
    input_ids = pad_sequence(windows, batch_first=True, padding_value=END)
    return {"input_ids": input_ids, "attention_mask": (torch.arange(input_ids.shape[1]) < lengths[:, None]).long()}


@torch.no_grad()
def measure_byte_lm(
    model: PreTrainedModel, text: bytes, window: int = 128, num_lanes: int = 16, carry_state: bool = False
) -> dict[str, float | list[int]]:
    """
    [`byte_lm_metrics`] of the whole of a text.

    Args:
        model (`PreTrainedModel`): A byte language model, in evaluation mode.
        text (`bytes`): Of any length but 0.
        window (`int`, defaults to 128): Bytes that are read at a time.
        num_lanes (`int`, defaults to 16): Parts of the text that are read side by side.
        carry_state (`bool`, defaults to `False`): Whether a window goes on from the one before in its part; else it
            is read by itself.
    """
    windows = torch.tensor(list(text)).split(window)
    lanes = LaneSampler(len(windows), num_lanes)
    statistics, carried = [], None
    for inputs in DataLoader(windows, batch_size=num_lanes, sampler=lanes, collate_fn=pad_windows):
        inputs = {name: tensor.to(model.device) for name, tensor in inputs.items()}
        found, carried = read_windows(model, inputs, model.config.window_end_target, carry_state, carried)
        statistics.append(found)
    return byte_lm_metrics(torch.cat(statistics))


__all__ = ["ENTROPY_BIN", "byte_lm_metrics", "byte_lm_statistics", "measure_byte_lm", "read_windows"]
