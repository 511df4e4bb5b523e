"""How well a continuous text autoencoder gives text back from the means of its latents, with controls that show it.

[`continuous_statistics`] counts on a batch, by row; [`continuous_metrics`] makes the figures of the counts of all
batches and processes; [`measure_continuous`] does both. No row depends on the others, on its padding, or on its place:
what is random is drawn by [`hashed_uniform`] from the tokens of the row.
"""

import math
from collections.abc import Iterable

import torch
from torch.nn import functional as F

from .modeling_continuous_text_autoencoder import ContinuousTextAutoencoder, align_rows, kl_from_standard_normal


# Noise on latents, in the standard deviations that their dimensions had in training.
NOISE_LEVELS = (0.1, 0.3)
STATISTICS = ("rows", "tokens", "latents", "exact", "matches", "random", *(f"noise_{level}" for level in NOISE_LEVELS))
STATISTICS += ("nats", "kl_nats", "kl_losses")


def mix_bits(keys: torch.LongTensor) -> torch.LongTensor:
    """A bijection of the 64-bit integers without visible order: SplitMix64 (Steele et al., OOPSLA 2014)."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        # A right shift of negative numbers would bring in ones.
        keys = (keys ^ (keys >> shift & (1 << 64 - shift) - 1)) * (factor - 2**64 if factor >> 63 else factor)
    return keys


def hashed_uniform(
    input_ids: torch.LongTensor, mask: torch.BoolTensor, size: tuple[int, ...], seed: int
) -> torch.DoubleTensor:
    """
    Numbers from 0 to 1, both excluded, for every row by its tokens alone: `(batch_size, *size)`.

    Args:
        input_ids, mask (`torch.Tensor` of shape `(batch_size, length)`): Rows, with the padding behind.
        size (`tuple[int, ...]`): Numbers of a row. Those at the front are the same for a longer `size[0]`.
        seed (`int`): Other numbers for the same row.
    """
    places = torch.arange(input_ids.shape[1], device=input_ids.device)
    row_keys = mix_bits(mix_bits(places) + input_ids).masked_fill(~mask, 0).sum(dim=1) + seed
    counts = torch.arange(math.prod(size), device=input_ids.device)
    bits = mix_bits(mix_bits(row_keys)[:, None] + counts) >> 11 & (1 << 53) - 1
    return ((bits.double() + 0.5) / 2**53).view(-1, *size)


@torch.no_grad()
def continuous_statistics(
    model: ContinuousTextAutoencoder, input_ids: torch.LongTensor, attention_mask: torch.Tensor | None = None
) -> torch.DoubleTensor:
    """
    Counts on texts, by row: `(batch_size, len(STATISTICS))`.

    Args:
        model (`ContinuousTextAutoencoder`): In evaluation mode.
        input_ids, attention_mask (`torch.Tensor` of shape `(batch_size, length)`): Texts, as the model takes them.
    """
    ids, mask, _ = align_rows(input_ids, attention_mask, model.config.total_stride)
    encoded = model.encode(ids, mask)
    latent_mask = encoded.latent_attention_mask

    def decoded(latents: torch.Tensor) -> torch.Tensor:
        return model.decode(latents, latent_mask).logits

    def matches(logits: torch.Tensor, ids: torch.LongTensor) -> torch.LongTensor:
        return ((logits.argmax(dim=-1) == ids) & mask).sum(dim=1)

    logits = decoded(encoded.mean)
    divergence = kl_from_standard_normal(encoded.mean, encoded.logvar) * latent_mask[..., None]
    free = divergence.clamp(min=model.config.kl_clip) * latent_mask[..., None]
    random_ids = (hashed_uniform(ids, mask, ids.shape[1:], seed=0) * model.config.vocab_size).long()
    noise = torch.special.ndtri(hashed_uniform(ids, mask, encoded.mean.shape[1:], seed=1))
    noise = (noise * model.latent_scale()).to(encoded.mean.dtype)
    counts = {
        "rows": mask.any(dim=1),
        "tokens": mask.sum(dim=1),
        "latents": latent_mask.sum(dim=1),
        "matches": matches(logits, ids),
        "random": matches(decoded(model.encode(random_ids, mask).mean), random_ids),
        "nats": (F.cross_entropy(logits.transpose(1, 2).float(), ids, reduction="none") * mask).sum(dim=1),
        "kl_nats": divergence.sum(dim=(1, 2)),
        "kl_losses": free.mean(dim=2).sum(dim=1),
    }
    counts["exact"] = (counts["matches"] == counts["tokens"]) & counts["rows"]
    counts |= {f"noise_{level}": matches(decoded(encoded.mean + level * noise), ids) for level in NOISE_LEVELS}
    return torch.stack([counts[name].double() for name in STATISTICS], dim=1)


def continuous_metrics(statistics: torch.Tensor) -> dict[str, float]:
    """
    The figures of texts, whose latents are the means.

    `token_accuracy` is the share of tokens that come back, `sequence_accuracy` that of rows without an error;
    `random_token_accuracy` is for uniformly random tokens in place of the text, `noise_..._token_accuracy` with normal
    noise on the latents, of so many of their standard deviations. `bits_per_latent` is the KL divergence of the
    posterior from a standard normal. The losses are those of the model.

    Args:
        statistics (`torch.Tensor` of shape `(texts, len(STATISTICS))`): What [`continuous_statistics`] gave.

    Raises:
        ValueError: if the texts have no tokens.
    """
    total = dict(zip(STATISTICS, statistics.double().sum(dim=0).tolist(), strict=True))
    if not total["tokens"]:
        raise ValueError("`statistics` must be those of one token of text at least.")
    metrics = {
        "token_accuracy": total["matches"] / total["tokens"],
        "sequence_accuracy": total["exact"] / total["rows"],
        "random_token_accuracy": total["random"] / total["tokens"],
    }
    for level in NOISE_LEVELS:
        metrics[f"noise_{level}_token_accuracy"] = total[f"noise_{level}"] / total["tokens"]
    return metrics | {
        "reconstruction_loss": total["nats"] / total["tokens"],
        "kl_loss": total["kl_losses"] / total["latents"],
        "bits_per_latent": total["kl_nats"] / math.log(2) / total["latents"],
        "tokens_per_latent": total["tokens"] / total["latents"],
        "tokens": int(total["tokens"]),
    }


def measure_continuous(
    model: ContinuousTextAutoencoder, batches: Iterable[tuple[torch.LongTensor, torch.Tensor | None]]
) -> dict[str, float]:
    """[`continuous_metrics`] of batches of `input_ids` and `attention_mask`, on the model's device."""
    return continuous_metrics(torch.cat([continuous_statistics(model, *batch) for batch in batches]))


__all__ = ["NOISE_LEVELS", "STATISTICS", "continuous_metrics", "continuous_statistics", "measure_continuous"]
