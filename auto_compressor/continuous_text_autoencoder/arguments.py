"""Arguments of `train.py` for continuous text autoencoders."""

from dataclasses import dataclass, field

from ..training.arguments import OptimArguments


@dataclass
class ContinuousTextArguments:
    """Which continuous text autoencoder is trained: a checkpoint, or a new model.

    A checkpoint keeps what is not given here; a new model has the defaults of [`ContinuousTextAutoencoderConfig`].
    """

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Checkpoint to start from: a hub name or a folder (default: a new model)."}
    )
    tokenizer_name: str | None = field(
        default=None, metadata={"help": "Tokenizer (default: that of the checkpoint, else the bundled one)."}
    )
    cache_dir: str | None = field(default=None, metadata={"help": "Folder for what is downloaded from the hub."})
    architecture: str | None = field(
        default=None, metadata={"help": "conv, or chunk, whose latents see their own tokens only (default: conv)."}
    )
    embedding_size: int | None = field(default=None, metadata={"help": "Width of the embeddings (default: 128)."})
    hidden_size: int | None = field(
        default=None, metadata={"help": "conv: channels at full length; chunk: width of its layers (default: 96)."}
    )
    latent_dim: int | None = field(default=None, metadata={"help": "Width of a latent (default: 64)."})
    num_residual_blocks: list[int] = field(
        default_factory=list,
        metadata={"help": "conv: residual blocks of each level, which halves the length (default: 2 2)."},
    )
    chunk_size: int | None = field(default=None, metadata={"help": "chunk: tokens of a latent (default: 4)."})
    num_chunk_layers: int | None = field(
        default=None, metadata={"help": "chunk: layers per token, and as many per chunk, on either side (default: 1)."}
    )
    tie_word_embeddings: bool | None = field(
        default=None, metadata={"help": "The embeddings are the head (default: false)."}
    )
    kl_loss_weight: float | None = field(
        default=None, metadata={"help": "Weight of the KL divergence from a standard normal (default: 1e-6)."}
    )
    kl_clip: float | None = field(default=None, metadata={"help": "Nats per dimension that are free (default: 0)."})
    kl_warmup_steps: int | None = field(
        default=None, metadata={"help": "Batches over which that weight grows (default: 0)."}
    )
    token_dropout: float | None = field(
        default=None, metadata={"help": "Share of tokens that the encoder does not see in training (default: 0)."}
    )
    latent_dropout: float | None = field(
        default=None, metadata={"help": "Dropout on latents in training (default: 0)."}
    )


@dataclass
class ContinuousTrainingArguments(OptimArguments):
    """Everything of [`OptimArguments`], with the published settings as defaults."""

    per_device_train_batch_size: int = field(default=48, metadata={"help": "Sequences per step and device."})
    learning_rate: float = field(default=1e-4, metadata={"help": "Highest learning rate."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Schedule of the learning rate."})
    warmup_steps: float = field(default=100, metadata={"help": "Steps, or a share of all, up to that rate."})
    adam_beta2: float = field(default=0.95, metadata={"help": "Decay of the second moments of AdamW."})


__all__ = ["ContinuousTextArguments", "ContinuousTrainingArguments"]
