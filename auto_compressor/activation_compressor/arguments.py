"""The command-line arguments of `train.py` for activation compressors: base model, slots and losses."""

from dataclasses import dataclass, field

from ..training.arguments import OptimArguments


@dataclass
class ActivationArguments:
    """Which compressor of key/value caches is trained, and for which base model.

    A compressor that is trained further keeps its own value of whatever is not given here, or given as the default.
    """

    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "Base model: a hub name, a folder, or smollm2.", "aliases": ["--model_name"]},
    )
    compressor_name_or_path: str | None = field(
        default=None, metadata={"help": "Compressor to start from: a hub name or a folder (default: a new one)."}
    )
    tokenizer_name: str | None = field(default=None, metadata={"help": "Tokenizer, if not that of the base model."})
    cache_dir: str | None = field(default=None, metadata={"help": "Folder for what is downloaded from the hub."})
    attn_implementation: str | None = field(
        default=None, metadata={"help": "eager or sdpa (default: transformers chooses)."}
    )
    continuation_length: int = field(
        default=128,
        metadata={
            "help": "Tokens at the end of a sequence, which are predicted after those before them were compressed."
        },
    )
    segment_length: int | None = field(
        default=None,
        metadata={
            "help": "Tokens after which the cache is compressed again while it reads (default: once, after all)."
        },
    )
    compression_ratio: float = field(
        default=8.0, metadata={"help": "Bytes of the full cache divided by those of the compressed one."}
    )
    num_slots: int | None = field(
        default=None,
        metadata={
            "help": "Slots per layer and head whatever the length of the text, in place of --compression_ratio."
        },
    )
    num_sinks: int = field(
        default=4, metadata={"help": "First tokens of a text, each of which keeps a slot of its own."}
    )
    recent_window: int = field(
        default=32, metadata={"help": "Last tokens of a text, each of which keeps a slot of its own."}
    )
    observation_window: int = field(
        default=64, metadata={"help": "Number of last queries, whose attention says how important a token is."}
    )
    compression_layers: list[int] = field(
        default_factory=list, metadata={"help": "Indices of the layers that are compressed (default: all)."}
    )
    layer_budgets: list[float] = field(
        default_factory=list, metadata={"help": "Relative number of slots of each compressed layer (default: equal)."}
    )
    use_residuals: bool = field(
        default=True,
        metadata={"help": "Let tokens that merging would change most keep slots of their own: gated residuals."},
    )
    residual_fraction: float = field(
        default=0.5,
        metadata={
            "help": "Share of the slots, sinks and recent window aside, that goes to gated residuals, in [0, 1)."
        },
    )
    residual_importance: float = field(
        default=0.5,
        metadata={
            "help": "Power of a token's importance in the choice of gated residuals; 0: what merging changes most."
        },
    )
    residual_int8: bool = field(
        default=False, metadata={"help": "Hold gated residuals in int8, so that more of them fit."}
    )
    similarity_threshold: float = field(
        default=0.85,
        metadata={"help": "Cosine similarity to the nearest slot below which a token rather keeps a slot of its own."},
    )
    adaptive_threshold: bool = field(
        default=True,
        metadata={"help": "Let the similarity threshold follow what the slots of gated residuals have room for."},
    )
    threshold_momentum: float = field(
        default=0.9,
        metadata={"help": "Share of its old value that an adaptive threshold keeps at every step, in [0, 1)."},
    )
    freeze_base: bool = field(
        default=True, metadata={"help": "Train the compressor only, and leave the base model as it is."}
    )
    distillation_weight: float = field(
        default=1.0, metadata={"help": "Weight of KL(full cache || compressed cache), of what is predicted with them."}
    )
    importance_weight: float = field(
        default=1.0, metadata={"help": "Weight of KL(attention that the continuation pays || learned importance)."}
    )
    contrastive_weight: float = field(
        default=0.1,
        metadata={"help": "Weight of the contrastive loss, by which a token is to be told the slot that it joined."},
    )
    contrastive_temperature: float = field(default=0.1, metadata={"help": "Temperature of the contrastive loss."})

    def __post_init__(self):
        if self.model_name_or_path is None:
            raise ValueError("`model_name_or_path`, the base model, must be given.")
        if self.segment_length is not None and self.segment_length < 1:
            raise ValueError(f"`segment_length` must be 1 or more, got {self.segment_length}.")


@dataclass
class ActivationTrainingArguments(OptimArguments):
    """Everything of [`OptimArguments`], with settings for few parameters and long sequences."""

    max_steps: int = field(default=80, metadata={"help": "Optimisation steps; -1: --num_train_epochs decides."})
    num_train_epochs: float = field(
        default=1.0, metadata={"help": "Passes over the text, with --max_steps -1.", "aliases": ["--epochs"]}
    )
    per_device_train_batch_size: int = field(
        default=2, metadata={"help": "Sequences per step and device.", "aliases": ["--batch_size"]}
    )
    per_device_eval_batch_size: int = field(default=2, metadata={"help": "Sequences of a device at a time."})
    learning_rate: float = field(default=2e-2, metadata={"help": "Learning rate of AdamW."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Schedule of the learning rate."})
    warmup_steps: float = field(
        default=10, metadata={"help": "Steps over which the learning rate rises; below 1: as a share of all."}
    )
    ddp_find_unused_parameters: bool | None = field(
        default=True,
        metadata={"help": "Let DDP look for parameters without effect, such as gates with --no_use_residuals."},
    )


__all__ = ["ActivationArguments", "ActivationTrainingArguments"]
