"""Published checkpoints of the continuous text autoencoder: weights by name, whose shapes tell the settings."""

import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch

from ..files.published import PublishedFormat
from .configuration_continuous_text_autoencoder import ContinuousTextAutoencoderConfig
from .modeling_continuous_text_autoencoder import ContinuousTextAutoencoder


BLOCK = r"((?:en|de)coder\.(?:blocks\.\d+|bottom_block))"
WEIGHTS = [
    (r"encoder\.embedding\.", r"embed_tokens."),
    (r"encoder\.fc_mu\.", r"mean_head."),
    (r"encoder\.fc_logvar\.", r"logvar_head."),
    (r"decoder\.fc\.", r"decoder.latent_proj."),
    (r"decoder\.out_conv\.", r"lm_head."),
    (rf"{BLOCK}\.(conv\d|skip)\.", r"\1.\2."),
    (rf"{BLOCK}\.(norm\d)\.ln\.", r"\1.\2."),
    (rf"{BLOCK}\.(?:de)?conv\.", r"\1."),
]
FIELDS = {
    "vocab_size": "vocab_size",
    "latent_dim": "latent_dim",
    "embed_dim": "embedding_size",
    "base_channels": "hidden_size",
    "num_res_blocks": "num_residual_blocks",
}
# Settings that are widths: of which weight, and which of its dimensions.
WIDTHS = {
    "vocab_size": ("encoder.embedding.weight", 0),
    "embed_dim": ("encoder.embedding.weight", 1),
    "base_channels": ("decoder.out_conv.weight", 1),
    "latent_dim": ("encoder.fc_mu.weight", 0),
}


def find_weights(checkpoint: Any) -> dict[str, torch.Tensor] | None:
    """The weights in what a published file holds: all of it, or one of its entries; None if there are none."""
    for found in (checkpoint, *(checkpoint.values() if isinstance(checkpoint, dict) else ())):
        if isinstance(found, dict) and found and all(isinstance(tensor, torch.Tensor) for tensor in found.values()):
            # Training on several devices, or compiled, puts this in front of every name.
            return {re.sub(r"^((module|_orig_mod)\.)+", "", str(name)): tensor for name, tensor in found.items()}
    return None


def published_settings(weights: dict[str, torch.Tensor]) -> dict[str, Any]:
    """The published settings, as far as published weights tell them by their shapes."""
    settings = {
        setting: weights[name].shape[dim]
        for setting, (name, dim) in WIDTHS.items()
        if name in weights and weights[name].ndim > dim
    }
    matches = (re.fullmatch(r"encoder\.blocks\.(\d+)\.conv\.weight", name) for name in weights)
    downsampling = sorted(int(match[1]) for match in matches if match)
    return settings | {"num_res_blocks": [after - before - 1 for before, after in pairwise([-1, *downsampling])]}


def complete_weights(weights: dict[str, torch.Tensor], latent_dim: int) -> dict[str, torch.Tensor]:
    """Published weights under the names here, in the shapes here, and with statistics of latents, which are new."""
    for name in ("mean_head.weight", "logvar_head.weight", "decoder.latent_proj.weight", "lm_head.weight"):
        if name in weights:  # a convolution of kernel 1 there
            weights = weights | {name: weights[name].squeeze(-1)}
    mean, variance = torch.zeros(latent_dim), torch.ones(latent_dim)
    statistics = {"mean": mean, "variance": variance, "num_batches": torch.zeros(())}
    return weights | {f"latent_norm.{name}": tensor for name, tensor in statistics.items()}


class ContinuousTextFormat(PublishedFormat):
    contents = "weights by name, alone or as one of its entries"

    def find(self, checkpoint: Any) -> tuple[dict[str, Any], dict[str, torch.Tensor]] | None:
        weights = find_weights(checkpoint)
        return None if weights is None else ({}, weights)

    def settings(self, weights: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        return published_settings(weights)

    def own_weights(
        self, weights: Mapping[str, torch.Tensor], config: ContinuousTextAutoencoderConfig
    ) -> dict[str, torch.Tensor]:
        return complete_weights(super().own_weights(weights, config), config.latent_dim)


FORMATS = {"continuous_text_autoencoder": ContinuousTextFormat(ContinuousTextAutoencoder, WEIGHTS, FIELDS)}

__all__ = ["FORMATS"]
