"""Arguments of `train.py` for activation compressors."""

from dataclasses import dataclass, field

from ..training.arguments import OptimArguments


@dataclass
class ActivationArguments:
    """Which compressor of key/value caches is trained, and for which base model.

    A compressor that is trained further keeps what is not given here, or given as the default.
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
        default=128, metadata={"help": "Last tokens of a sequence, predicted after the compressed ones before them."}
    )
    segment_length: int | None = field(
        default=None, metadata={"help": "Compress whenever so many tokens were read (default: once, all of them)."}
    )
    compression_ratio: float = field(
        default=4.0, metadata={"help": "Bytes of the full cache by those of the compressed one."}
    )
    num_slots: int | None = field(
        default=None, metadata={"help": "Slots per layer and head, in place of --compression_ratio."}
    )
    num_sinks: int = field(default=4, metadata={"help": "First tokens, which keep slots of their own."})
    recent_window: int = field(default=32, metadata={"help": "Last tokens, which keep slots of their own."})
    observation_window: int = field(
        default=64, metadata={"help": "Last queries whose attention says how important a token is."}
    )
    compression_layers: list[int] = field(
        default_factory=list, metadata={"help": "Layers that are compressed (default: all)."}
    )
    layer_budgets: list[float] = field(
        default_factory=list, metadata={"help": "Relative slots of each of these layers (default: equal)."}
    )
    use_residuals: bool = field(
        default=True, metadata={"help": "Tokens that merging would change most keep slots of their own."}
    )
    residual_fraction: float = field(default=0.5, metadata={"help": "Share of the slots that go to them."})
    residual_importance: float = field(
        default=0.5, metadata={"help": "Power of the importance in their choice; 0: what merging changes most."}
    )
    residual_int8: bool = field(default=False, metadata={"help": "Hold these in int8, so that more of them fit."})
    similarity_threshold: float = field(
        default=0.85, metadata={"help": "Cosine to the nearest slot below which a token rather keeps its own."}
    )
    adaptive_threshold: bool = field(
        default=True, metadata={"help": "That threshold follows what the slots have room for."}
    )
    threshold_momentum: float = field(
        default=0.9, metadata={"help": "What the threshold keeps of its old value at every step."}
    )
    freeze_base: bool = field(default=True, metadata={"help": "Train the compressor only, not the base model."})
    distillation_weight: float = field(default=1.0, metadata={"help": "Weight of KL(full cache || compressed cache)."})
    importance_weight: float = field(
        default=1.0, metadata={"help": "Weight of KL(attention that the continuation pays || learned importance)."}
    )
    contrastive_weight: float = field(
        default=0.1, metadata={"help": "Weight of the contrastive loss of tokens against slots."}
    )
    contrastive_temperature: float = field(default=0.1, metadata={"help": "Temperature of that loss."})

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
    learning_rate: float = field(default=2e-2, metadata={"help": "Learning rate of AdamW."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Schedule of the learning rate."})
    warmup_steps: float = field(default=10, metadata={"help": "Steps of rising learning rate, or their share."})
    ddp_find_unused_parameters: bool | None = field(
        default=True, metadata={"help": "DDP looks for parameters without effect, as gates with --no_use_residuals."}
    )


__all__ = ["ActivationArguments", "ActivationTrainingArguments"]
