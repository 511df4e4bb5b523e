"""From vectors to discrete codes and back: an EMA codebook, residual codebooks, finite scalar quantisation.

Every quantiser gives `num_quantizers` codes per vector. Stage `q` is the vector that the codes 0..q stand for; the
last stage is the quantised vector.
"""

import math
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F
from transformers.utils import ModelOutput

from .tensors import is_distributed, masked_mean, sum_over_processes, warmed_up


@dataclass
class QuantizerOutput(ModelOutput):
    """
    Args:
        stages (`torch.Tensor` of shape `(..., num_quantizers, codebook_dim)`): What the first codes of each vector
            stand for; forward the quantised value, backward the gradient of the input (straight-through).
        codes (`torch.LongTensor` of shape `(..., num_quantizers)`): Each from 0 to `codebook_size - 1`.
        commitment_loss (`torch.Tensor`, scalar): Mean squared distance of the inputs from their stages.
    """

    stages: torch.Tensor | None = None
    codes: torch.LongTensor | None = None
    commitment_loss: torch.Tensor | None = None


def straight_through(vectors: torch.Tensor, quantized: torch.Tensor) -> torch.Tensor:
    """Forward `quantized`, backward the identity on `vectors` (van den Oord et al., arXiv 1711.00937, section 3.2)."""
    # In this order the forward value is `quantized` to the last bit.
    return quantized.detach() + (vectors - vectors.detach())


def all_processes(tensor: torch.Tensor) -> torch.Tensor:
    """Rows of all processes, in their order; shorter ones are filled with zeros to the longest."""
    if not is_distributed():
        return tensor
    longest = torch.tensor(tensor.shape[0], device=tensor.device)
    dist.all_reduce(longest, op=dist.ReduceOp.MAX)
    padded = F.pad(tensor, (0, 0) * (tensor.ndim - 1) + (0, int(longest) - tensor.shape[0]))
    gathered = [torch.empty_like(padded) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, padded.contiguous())
    return torch.cat(gathered)  # (processes * longest, ...)


def draw_rows(rows: torch.Tensor, weights: torch.Tensor, chosen: torch.BoolTensor) -> torch.Tensor:
    """One of the `rows` for each chosen entry, in proportion to their weights; the others get any row.

    The rows are met at even steps through the running sum of the weights, not at random.

    Args:
        rows (`torch.Tensor` of shape `(num_rows, dim)`), weights (`torch.Tensor` of shape `(num_rows,)`): The rows to
            take from, and their weights: 0 for rows that must not be taken, above 0 for some.
        chosen (`torch.BoolTensor` of shape `(size,)`): The entries that get a row.

    Returns:
        `torch.Tensor` of shape `(size, dim)`.
    """
    sums = weights.double().cumsum(dim=0)  # (num_rows,)
    step = sums[-1] / chosen.sum().clamp(min=1)
    places = (chosen.cumsum(dim=0) - 0.5) * step  # (size,), in the middle of each step
    return rows[torch.searchsorted(sums, places).clamp(0, len(rows) - 1)]


