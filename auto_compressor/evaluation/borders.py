"""Where the models with levels of patches set their borders in a text, and the entropies that lead to them."""

import math
from dataclasses import dataclass

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from ..byte_lm.modeling_adaptive_byte import AdaptiveByteForCausalLM
from ..hierarchical_autoencoder.modeling_hierarchical_autoencoder import HierarchicalAutoencoder


@dataclass(frozen=True)
class PatchLevel:
    """
    The units of a level: bytes, or patches of the level below.

    Args:
        starts (`list[int]`): The byte at which each begins; on each level some of those of the level below.
        bits_per_byte (`float`, *optional*): What the level says about the text, see [`TextBorders`].
    """

    starts: list[int]
    bits_per_byte: float | None = None


@dataclass(frozen=True)
class TextBorders:
    """
    A text, cut into patches.

    Args:
        model_type (`str`): Type of the model that set the borders.
        data (`bytes`): The text.
        entropies (`list[float]`): Entropy of what is expected behind every byte, in bits.
        levels (`list[PatchLevel]`): Bytes first.
        bits_note (`str`): What `bits_per_byte` of the levels are.
    """

    model_type: str
    data: bytes
    entropies: list[float]
    levels: list[PatchLevel]
    bits_note: str


def patch_starts(starts: list[int], border_mask: torch.Tensor) -> list[int]:
    """The bytes at which patches begin, from those of their units and `(units,)` borders."""
    return [starts[unit] for unit in border_mask.nonzero()[:, 0].tolist()]


def next_byte_bits(logits: torch.Tensor, input_ids: torch.LongTensor) -> float | None:
    """Mean bits of all bytes of `(1, length)` but the first; None if there is only one."""
    if input_ids.shape[1] < 2:
        return None
    return float(F.cross_entropy(logits[0, :-1], input_ids[0, 1:])) / math.log(2)


def adaptive_borders(model: AdaptiveByteForCausalLM, data: bytes) -> TextBorders:
    input_ids = torch.tensor([list(data)], device=model.device)
    output = model(input_ids, use_cache=False)
    levels = [PatchLevel(list(range(len(data))), next_byte_bits(output.encoder_logits, input_ids))]
    for border_mask in output.border_masks:
        levels.append(PatchLevel(patch_starts(levels[-1].starts, border_mask[0])))
    levels[-1] = PatchLevel(levels[-1].starts, next_byte_bits(output.logits, input_ids))
    return TextBorders(
        model_type=model.config.model_type,
        data=data,
        entropies=(output.entropies[0] / math.log(2)).tolist(),
        levels=levels,
        bits_note="Bits per byte are those of the next byte, predicted by level 0 alone and by all levels together.",
    )


def hierarchical_borders(model: HierarchicalAutoencoder, data: bytes) -> TextBorders:
    """The rows are blocks of the text, each of which begins with a border on every level."""
    symbols, mask, _ = model.read_bytes(*model.blocks(data))
    compressed = model.compress(symbols, mask)
    levels = [PatchLevel(list(range(len(data))), float(compressed[0].lm_loss) / math.log(2))]
    for output, config in zip(compressed, model.config.level_configs, strict=True):
        borders = output.patch_ids != F.pad(output.patch_ids, (1, 0), value=-1)[:, :-1]
        starts = patch_starts(levels[-1].starts, borders[output.patch_ids >= 0])
        levels.append(PatchLevel(starts, config.bits_per_code * len(starts) / len(data)))
    return TextBorders(
        model_type=model.config.model_type,
        data=data,
        entropies=(compressed[0].entropies[mask] / math.log(2)).tolist(),
        levels=levels,
        bits_note="Bits per byte are those of the next byte on level 0, and above it those of the codes as stored.",
    )


MEASURES = {AdaptiveByteForCausalLM: adaptive_borders, HierarchicalAutoencoder: hierarchical_borders}


@torch.no_grad()
def text_borders(model: PreTrainedModel, data: bytes) -> TextBorders:
    """
    The patches of a text on every level.

    Args:
        model ([`AdaptiveByteForCausalLM`] or [`HierarchicalAutoencoder`]): In evaluation mode.
        data (`bytes`): The text, which need not be UTF-8.

    Raises:
        ValueError: for another model, one in training mode, or an empty text.
    """
    if type(model) not in MEASURES:
        names = " or ".join(kind.__name__ for kind in MEASURES)
        raise ValueError(f"`model` must be a {names}, got {type(model).__name__}.")
    if model.training:
        raise ValueError("`model` must be in evaluation mode, it is in training mode, which moves borders.")
    if not data:
        raise ValueError("`data` must have one byte at least, it is empty.")
    return MEASURES[type(model)](model, data)


__all__ = ["PatchLevel", "TextBorders", "text_borders"]
