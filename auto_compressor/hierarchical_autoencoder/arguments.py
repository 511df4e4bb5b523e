"""The command-line arguments of `train.py` for hierarchical byte autoencoders: their levels and their losses."""

from dataclasses import dataclass, field

from ..training.arguments import OptimArguments


@dataclass
class HierarchicalArguments:
    """Which hierarchical autoencoder is trained: a checkpoint, one with new levels over its own, or a new model.

    An argument that describes a level takes one value for all levels, or one for each, from bytes up; the levels of a
    checkpoint keep theirs. What is not given is as in [`HierarchicalLevelConfig`].
    """

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Checkpoint to start from: a hub name or a folder (default: a new model)."}
    )
    cache_dir: str | None = field(default=None, metadata={"help": "Folder for what is downloaded from the hub."})
    attn_implementation: str | None = field(
        default=None, metadata={"help": "eager or sdpa (default: transformers chooses)."}
    )
    num_levels: int | None = field(
        default=None,
        metadata={
            "help": "Number of levels of codes, each over the one below (default: that of the checkpoint, else 1)."
        },
    )
    freeze_levels: int = field(
        default=0,
        metadata={
            "help": "Number of levels, from bytes up, that stay as they are in the checkpoint, codebooks too; if these"
            " are all, only the language model over the codes is trained."
        },
    )
    hidden_size: list[int] = field(default_factory=list, metadata={"help": "Width of the layers (default: 128)."})
    intermediate_size: list[int] = field(
        default_factory=list, metadata={"help": "Inner width of the feed-forward layers (default: 512)."}
    )
    num_hidden_layers: list[int] = field(
        default_factory=list, metadata={"help": "Layers of the compressor (default: 2)."}
    )
    num_expander_layers: list[int] = field(
        default_factory=list, metadata={"help": "Layers of the expander within a segment (default: 2)."}
    )
    window: list[int] = field(
        default_factory=list,
        metadata={"help": "Symbols before each one that it sees in a layer of the compressor (default: 32)."},
    )
    quantizer: list[str] = field(
        default_factory=list, metadata={"help": "How codes are found: ema_vq, residual_vq or fsq (default: ema_vq)."}
    )
    codebook_size: list[int] = field(
        default_factory=list,
        metadata={"help": "Number of codes in a codebook (default: 1024); with fsq it follows from --fsq_levels."},
    )
    codebook_dim: list[int] = field(
        default_factory=list,
        metadata={
            "help": "Width of the vectors that codes stand for (default: 32); with fsq it follows from --fsq_levels."
        },
    )
    num_quantizers: list[int] = field(
        default_factory=list,
        metadata={"help": "Codebooks of residual_vq, each of which gives a segment one code (default: 1)."},
    )
    fsq_levels: list[int] = field(
        default_factory=list,
        metadata={
            "help": "Values that each dimension of fsq can take, the same on all levels of codes (default: 8 5 5 5)."
        },
    )
    ema_decay: list[float] = field(
        default_factory=list,
        metadata={
            "help": "Share of the running statistics of a codebook that is kept at every batch (default: 0.95)."
        },
    )
    dead_code_threshold: list[float] = field(
        default_factory=list,
        metadata={"help": "Share of the mean use of codes below which a code starts anew (default: 0.1)."},
    )
    border_rule: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Where segments start: entropy_rise, entropy_threshold, cumulative_entropy or target_ratio"
            " (default: entropy_rise)."
        },
    )
    border_threshold: list[float] = field(
        default_factory=list,
        metadata={"help": "Threshold that --border_rule compares entropies with, in nats (default: 0.2)."},
    )
    target_ratio: list[float] = field(
        default_factory=list,
        metadata={
            "help": "Bytes, or segments of the level below, per segment that target_ratio aims at (default: 2.4)."
        },
    )
    max_patch_length: list[int] = field(
        default_factory=list,
        metadata={"help": "Most bytes, or segments of the level below, in a segment (default: 12)."},
    )
    code_loss_weight: float | None = field(
        default=None, metadata={"help": "Weight of the loss of the language model over the top codes (default: 0.2)."}
    )
    num_samples: int = field(
        default=4, metadata={"help": "Number of texts whose reconstruction every evaluation writes."}
    )


@dataclass
class HierarchicalTrainingArguments(OptimArguments):
    """Everything of [`OptimArguments`], with settings for a model of minutes on the bundled text."""

    max_steps: int = field(default=300, metadata={"help": "Optimisation steps; -1: --num_train_epochs decides."})
    num_train_epochs: float = field(default=1.0, metadata={"help": "Passes over the text, with --max_steps -1."})
    per_device_train_batch_size: int = field(default=4, metadata={"help": "Sequences per step and device."})
    per_device_eval_batch_size: int = field(default=16, metadata={"help": "Sequences of a device at a time."})
    learning_rate: float = field(default=2e-3, metadata={"help": "Highest learning rate of AdamW."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Schedule of the learning rate."})
    warmup_steps: float = field(
        default=20, metadata={"help": "Steps over which the learning rate rises; below 1: as a share of all."}
    )
    weight_decay: float = field(default=1e-2, metadata={"help": "Weight decay of AdamW."})
    adam_beta2: float = field(default=0.95, metadata={"help": "Decay of the second moments of AdamW."})


__all__ = ["HierarchicalArguments", "HierarchicalTrainingArguments"]
