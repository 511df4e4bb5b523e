"""Variable-length summaries: which vectors survive, how attention sees them, and what their number costs.

Vector t of a segment survives with s_1 = 1, s_{t+1} = s_t (1 - p_t), where p_t is the probability of `<eoc>` after it.
In training a vector is attended to with the bias log s_t, so that s_t -> 0 equals its absence: a vector that is scaled
by s_t instead would be restored by the next norm. At inference s_t is 0 or 1.
"""

import torch


def survives(stop_logits: torch.Tensor) -> torch.Tensor:
    """1 - p of `p = sigmoid(stop_logits)`, without cancellation and in float32 at least; any shape."""
    return torch.sigmoid(-stop_logits.to(torch.promote_types(stop_logits.dtype, torch.float32)))


def survival(stop_probs: torch.Tensor, threshold: float | None = None) -> torch.Tensor:
    """
    Survival of every vector, s_1 = 1 and s_{t+1} = s_t (1 - p_t).

    Args:
        stop_probs (`torch.Tensor` of shape `(..., steps)`): p_t, the probability that vector t is the last.
        threshold (`float`, *optional*): If given, by the hard rule of inference: a vector is the last if p_t is above
            it, so that s_t is 0 or 1.

    Returns:
        `torch.Tensor` of shape `(..., steps)`.
    """
    goes_on = 1 - stop_probs if threshold is None else (stop_probs <= threshold).to(stop_probs.dtype)
    # (..., steps): the first vector always survives, and whether the last one goes on counts for nothing
    return torch.cat([torch.ones_like(goes_on[..., :1]), goes_on[..., :-1].cumprod(dim=-1)], dim=-1)


def gated_causal_mask(key_weights: torch.Tensor, num_queries: int, dtype: torch.dtype) -> torch.Tensor:
    """
    Attention mask that adds the logarithm of a weight to the score of every key.

    Args:
        key_weights (`torch.Tensor` of shape `(rows, keys)`): Weights in [0, 1]; 1 is seen in full, 0 not at all.
        num_queries (`int`): The last `num_queries` keys are those of the queries; each sees the keys up to its own.
        dtype (`torch.dtype`): dtype of the attention scores.

    Returns:
        `torch.Tensor` of shape `(rows, 1, num_queries, keys)`.
    """
    num_keys = key_weights.shape[1]
    causal = torch.ones(num_queries, num_keys, dtype=torch.bool, device=key_weights.device)  # (num_queries, keys)
    visible = causal.tril(num_keys - num_queries) & (key_weights > 0)[:, None]  # (rows, num_queries, keys)
    bias = key_weights.clamp_min(torch.finfo(key_weights.dtype).tiny).log().to(dtype)  # (rows, keys)
    # Eager attention takes its softmax in float32, where the lowest of float64 is -inf.
    hidden = max(torch.finfo(dtype).min, torch.finfo(torch.float32).min)
    return torch.where(visible, bias[:, None], hidden)[:, None]


def relative_lengths(
    weights: torch.Tensor, num_tokens: torch.Tensor, softprompt_weights: torch.Tensor, alpha: float
) -> torch.Tensor:
    """
    E[L] / (text tokens + alpha |softprompt|) of every row: what the length penalty is the mean of.

    The denominator is a size and gets no gradient: a segment would else be paid for the softprompt that it leaves.

    Args:
        weights (`torch.Tensor` of shape `(rows, vectors)`): Survival of the new vectors; E[L] is their sum.
        num_tokens (`torch.Tensor` of shape `(rows,)`): Text tokens that they stand for.
        softprompt_weights (`torch.Tensor` of shape `(rows, softprompt_length)`): Survival of the vectors before them.
        alpha (`float`): What a vector counts beside a token.

    Returns:
        `torch.Tensor` of shape `(rows,)`.
    """
    size = num_tokens + alpha * softprompt_weights.detach().sum(dim=1)  # (rows,)
    return weights.sum(dim=1) / size.clamp_min(1)


__all__ = ["gated_causal_mask", "relative_lengths", "survival", "survives"]
