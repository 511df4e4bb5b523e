"""The size of summary vectors, see `summary_scale` in the config."""

import torch
from torch import nn
from torch.nn import functional as F


class SummaryNorm(nn.Module):
    """
    RMSNorm (Zhang and Sennrich, NeurIPS 2019, equation 4) of summary vectors, `(..., dim)` in and out.

    Its gain starts at the root mean square of the token embeddings; it is a parameter only if it is learned.
    """

    eps = 1e-6  # beside the mean square of a hidden state, which is about 1

    def __init__(self, dim: int, learned: bool):
        super().__init__()
        weight = torch.ones(dim)
        if learned:
            self.weight = nn.Parameter(weight)
        else:
            self.register_buffer("weight", weight)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(states, self.weight.shape, self.weight, self.eps)


__all__ = ["SummaryNorm"]
