"""The command-line arguments of `train.py` for byte language models: borders, levels and losses."""

from dataclasses import dataclass, field

from ..training.arguments import OptimArguments


@dataclass
class AdaptiveByteArguments:
    """Which byte language model is trained: with adaptive borders, or the GRU baseline of as many parameters.

    The baseline has no borders, so that arguments about them do nothing for it. A checkpoint keeps its own value of
    whatever is not given here, or given as the default.
    """

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Checkpoint to start from: a hub name or a folder (default: a new model)."}
    )
    cache_dir: str | None = field(default=None, metadata={"help": "Folder for what is downloaded from the hub."})
    hidden_size: int = field(default=128, metadata={"help": "Width of the layers."})
    num_levels: int = field(default=3, metadata={"help": "Number of levels, that of bytes included."})
    dropout: float = field(default=0.0, metadata={"help": "Dropout between the layers of a GRU block, in [0, 1)."})
    border_mode: str = field(
        default="uncertainty",
        metadata={
            "help": "How borders are set: uncertainty, from the past; or teacher_forced, which sees what comes next."
        },
    )
    threshold: float = field(
        default=0.1,
        metadata={
            "help": "Mean squared error of a predicted state above which teacher_forced sets a border, above level 0."
        },
    )
    byte_entropy_threshold: float = field(
        default=20.0,
        metadata={"help": "Entropy of bytes, summed since the last border, at which the next border is set, in nats."},
    )
    meta_uncertainty_threshold: list[float] = field(
        default_factory=lambda: [1.0],
        metadata={
            "help": "Expected error, summed since the last border, at which the next border is set: one value for all"
            " levels between bytes and the top one, or one for each."
        },
    )
    entropy_floor: float = field(
        default=0.0,
        metadata={"help": "Entropy in nats below which predictions of bytes are penalised, see --entropy_reg_weight."},
    )
    entropy_reg_weight: float = field(
        default=1e-3, metadata={"help": "Weight of the penalty on entropies below --entropy_floor."}
    )
    encoder_loss_weight: float = field(
        default=1.0, metadata={"help": "Weight of the loss of the bytes that the lowest level predicts alone."}
    )
    meta_loss_weight: float = field(
        default=1.0,
        metadata={"help": "Weight of the error with which the levels above bytes predict states of patches."},
    )
    add_encoder_states: bool = field(
        default=False, metadata={"help": "Let the head of the decoder read the states of the byte encoder too."}
    )
    detach_meta_targets: bool = field(
        default=False,
        metadata={
            "help": "Let levels learn to predict the states below, without teaching these states to be predictable."
        },
    )
    target_ratios: list[float] = field(
        default_factory=list,
        metadata={
            "help": "Units per patch of every level but the top one, towards which training moves the thresholds"
            " (default: fixed thresholds)."
        },
    )
    window_end_target: bool = field(
        default=True,
        metadata={"help": "Let every window predict an end of text behind it; false: only documents end."},
    )
    carry_state: bool = field(
        default=False,
        metadata={"help": "Let a window go on from the state after the window before it in its document."},
    )


@dataclass
class ByteLMTrainingArguments(OptimArguments):
    """Everything of [`OptimArguments`], with the published settings as defaults."""

    max_steps: int = field(default=10_000, metadata={"help": "Optimisation steps; -1: --num_train_epochs decides."})
    per_device_train_batch_size: int = field(default=8, metadata={"help": "Windows per step and device."})
    per_device_eval_batch_size: int = field(default=16, metadata={"help": "Windows of a device at a time."})
    learning_rate: float = field(default=3e-4, metadata={"help": "Learning rate of AdamW."})
    weight_decay: float = field(default=1e-2, metadata={"help": "Weight decay of AdamW."})
    lr_scheduler_type: str = field(default="constant", metadata={"help": "Schedule of the learning rate."})
    use_cache: bool = field(default=True, metadata={"help": "Value of `use_cache` in the saved config."})


__all__ = ["AdaptiveByteArguments", "ByteLMTrainingArguments"]