class VectorQuantizer(nn.Module):
    """
    A codebook that follows the mean of the vectors that fall to each code (van den Oord et al., arXiv 1711.00937,
    appendix A.1), and whose unused codes start anew at vectors of the batch (Dhariwal et al., arXiv 2005.00341).

    A fresh codebook is all unused: its first batch of training fills it. The statistics are those of all processes.

    Args:
        codebook_size (`int`), codebook_dim (`int`): Number and width of the codes.
        ema_decay (`float`): What the statistics of earlier batches keep of their weight at every batch.
        dead_code_threshold (`float`): A code is unused whose count is below this share of the mean count.
    """

    num_quantizers = 1

    def __init__(self, codebook_size: int, codebook_dim: int, ema_decay: float, dead_code_threshold: float):
        super().__init__()
        self.codebook_size = codebook_size
        self.ema_decay = ema_decay
        self.dead_code_threshold = dead_code_threshold
        self.codebook = nn.Buffer(torch.empty(codebook_size, codebook_dim))
        self.cluster_size = nn.Buffer(torch.empty(codebook_size))  # vectors per batch that fall to a code
        self.num_batches = nn.Buffer(torch.empty(()))

    def codes_to_stages(self, codes: torch.LongTensor) -> torch.Tensor:
        """Returns `(..., 1, codebook_dim)` for codes `(..., 1)`."""
        return F.embedding(codes, self.codebook)

    def nearest(self, vectors: torch.Tensor) -> torch.LongTensor:
        """The code of least squared distance, the first of equals: `(...,)` for `(..., codebook_dim)`."""
        with torch.autocast(vectors.device.type, enabled=False):  # half precision would find other codes
            # |v - e|^2 without |v|^2, which is the same for all codes
            return (self.codebook.square().sum(dim=-1) - 2 * vectors @ self.codebook.T).argmin(dim=-1)

    @torch.no_grad()
    def reset_dead_codes(self, vectors: torch.Tensor, mask: torch.BoolTensor):
        """
        Moves unused codes to vectors of the batch, and gives them the mean count.

        A fresh codebook is spread over the batch. Later, vectors are taken in proportion to their squared distance
        from the codebook, as k-means++ seeds (Arthur and Vassilvitskii, 2007): what has a code gets no second name.
        """
        rows, valid = all_processes(vectors), all_processes(mask)  # (vectors, codebook_dim), (vectors,)
        if not len(rows):
            return
        dead = self.cluster_size <= self.dead_code_threshold * self.cluster_size.mean()  # (codebook_size,)
        dead &= valid.any()
        distances = (rows - F.embedding(self.nearest(rows), self.codebook)).square().sum(dim=-1)  # (vectors,)
        weights = torch.where(self.cluster_size.any(), distances + torch.finfo(distances.dtype).tiny, 1.0)
        drawn = draw_rows(rows, weights.masked_fill(~valid, 0.0), dead)  # (codebook_size, codebook_dim)
        self.codebook.copy_(torch.where(dead[:, None], drawn, self.codebook))
        self.cluster_size.copy_(torch.where(dead, valid.sum() / self.codebook_size, self.cluster_size))

    @torch.no_grad()
    def update(self, vectors: torch.Tensor, mask: torch.BoolTensor, codes: torch.LongTensor):
        """Moves the statistics towards those of the batch; a code without vectors stays where it is."""
        weights = mask.to(vectors.dtype)
        # (codebook_size, codebook_dim + 1): for each code the sum of its vectors, and their number
        batch = torch.zeros(self.codebook_size, vectors.shape[1] + 1, dtype=vectors.dtype, device=vectors.device)
        batch.index_add_(0, codes, torch.cat([vectors, torch.ones_like(weights)[:, None]], dim=1) * weights[:, None])
        batch = sum_over_processes(batch)
        decay = warmed_up(self.ema_decay, self.num_batches)
        kept, new = decay * self.cluster_size, (1 - decay) * batch
        sums = kept[:, None] * self.codebook + new[:, :-1]  # (codebook_size, codebook_dim)
        self.cluster_size.copy_(kept + new[:, -1])
        self.codebook.copy_(torch.where(new[:, -1:] > 0, sums / self.cluster_size[:, None], self.codebook))
        self.num_batches.add_(batch[:, -1].any())

    def forward(self, vectors: torch.Tensor, mask: torch.BoolTensor) -> QuantizerOutput:
        """
        Args:
            vectors (`torch.Tensor` of shape `(..., codebook_dim)`): What is quantised.
            mask (`torch.BoolTensor` of shape `(...,)`): False where there is no vector: it counts for nothing.
        """
        # (vectors, codebook_dim), (vectors,)
        rows, valid = vectors.detach().flatten(0, -2).to(self.codebook.dtype), mask.flatten()
        if self.training:
            self.reset_dead_codes(rows, valid)
        codes = self.nearest(rows)  # (vectors,)
        quantized = F.embedding(codes, self.codebook).view_as(vectors).to(vectors.dtype)
        if self.training:
            self.update(rows, valid, codes)
        loss = masked_mean((vectors - quantized).square().mean(dim=-1), mask, over_processes=self.training)
        stages = straight_through(vectors, quantized)[..., None, :]  # (..., 1, codebook_dim)
        return QuantizerOutput(stages=stages, codes=codes.view(*mask.shape, 1), commitment_loss=loss)


