"""Arguments of `train.py` for byte language models."""

from dataclasses import dataclass, field

from ..training.arguments import OptimArguments


@dataclass
class AdaptiveByteArguments:
    """Which byte language model is trained: with adaptive borders, or the GRU baseline of as many parameters.

    The baseline has no borders: what is said of them does nothing for it. A checkpoint keeps what is not given here,
    or given as the default.
    """

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Checkpoint to start from: a hub name or a folder (default: a new model)."}
    )
    cache_dir: str | None = field(default=None, metadata={"help": "Folder for what is downloaded from the hub."})
    hidden_size: int = field(default=128, metadata={"help": "Width of the layers."})
    num_levels: int = field(default=3, metadata={"help": "Levels, that of bytes among them."})
    dropout: float = field(default=0.0, metadata={"help": "Between the layers of a GRU block, in [0, 1)."})
    border_mode: str = field(
        default="uncertainty", metadata={"help": "uncertainty, or teacher_forced, which sees what comes next."}
    )
    threshold: float = field(default=0.1, metadata={"help": "Squared error above which teacher_forced sets a border."})
    byte_entropy_threshold: float = field(
        default=20.0, metadata={"help": "Nats of entropy from one border of bytes to the next."}
    )
    meta_uncertainty_threshold: list[float] = field(
        default_factory=lambda: [1.0],
        metadata={"help": "Uncertainty from one border to the next, of all levels above bytes, or of each."},
    )
    entropy_floor: float = field(default=0.0, metadata={"help": "Nats of entropy below which bytes are penalised."})
    entropy_reg_weight: float = field(default=1e-3, metadata={"help": "Weight of that penalty."})
    encoder_loss_weight: float = field(
        default=1.0, metadata={"help": "Weight of predicting bytes by the lowest level alone."}
    )
    meta_loss_weight: float = field(default=1.0, metadata={"help": "Weight of predicting the states of patches."})
    add_encoder_states: bool = field(
        default=False, metadata={"help": "The head of the decoder reads the states of the byte encoder too."}
    )
    detach_meta_targets: bool = field(
        default=False, metadata={"help": "Levels learn to predict the states below, not states to be predictable."}
    )
    target_ratios: list[float] = field(
        default_factory=list,
        metadata={"help": "Units per patch of every level but the top, to which training moves the thresholds."},
    )
    window_end_target: bool = field(
        default=True, metadata={"help": "Every window is to predict an end after it; else only documents end."}
    )
    carry_state: bool = field(
        default=False, metadata={"help": "A window goes on from the state of the one before in its document."}
    )


@dataclass
class ByteLMTrainingArguments(OptimArguments):
    """Everything of [`OptimArguments`], with the published settings as defaults."""

    max_steps: int = field(default=10_000, metadata={"help": "Optimisation steps; -1: --num_train_epochs decides."})
    per_device_train_batch_size: int = field(default=8, metadata={"help": "Windows per step and device."})
    learning_rate: float = field(default=3e-4, metadata={"help": "Learning rate of AdamW."})
    weight_decay: float = field(default=1e-2, metadata={"help": "Weight decay of AdamW."})
    lr_scheduler_type: str = field(default="constant", metadata={"help": "Schedule of the learning rate."})
    use_cache: bool = field(default=True, metadata={"help": "What the saved config says of `use_cache`."})


__all__ = ["AdaptiveByteArguments", "ByteLMTrainingArguments"]
