"""Config of the continuous text autoencoder."""

import math

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


ARCHITECTURES = ("conv", "chunk")


@strict
class ContinuousTextAutoencoderConfig(PreTrainedConfig):
    """
    Config of [`ContinuousTextAutoencoder`].

    Args:
        vocab_size (`int`, defaults to 32000): Number of tokens.
        architecture (`str`, defaults to `"conv"`): `"conv"`, convolutions that halve the length level by level, or
            `"chunk"`, which makes a latent of each `chunk_size` tokens without a look at others.
        embedding_size (`int`, defaults to 128): Width of the token embeddings.
        hidden_size (`int`, defaults to 96): `"conv"`: channels at full length, twice as many at every level further
            down. `"chunk"`: width of the layers that see a whole chunk.
        latent_dim (`int`, defaults to 64): Width of a latent.
        num_residual_blocks (`list[int]`, defaults to `[2, 2]`): `"conv"`: residual blocks of every level, from full
            length down; each level halves the length.
        chunk_size (`int`, defaults to 4): `"chunk"`: tokens of a latent.
        num_chunk_layers (`int`, defaults to 1): `"chunk"`: layers per token, and as many per chunk, on either side.
        tie_word_embeddings (`bool`, defaults to `False`): The embeddings are the head; with `"conv"` this needs
            `embedding_size` = `hidden_size`.
        kl_loss_weight (`float`, defaults to 1e-6): Weight of the mean KL divergence per dimension from a standard
            normal distribution.
        kl_clip (`float`, defaults to 0.0): Nats of divergence per dimension that cost nothing: less counts as this.
        kl_warmup_steps (`int`, defaults to 0): Batches of training over which the weight of the divergence grows
            linearly from 0.
        token_dropout (`float`, defaults to 0.0): Share of tokens that the encoder does not see in training.
        latent_dropout (`float`, defaults to 0.0): Dropout on latents in training.
        rms_norm_eps (`float`, defaults to 1e-6): Epsilon of all norms.
        initializer_range (`float`, defaults to 1.0): Standard deviation of new weights times the square root of their
            inputs, and of new embeddings.
    """

    model_type = "continuous_text_autoencoder"
    keys_to_ignore_at_inference = ["losses", "mean", "logvar", "latents", "latent_attention_mask"]

    vocab_size: int = 32000
    architecture: str = "conv"
    embedding_size: int = 128
    hidden_size: int = 96
    latent_dim: int = 64
    num_residual_blocks: list[int] | None = None
    chunk_size: int = 4
    num_chunk_layers: int = 1
    tie_word_embeddings: bool = False
    kl_loss_weight: float | int = 1e-6
    kl_clip: float | int = 0.0
    kl_warmup_steps: int = 0
    token_dropout: float | int = 0.0
    latent_dropout: float | int = 0.0
    rms_norm_eps: float = 1e-6
    initializer_range: float | int = 1.0

    def __post_init__(self, **kwargs):
        if self.num_residual_blocks is None:
            self.num_residual_blocks = [2, 2]
        super().__post_init__(**kwargs)

    @property
    def total_stride(self) -> int:
        """Tokens of a latent."""
        return self.chunk_size if self.architecture == "chunk" else 2 ** len(self.num_residual_blocks)

    def validate_architecture(self):
        if self.architecture not in ARCHITECTURES:
            raise ValueError(f"`architecture` must be one of {', '.join(ARCHITECTURES)}, got {self.architecture!r}.")
        for field in ("vocab_size", "embedding_size", "hidden_size", "latent_dim", "chunk_size", "num_chunk_layers"):
            if getattr(self, field) < 1:
                raise ValueError(f"`{field}` must be 1 or more, got {getattr(self, field)}.")
        if any(blocks < 0 for blocks in self.num_residual_blocks):
            raise ValueError(f"`num_residual_blocks` must all be 0 or more, got {self.num_residual_blocks}.")
        if self.tie_word_embeddings and self.architecture == "conv" and self.embedding_size != self.hidden_size:
            raise ValueError(
                "`tie_word_embeddings` with `architecture` conv needs `embedding_size` = `hidden_size`, got"
                f" {self.embedding_size} and {self.hidden_size}."
            )

    def validate_training(self):
        for field in ("kl_loss_weight", "kl_clip", "kl_warmup_steps"):
            if not 0 <= getattr(self, field) < math.inf:
                raise ValueError(f"`{field}` must be 0 or more, and finite, got {getattr(self, field)}.")
        for field in ("token_dropout", "latent_dropout"):
            if not 0 <= getattr(self, field) < 1:
                raise ValueError(f"`{field}` must be at least 0 and below 1, got {getattr(self, field)}.")


__all__ = ["ContinuousTextAutoencoderConfig"]