class ResidualVectorQuantizer(nn.Module):
    """Codebooks in turn, each for what those before leave over (Zeghidour et al., arXiv 2107.03312, algorithm 1)."""

    def __init__(self, num_quantizers: int, **quantizer_kwargs):
        super().__init__()
        self.num_quantizers = num_quantizers
        self.quantizers = nn.ModuleList(VectorQuantizer(**quantizer_kwargs) for _ in range(num_quantizers))
        self.codebook_size = self.quantizers[0].codebook_size

    def codes_to_stages(self, codes: torch.LongTensor) -> torch.Tensor:
        """Returns `(..., num_quantizers, codebook_dim)` for codes `(..., num_quantizers)`."""
        parts = [
            quantizer.codes_to_stages(code[..., None])
            for quantizer, code in zip(self.quantizers, codes.unbind(dim=-1), strict=True)
        ]
        return torch.cat(parts, dim=-2).cumsum(dim=-2)  # (..., num_quantizers, codebook_dim)

    def forward(self, vectors: torch.Tensor, mask: torch.BoolTensor) -> QuantizerOutput:
        """As [`VectorQuantizer.forward`]; the commitment loss is the mean over the codebooks."""
        residual, outputs = vectors, []
        for quantizer in self.quantizers:
            outputs.append(quantizer(residual, mask))
            residual = residual - outputs[-1].stages[..., 0, :].detach()
        # (..., num_quantizers, codebook_dim), each the sum of what the codebooks so far have found
        quantized = torch.cat([output.stages.detach() for output in outputs], dim=-2).cumsum(dim=-2)
        return QuantizerOutput(
            stages=straight_through(vectors[..., None, :], quantized),
            codes=torch.cat([output.codes for output in outputs], dim=-1),
            commitment_loss=sum(output.commitment_loss for output in outputs) / self.num_quantizers,
        )


class FiniteScalarQuantizer(nn.Module):
    """
    Rounds every dimension to one of a few levels; the grid of all is the codebook (Mentzer et al., arXiv 2309.15505).

    Args:
        levels (`list[int]`): Levels of each dimension, 2 or more; their product is the `codebook_size`.
    """

    num_quantizers = 1

    def __init__(self, levels: list[int]):
        super().__init__()
        self.levels = list(levels)
        self.codebook_size = math.prod(levels)

    def constants(self, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The levels, and the weight of each dimension in a code, each `(codebook_dim,)`."""
        levels = torch.tensor(self.levels, dtype=torch.long, device=like.device)
        return levels, levels.cumprod(dim=0) // levels

    def bound(self, vectors: torch.Tensor) -> torch.Tensor:
        """Bends each dimension into the range that rounds to its levels (equation in section 3, and appendix A)."""
        levels, _ = self.constants(vectors)
        # A little more than the range: with 2 levels `atanh` would be infinite.
        half_range = (levels - 1) * (1 + 1e-3) / 2
        offset = torch.where(levels % 2 == 0, 0.5, 0.0)
        return (vectors + (offset / half_range).atanh()).tanh() * half_range - offset

    def codes_to_stages(self, codes: torch.LongTensor) -> torch.Tensor:
        """Returns `(..., 1, codebook_dim)`, each dimension in [-1, 1], for codes `(..., 1)`."""
        levels, weights = self.constants(codes)
        return ((codes[..., None] // weights % levels) - levels // 2).float() / (levels // 2)

    def forward(self, vectors: torch.Tensor, mask: torch.BoolTensor) -> QuantizerOutput:
        """As [`VectorQuantizer.forward`], without a commitment loss."""
        levels, weights = self.constants(vectors)
        bounded = self.bound(vectors.float())
        rounded = straight_through(bounded, bounded.round())
        codes = ((rounded.detach().long() + levels // 2) * weights).sum(dim=-1)  # (...,)
        stages = (rounded / (levels // 2)).to(vectors.dtype)[..., None, :]  # (..., 1, codebook_dim), in [-1, 1]
        return QuantizerOutput(stages=stages, codes=codes[..., None], commitment_loss=vectors.new_zeros(()))


__all__ = [
    "FiniteScalarQuantizer",
    "QuantizerOutput",
    "ResidualVectorQuantizer",
    "VectorQuantizer",
]
