"""How well a hierarchical autoencoder reconstructs text from its codes alone, with the controls that show it.

[`reconstruction_statistics`] counts on a batch, by row; [`reconstruction_metrics`] makes the figures of the counts of
all batches and processes; [`measure_reconstruction`] does both.
"""

import math
from collections.abc import Iterable, Sequence

import torch
from torch.nn import functional as F

from .configuration_hierarchical_autoencoder import HierarchicalAutoencoderConfig
from .likelihood import level_nats
from .modeling_hierarchical_autoencoder import HierarchicalAutoencoder, bytes_per_code
from .outputs import HierarchicalDecoderOutput


STATISTICS = ("bytes", "codes", "matches", "shuffled", "forced", "lengths")
STATISTICS += ("code_nats", "residual_nats", "lm_nats", "lm_bytes")


def matching_bytes(
    symbols: torch.LongTensor, mask: torch.BoolTensor, lengths: torch.LongTensor, decoded: HierarchicalDecoderOutput
) -> torch.BoolTensor:
    """
    Which bytes come back at their place in the span of their top code: `(batch_size, length)`.

    Args:
        symbols, mask (`torch.Tensor` of shape `(batch_size, length)`): The true bytes, and where they are.
        lengths (`torch.LongTensor` of shape `(batch_size, patches)`): The true number of bytes of each code.
        decoded (`HierarchicalDecoderOutput`): What became of the codes.
    """
    positions = torch.arange(symbols.shape[1], device=symbols.device).expand_as(symbols)
    owners = torch.searchsorted(lengths.cumsum(dim=1), positions.contiguous(), right=True)  # padding: one code more
    lengths, decoded_lengths = F.pad(lengths, (0, 1)), F.pad(decoded.lengths, (0, 1))
    starts, decoded_starts = (counts.cumsum(dim=1) - counts for counts in (lengths, decoded_lengths))
    place = positions - starts.gather(1, owners)
    present = mask & (place < decoded_lengths.gather(1, owners))
    index = (decoded_starts.gather(1, owners) + place).masked_fill(~present, 0)
    return present & (F.pad(decoded.sequences, (0, 1)).gather(1, index) == symbols)


def shuffle_codes(codes: torch.LongTensor, generator: torch.Generator) -> torch.LongTensor:
    """Puts the codes of every row, `(batch_size, num_quantizers, patches)`, in a random order; -1 stays behind."""
    keys = torch.rand(codes.shape[0], codes.shape[2], generator=generator).to(codes.device)
    order = keys.masked_fill(codes[:, 0] < 0, 2.0).argsort(dim=1)
    return codes.gather(2, order[:, None].expand_as(codes))


@torch.no_grad()
def reconstruction_statistics(
    model: HierarchicalAutoencoder,
    input_ids: torch.LongTensor,
    attention_mask: torch.Tensor,
    generator: torch.Generator,
) -> tuple[torch.DoubleTensor, tuple[torch.LongTensor, ...]]:
    """
    Counts on texts, by row.

    Args:
        model (`HierarchicalAutoencoder`): In evaluation mode.
        input_ids, attention_mask (`torch.Tensor` of shape `(batch_size, length)`): Texts, as the model takes them.
        generator (`torch.Generator`): Draws for the control, which decodes the codes of every text in another order.

    Returns:
        `tuple`: The counts `(batch_size, len(STATISTICS))`, and of every level the codes of the first codebook
        `(batch_size, patches)`, -1 behind the last of a row.
    """
    symbols, mask, _ = model.read_bytes(input_ids, attention_mask)
    compressed = model.compress(symbols, mask)
    lengths = bytes_per_code(compressed)
    codes = compressed[-1].codes.transpose(1, 2)
    decoded, shuffled = model.decode(codes), model.decode(shuffle_codes(codes, generator))
    expanded = model.expand(symbols, compressed)
    forced = expanded[0].logits.argmax(dim=-1)
    levels = level_nats(model, symbols.masked_fill(~mask, -100), compressed, expanded)
    code_nats, _ = model.code_nats(compressed[-1].codes, model.text_ends(input_ids, attention_mask))
    counts = {
        "bytes": mask.sum(dim=1),
        "codes": (lengths > 0).sum(dim=1),
        "matches": matching_bytes(symbols, mask, lengths, decoded).sum(dim=1),
        "shuffled": matching_bytes(symbols, mask, lengths, shuffled).sum(dim=1),
        "forced": ((forced == symbols) & mask).sum(dim=1),
        "lengths": ((decoded.lengths == lengths) & (lengths > 0)).sum(dim=1),
        "code_nats": code_nats.double().sum(dim=1),
        "residual_nats": torch.stack([nats.double().sum(dim=1) for nats in levels]).sum(dim=0),
        "lm_nats": compressed[0].lm_loss * mask[:, 1:].sum(dim=1),
        "lm_bytes": mask[:, 1:].sum(dim=1),
    }
    statistics = torch.stack([counts[name].double() for name in STATISTICS], dim=1)
    return statistics, tuple(output.codes[..., 0] for output in compressed)


