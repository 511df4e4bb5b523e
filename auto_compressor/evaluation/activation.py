"""How well a language model continues a text whose key/value cache was compressed.

What counts is what the model would have said with the full cache: KL and agreement of the next token, over the same
positions. The likelihood of the text itself barely tells policies apart.
"""

import torch
from torch.nn import functional as F


STATISTICS = ("targets", "nll", "nll_full", "kl", "top1_agreement")


def continuation_statistics(
    logits: torch.Tensor, full_logits: torch.Tensor, targets: torch.LongTensor
) -> torch.Tensor:
    """
    Sums over the targets of every row, so that neither batches nor padding change what comes of them.

    Args:
        logits, full_logits (`torch.Tensor` of shape `(batch_size, length, vocab_size)`):
            Of the next token, with the compressed and with the full cache.
        targets (`torch.LongTensor` of shape `(batch_size, length)`): The next tokens; -100 is ignored.

    Returns:
        `torch.Tensor` of shape `(batch_size, len(STATISTICS))`, float32: The columns [`STATISTICS`] are the counted
        targets, and sums over them of -log P(target) with the compressed and with the full cache, of
        KL(full || compressed), all in nats, and of whether both predict the same token.
    """
    counted = targets != -100
    log_probs, full = logits.float().log_softmax(dim=-1), full_logits.float().log_softmax(dim=-1)
    index = targets.where(counted, 0)[..., None]
    columns = (
        torch.ones_like(log_probs[..., 0]),
        -log_probs.gather(-1, index)[..., 0],
        -full.gather(-1, index)[..., 0],
        F.kl_div(log_probs, full, reduction="none", log_target=True).sum(dim=-1),
        (log_probs.argmax(dim=-1) == full.argmax(dim=-1)).float(),
    )
    return torch.stack([column.where(counted, 0).sum(dim=1) for column in columns], dim=-1)


def activation_metrics(statistics: torch.Tensor) -> dict[str, float]:
    """
    Means over all targets.

    Args:
        statistics (`torch.Tensor` of shape `(rows, len(STATISTICS))`): From [`continuation_statistics`].

    Returns:
        `dict[str, float]`: `nll`, `nll_full` and `kl` in nats, `top1_agreement`, `perplexity` and `perplexity_full`;
        NaN without targets.
    """
    sums = dict(zip(STATISTICS, statistics.detach().cpu().double().sum(dim=0), strict=True))
    targets = sums.pop("targets")
    means = {name: total / targets for name, total in sums.items()}
    means |= {"perplexity": means["nll"].exp(), "perplexity_full": means["nll_full"].exp()}
    return {name: float(mean) for name, mean in means.items()}


__all__ = ["STATISTICS", "activation_metrics", "continuation_statistics"]
