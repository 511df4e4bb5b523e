"""Latents of a text on disk: one safetensors file with the latents and what they belong to."""

import os

import torch

from ..files.vector_file import VectorFormat, check_model, check_saveable, read_vectors, write_vectors
from .modeling_continuous_text_autoencoder import ContinuousTextAutoencoder


LATENTS = VectorFormat("latents", "auto_compressor.latents.v1")


def save_latents(path: str | os.PathLike, latents: torch.Tensor, model: ContinuousTextAutoencoder, num_tokens: int):
    """
    Saves latents with the identity of their model; the file is there whole or not at all.

    Args:
        path: The file, usually `*.safetensors`. An old one is replaced.
        latents (`torch.Tensor` of shape `(batch_size, latent_length, latent_dim)`): What `encode` gave.
        model ([`ContinuousTextAutoencoder`]): The model that made them.
        num_tokens (`int`): Tokens of each text that they stand for, the last latent for fewer perhaps.

    Raises:
        ValueError: if the latents are none, of another shape, no floats or not finite, or stand for no `num_tokens`.
        OSError: if the file cannot be written.
    """
    check_saveable("latents", latents, model.config.latent_dim, num_tokens)
    if -(-num_tokens // model.config.total_stride) != latents.shape[1]:
        raise ValueError(
            f"`num_tokens` must be those of {latents.shape[1]} latents of {model.config.total_stride} tokens each, got"
            f" {num_tokens}."
        )
    write_vectors(path, LATENTS, latents, model, num_tokens)


def load_latents(path: str | os.PathLike, model: ContinuousTextAutoencoder) -> tuple[torch.Tensor, int]:
    """
    Loads what [`save_latents`] wrote, onto the device and in the dtype of the model.

    Returns:
        `tuple`: Latents `(batch_size, latent_length, latent_dim)` and the tokens that each row stands for.

    Raises:
        OSError: if the file is missing, damaged or of another kind; in the last two cases it is a `ValueError` too.
        ValueError: if the latents were made by other weights.
    """
    latents, metadata = read_vectors(path, LATENTS)
    check_model(path, LATENTS, latents, metadata, model, model.config.latent_dim)
    return latents.to(model.device, model.dtype), int(metadata["num_tokens"])


__all__ = ["load_latents", "save_latents"]
