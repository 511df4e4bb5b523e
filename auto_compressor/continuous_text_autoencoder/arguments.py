"""The command-line arguments of `train.py` for continuous text autoencoders: architecture, latents and losses."""

from dataclasses import dataclass, field

from ..training.arguments import OptimArguments


@dataclass
class ContinuousTextArguments:
    """Which continuous text autoencoder is trained: a checkpoint, or a new model.

    A checkpoint keeps its own value of whatever is not given here; a new model has the defaults that
    stand here.
    """

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Checkpoint to start from: a hub name or a folder (default: a new model)."}
    )
    tokenizer_name: str | None = field(
        default=None, metadata={"help": "Tokenizer (default: that of the checkpoint, else the bundled one)."}
    )
    cache_dir: str | None = field(default=None, metadata={"help": "Folder for what is downloaded from the hub."})
    architecture: str | None = field(
        default=None,
        metadata={
            "help": "Layers of the model: conv, or chunk, whose latents see their own tokens only (default: chunk)."
        },
    )
    embedding_size: int | None = field(
        default=None, metadata={"help": "Width of the token embeddings (default: 128)."}
    )
    hidden_size: int | None = field(
        default=None,
        metadata={"help": "conv: channels at full length; chunk: width of its layers (default: 256; conv: 96)."},
    )
    latent_dim: int | None = field(default=None, metadata={"help": "Width of a latent vector (default: 64)."})
    num_residual_blocks: list[int] = field(
        default_factory=list,
        metadata={"help": "conv: residual blocks of each level; every level halves the length (default: 2 2)."},
    )
    chunk_size: int | None = field(
        default=None, metadata={"help": "chunk: tokens that a latent stands for (default: 4)."}
    )
    num_chunk_layers: int | None = field(
        default=None, metadata={"help": "chunk: layers per token, and as many per chunk, on either side (default: 1)."}
    )
    tie_word_embeddings: bool | None = field(
        default=None,
        metadata={"help": "Use the token embeddings as the output head too (default: true; conv: false)."},
    )
    kl_loss_weight: float | None = field(
        default=None,
        metadata={
            "help": "Weight of the KL divergence of latents from a standard normal distribution (default: 1e-6)."
        },
    )
    kl_clip: float | None = field(
        default=None,
        metadata={"help": "Nats of KL divergence per dimension that cost nothing (default: 0.5; conv: 0)."},
    )
    kl_warmup_steps: int | None = field(
        default=None,
        metadata={"help": "Batches over which the weight of the KL divergence grows from 0 (default: 0)."},
    )
    token_dropout: float | None = field(
        default=None, metadata={"help": "Share of tokens that the encoder does not see in training (default: 0)."}
    )
    latent_dropout: float | None = field(
        default=None, metadata={"help": "Dropout on latents in training, in [0, 1) (default: 0)."}
    )


@dataclass
class ContinuousTrainingArguments(OptimArguments):
    """Everything of [`OptimArguments`], with settings for a model of minutes on the bundled text."""

    max_steps: int = field(default=800, metadata={"help": "Optimisation steps; -1: --num_train_epochs decides."})
    num_train_epochs: float = field(default=1.0, metadata={"help": "Passes over the text, with --max_steps -1."})
    per_device_train_batch_size: int = field(default=16, metadata={"help": "Sequences per step and device."})
    per_device_eval_batch_size: int = field(default=16, metadata={"help": "Sequences of a device at a time."})
    learning_rate: float = field(default=2e-3, metadata={"help": "Highest learning rate."})
    weight_decay: float = field(default=0.1, metadata={"help": "Weight decay of AdamW."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Schedule of the learning rate."})
    warmup_steps: float = field(
        default=100, metadata={"help": "Steps over which the learning rate rises; below 1: as a share of all."}
    )
    adam_beta2: float = field(default=0.95, metadata={"help": "Decay of the second moments of AdamW."})


__all__ = ["ContinuousTextArguments", "ContinuousTrainingArguments"]
