"""Encoders and decoders of the continuous text autoencoder: convolutions over levels, or layers over chunks.

An encoder maps embeddings `(batch, length, embedding_size)` and their mask `(batch, length)` to states
`(batch, latent_length, output_size)`, a decoder latents `(batch, latent_length, latent_dim)` and theirs to states
`(batch, length, output_size)`. `length` is a multiple of the tokens per latent, and padding stands behind a row.
"""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer


class ResidualBlock(GradientCheckpointingLayer):
    """Two convolutions, each with an RMS norm over the channels and SiLU, and the input added."""

    def __init__(self, in_channels: int, channels: int, eps: float):
        super().__init__()
        self.conv1 = nn.Conv1d(in_channels, channels, kernel_size=3, padding=1)
        self.norm1 = nn.RMSNorm(channels, eps=eps)
        self.conv2 = nn.Conv1d(channels, channels, kernel_size=3, padding=1)
        self.norm2 = nn.RMSNorm(channels, eps=eps)
        self.skip = nn.Identity() if in_channels == channels else nn.Conv1d(in_channels, channels, kernel_size=1)

    def forward(self, hidden_states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """`(batch, in_channels, length)` and `(batch, 1, length)` -> `(batch, channels, length)`."""
        # Zeros on padding are what a convolution finds behind the end of a row.
        inner = F.silu(channel_norm(self.norm1, self.conv1(hidden_states * mask)))  # (batch, channels, length)
        inner = F.silu(channel_norm(self.norm2, self.conv2(inner * mask)))
        return inner + self.skip(hidden_states)


def channel_norm(norm: nn.RMSNorm, hidden_states: torch.Tensor) -> torch.Tensor:
    """Norms every position of `(batch, channels, length)`."""
    return norm(hidden_states.transpose(1, 2)).transpose(1, 2)


class Downsampling(nn.Conv1d):
    """A convolution that halves the length."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, kernel_size=4, stride=2, padding=1)

    def forward(self, hidden_states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """`(batch, in_channels, length)` and `(batch, 1, length)` -> `(batch, out_channels, length / 2)`."""
        return super().forward(hidden_states * mask)


class Upsampling(nn.ConvTranspose1d):
    """A transposed convolution that doubles the length."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, kernel_size=4, stride=2, padding=1)

    def forward(self, hidden_states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """`(batch, in_channels, length)` and `(batch, 1, length)` -> `(batch, out_channels, 2 * length)`."""
        return super().forward(hidden_states * mask)


class ConvEncoder(nn.Module):
    """Levels from full length down, each of residual blocks and a downsampling, and a residual block at the bottom."""

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        eps, in_channels, self.blocks = config.rms_norm_eps, config.embedding_size, nn.ModuleList()
        for level, num_blocks in enumerate(config.num_residual_blocks):
            channels = config.hidden_size * 2**level
            for _ in range(num_blocks):
                self.blocks.append(ResidualBlock(in_channels, channels, eps))
                in_channels = channels
            self.blocks.append(Downsampling(in_channels, 2 * channels))
            in_channels = 2 * channels
        self.output_size = config.hidden_size * config.total_stride
        self.blocks.append(ResidualBlock(in_channels, self.output_size, eps))

    def forward(self, embeddings: torch.Tensor, mask: torch.BoolTensor) -> torch.Tensor:
        # (batch, embedding_size, length), (batch, 1, length)
        hidden_states, mask = embeddings.transpose(1, 2), mask[:, None].to(embeddings.dtype)
        for block in self.blocks:
            # A state counts where the first token that it stands for does: padding stands behind.
            stride = mask.shape[-1] // hidden_states.shape[-1]
            hidden_states = block(hidden_states, mask[..., ::stride])
        return hidden_states.transpose(1, 2)  # (batch, latent_length, output_size)


class ConvDecoder(nn.Module):
    """A residual block at the bottom, and levels up to full length, each of an upsampling and residual blocks."""

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        eps, channels = config.rms_norm_eps, config.hidden_size * config.total_stride
        self.latent_proj = nn.Linear(config.latent_dim, channels)
        self.bottom_block = ResidualBlock(channels, channels, eps)
        self.blocks = nn.ModuleList()
        for level, num_blocks in reversed(list(enumerate(config.num_residual_blocks))):
            channels = config.hidden_size * 2**level
            self.blocks.append(Upsampling(2 * channels, channels))
            self.blocks.extend(ResidualBlock(channels, channels, eps) for _ in range(num_blocks))
        self.output_size = config.hidden_size

    def forward(self, latents: torch.Tensor, mask: torch.BoolTensor) -> torch.Tensor:
        # (batch, channels, latent_length), (batch, 1, latent_length)
        hidden_states, mask = self.latent_proj(latents).transpose(1, 2), mask[:, None].to(latents.dtype)
        hidden_states = self.bottom_block(hidden_states, mask)  # (batch, channels, latent_length)
        for block in self.blocks:
            stride = hidden_states.shape[-1] // mask.shape[-1]
            hidden_states = block(hidden_states, mask.repeat_interleave(stride, dim=-1))
        return hidden_states.transpose(1, 2)  # (batch, length, output_size)


class GatedLayer(GradientCheckpointingLayer):
    """An RMS norm and a gated layer (SwiGLU, Shazeer, arXiv 2002.05202), and the input added."""

    def __init__(self, hidden_size: int, eps: float):
        super().__init__()
        self.norm = nn.RMSNorm(hidden_size, eps=eps)
        self.gate_proj = nn.Linear(hidden_size, 2 * hidden_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, 2 * hidden_size, bias=False)
        self.down_proj = nn.Linear(2 * hidden_size, hidden_size, bias=False)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        normed = self.norm(hidden_states)
        return hidden_states + self.down_proj(F.silu(self.gate_proj(normed)) * self.up_proj(normed))


def gated_layers(count: int, hidden_size: int, eps: float) -> nn.Sequential:
    return nn.Sequential(*(GatedLayer(hidden_size, eps) for _ in range(count)))


class ChunkEncoder(nn.Module):
    """Layers per token, the tokens of a chunk side by side, and layers per chunk (CALM, arXiv 2510.27688)."""

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        eps, self.chunk_size, self.output_size = config.rms_norm_eps, config.chunk_size, config.hidden_size
        self.token_layers = gated_layers(config.num_chunk_layers, config.embedding_size, eps)
        self.chunk_proj = nn.Linear(config.chunk_size * config.embedding_size, config.hidden_size)
        self.chunk_layers = gated_layers(config.num_chunk_layers, config.hidden_size, eps)
        self.norm = nn.RMSNorm(config.hidden_size, eps=eps)

    def forward(self, embeddings: torch.Tensor, mask: torch.BoolTensor) -> torch.Tensor:
        hidden_states = self.token_layers(embeddings) * mask[..., None]  # (batch, length, embedding_size)
        # (batch, latent_length, chunk_size * embedding_size)
        chunks = hidden_states.unflatten(1, (-1, self.chunk_size)).flatten(2)
        return self.norm(self.chunk_layers(self.chunk_proj(chunks)))


class ChunkDecoder(nn.Module):
    """Layers per chunk, its cutting into tokens, and layers per token."""

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        eps, self.chunk_size, self.output_size = config.rms_norm_eps, config.chunk_size, config.embedding_size
        self.latent_proj = nn.Linear(config.latent_dim, config.hidden_size)
        self.chunk_layers = gated_layers(config.num_chunk_layers, config.hidden_size, eps)
        self.token_proj = nn.Linear(config.hidden_size, config.chunk_size * config.embedding_size)
        self.token_layers = gated_layers(config.num_chunk_layers, config.embedding_size, eps)
        self.norm = nn.RMSNorm(config.embedding_size, eps=eps)

    def forward(self, latents: torch.Tensor, mask: torch.BoolTensor) -> torch.Tensor:
        # (batch, latent_length, chunk_size * embedding_size), which becomes (batch, length, embedding_size)
        chunks = self.token_proj(self.chunk_layers(self.latent_proj(latents)))
        return self.norm(self.token_layers(chunks.unflatten(2, (self.chunk_size, -1)).flatten(1, 2)))


__all__ = ["ChunkDecoder", "ChunkEncoder", "ConvDecoder", "ConvEncoder"]
