"""What the continuous text autoencoder returns: dataclasses that give the shape of every tensor."""

from dataclasses import dataclass

import torch
from transformers.utils import ModelOutput


@dataclass
class ContinuousEncoderOutput(ModelOutput):
    """
    Output of [`ContinuousTextAutoencoder.encode`]: a normal distribution for every latent.

    Args:
        mean, logvar (`torch.Tensor` of shape `(batch_size, latent_length, latent_dim)`): The means, and the logarithms
            of the variances. `decode` takes the means, or samples.
        latent_attention_mask (`torch.LongTensor` of shape `(batch_size, latent_length)`): 0 behind the last latent of
            a row.
    """

    mean: torch.Tensor | None = None
    logvar: torch.Tensor | None = None
    latent_attention_mask: torch.LongTensor | None = None


@dataclass
class ContinuousDecoderOutput(ModelOutput):
    """
    Output of [`ContinuousTextAutoencoder.decode`].

    Args:
        logits (`torch.Tensor` of shape `(batch_size, latent_length * total_stride, vocab_size)`): Logits of each
            token; a text that is shorter ends before.
    """

    logits: torch.Tensor | None = None


@dataclass
class ContinuousTextAutoencoderOutput(ModelOutput):
    """
    Output of [`ContinuousTextAutoencoder`].

    Args:
        loss (`torch.Tensor`, scalar): `losses["reconstruction"] + weight * losses["kl"]`; only with `labels`.
        logits (`torch.Tensor` of shape `(batch_size, length, vocab_size)`): Logits of each token of the input.
        losses (`dict[str, torch.Tensor]`): `reconstruction`, in nats per token, and `kl`, in nats per latent and
            dimension.
        mean, logvar, latent_attention_mask: As in [`ContinuousEncoderOutput`].
        latents (`torch.Tensor` of shape `(batch_size, latent_length, latent_dim)`): What was decoded.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    losses: dict[str, torch.Tensor] | None = None
    mean: torch.Tensor | None = None
    logvar: torch.Tensor | None = None
    latents: torch.Tensor | None = None
    latent_attention_mask: torch.LongTensor | None = None


__all__ = ["ContinuousDecoderOutput", "ContinuousEncoderOutput", "ContinuousTextAutoencoderOutput"]