def codebook_perplexity(histogram: torch.Tensor) -> float:
    """Exponential of the entropy of the codes that were used: from 1 to `codebook_size`."""
    probs = histogram[histogram > 0] / histogram.sum()
    return math.exp(-(probs * probs.log()).sum().item())


def reconstruction_metrics(
    config: HierarchicalAutoencoderConfig, statistics: torch.Tensor, codes: Sequence[torch.Tensor]
) -> dict[str, float]:
    """
    The figures of texts.

    `reconstruction_accuracy` is that of free-running decoding from the codes, `shuffled_accuracy` its control. All
    bits are per byte: of the top codes as they are stored (`raw`), under their language model (`codes`), of everything
    below given the codes (`residual`), and the sum of the last two, a lossless rate.

    Args:
        config (`HierarchicalAutoencoderConfig`): The config of the model.
        statistics (`torch.Tensor` of shape `(texts, len(STATISTICS))`), codes (`list[torch.Tensor]`, one per level, of
            any shape): What [`reconstruction_statistics`] gave; codes below 0 are left out.

    Raises:
        ValueError: if the texts have no bytes.
    """
    total = dict(zip(STATISTICS, statistics.double().sum(dim=0).tolist(), strict=True))
    if not total["bytes"]:
        raise ValueError("`statistics` must be those of one byte of text at least.")
    bits = {name: total[f"{name}_nats"] / math.log(2) / total["bytes"] for name in ("code", "residual")}
    metrics = {
        "reconstruction_accuracy": total["matches"] / total["bytes"],
        "shuffled_accuracy": total["shuffled"] / total["bytes"],
        "teacher_forced_accuracy": total["forced"] / total["bytes"],
        "length_accuracy": total["lengths"] / total["codes"],
        "bytes_per_code": total["bytes"] / total["codes"],
        "bits_per_byte_raw": config.level_configs[-1].bits_per_code * total["codes"] / total["bytes"],
        "bits_per_byte_codes": bits["code"],
        "bits_per_byte_residual": bits["residual"],
        "bits_per_byte": bits["code"] + bits["residual"],
        "byte_lm_bits_per_byte": total["lm_nats"] / math.log(2) / max(total["lm_bytes"], 1),
    }
    below = total["bytes"]
    for level, used in enumerate(codes):
        histogram = torch.bincount(used[used >= 0])
        metrics[f"level_{level}_codes_used"] = int((histogram > 0).sum())
        metrics[f"level_{level}_codebook_perplexity"] = codebook_perplexity(histogram)
        metrics[f"level_{level}_compression_ratio"] = below / int(histogram.sum())
        below = int(histogram.sum())
    return metrics


def measure_reconstruction(
    model: HierarchicalAutoencoder, batches: Iterable[tuple[torch.LongTensor, torch.Tensor]], seed: int = 0
) -> dict[str, float]:
    """[`reconstruction_metrics`] of batches of `input_ids` and `attention_mask`, on the model's device."""
    generator = torch.Generator().manual_seed(seed)
    found = [reconstruction_statistics(model, *batch, generator) for batch in batches]
    levels = zip(*(codes for _, codes in found), strict=True)
    codes = [torch.cat([part[part >= 0] for part in level]) for level in levels]
    return reconstruction_metrics(model.config, torch.cat([statistics for statistics, _ in found]), codes)


__all__ = ["STATISTICS", "measure_reconstruction", "reconstruction_metrics", "reconstruction_statistics"]
