"""The command-line arguments of `train.py` for AutoCompressors, named as in the published script."""

from dataclasses import dataclass, field
from typing import ClassVar

from ..training.arguments import OptimArguments


@dataclass
class ModelArguments:
    """Which model is trained, and how it is adapted."""

    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "Checkpoint to start from: a hub name, a folder, or smollm2. Else see --config_name."},
    )
    config_name: str | None = field(
        default=None, metadata={"help": "Config of a new model, trained from scratch: a hub name, a folder, or tiny."}
    )
    tokenizer_name: str | None = field(default=None, metadata={"help": "Tokenizer, if not that of the model."})
    cache_dir: str | None = field(default=None, metadata={"help": "Folder for what is downloaded from the hub."})
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit of the checkpoint."})
    use_fast_tokenizer: bool = field(default=True, metadata={"help": "Use the Rust tokenizer where there is one."})
    attn_implementation: str | None = field(
        default=None,
        metadata={"help": "eager, sdpa, flash_attention_2 or flex_attention (default: transformers chooses)."},
    )
    load_in_4bit: bool = field(
        default=False,
        metadata={"help": "Hold the frozen weights under LoRA adapters in 4 bits (NF4, by bitsandbytes)."},
    )
    lora: bool = field(default=False, metadata={"help": "Train LoRA adapters (and --lora_modules_to_save) only."})
    lora_path: str | None = field(
        default=None, metadata={"help": "Folder of a trained LoRA adapter to continue from."}
    )
    lora_r: int = field(default=8, metadata={"help": "Rank of the LoRA adapters."})
    lora_alpha: int = field(
        default=16, metadata={"help": "Scale of LoRA: updates are multiplied by --lora_alpha / --lora_r."}
    )
    lora_dropout: float = field(
        default=0.05, metadata={"help": "Dropout on the inputs of the LoRA adapters, in [0, 1)."}
    )
    lora_target_modules: list[str] = field(
        default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj", "out_proj"],
        metadata={"help": "Names of the linear layers that get a LoRA adapter, or all-linear."},
    )
    lora_modules_to_save: list[str] = field(
        default_factory=lambda: ["embed_summary"],
        metadata={
            "help": "Modules that are trained in full and saved with the adapters; those of the summary vectors that"
            " the model has (embed_summary, stop_head, summary_norm, summary_projection, and the rows of <sum> and"
            " <eoc>) always are."
        },
    )


@dataclass
class TrainingArguments(OptimArguments):
    """How the compressor is trained: segments, substeps, and everything of [`OptimArguments`]."""

    has_liger_loss: ClassVar[bool] = True

    summary_length: int | None = field(
        default=None,
        metadata={"help": "Summary vectors per segment; 0 makes none (default: as in the checkpoint, else 50)."},
    )
    accumulate_summary: bool | None = field(
        default=None,
        metadata={
            "help": "Keep the summary vectors of all earlier segments; false keeps the last ones only, RMT (default:"
            " as in the checkpoint, else true)."
        },
    )
    summary_source: str | None = field(
        default=None,
        metadata={
            "help": "What summary vectors are made of: tokens (last hidden states at summary embeddings), means (of"
            " the segment's last hidden states, over windows), both (default: as in the checkpoint, else tokens)."
        },
    )
    summary_scale: str | None = field(
        default=None,
        metadata={
            "help": "Bring summary vectors to the size of token embeddings: normalized, or learned, a factor for each"
            " dimension that starts there (default: as in the checkpoint, else as large as hidden states)."
        },
    )
    summary_residual: bool | None = field(
        default=None,
        metadata={
            "help": "Learn summary vectors as differences to the embeddings of the last tokens of their segment"
            " (default: as in the checkpoint, else false)."
        },
    )
    ordinary_summary_positions: bool | None = field(
        default=None,
        metadata={
            "help": "Count summary vectors like tokens, with OPT and with a variable number of them too, so that other"
            " engines can read them (default: as in the checkpoint, else false)."
        },
    )
    compression_max_len: int | None = field(
        default=None,
        metadata={
            "help": "Most summary vectors per segment, where the model decides their number (variable length); 0: the"
            " number is fixed, see --summary_length (default: as in the checkpoint, else fixed)."
        },
    )
    compression_lambda: float | None = field(
        default=None,
        metadata={
            "help": "Weight of the length penalty, E[vectors] / (tokens + alpha x vectors before), in the loss"
            " (default: 0)."
        },
    )
    compression_alpha: float | None = field(
        default=None,
        metadata={"help": "alpha of the length penalty: what a vector counts beside a token (default: 1)."},
    )
    truncate_bptt_segments: int | None = field(
        default=None,
        metadata={"help": "Segments after which the gradient of variable-length summary vectors is cut (default: 1)."},
    )
    compress_stop_threshold: float | None = field(
        default=None,
        metadata={
            "help": "Probability of <eoc> above which a segment gets no further vector at inference, in (0, 1]"
            " (default: 0.5)."
        },
    )
    nested_summaries: bool = field(
        default=False,
        metadata={
            "help": "Train for any number of summary vectors: every other step uses only the first ones, of a number"
            " drawn log-uniformly."
        },
    )
    reconstruction_weight: float = field(
        default=0.0,
        metadata={"help": "Weight of the loss of reading each compressed segment back from its summary vectors."},
    )
    distillation_weight: float = field(
        default=0.0,
        metadata={"help": "Weight of KL(full-context model || model) in the loss; needs --distillation_model."},
    )
    distillation_model: str | None = field(
        default=None, metadata={"help": "Full-context model to distil from: a hub name, a folder, or smollm2."}
    )
    training_substeps: int = field(
        default=1,
        metadata={"help": "Backward passes per sequence; gradients stop at the summary vectors between them."},
    )
    segments_per_substep: int = field(default=2, metadata={"help": "Segments per substep."})
    segment_lengths: list[int] = field(
        default_factory=list,
        metadata={
            "help": "Tokens of each segment of a substep (default: equal segments). Of a sequence, the last tokens are"
            " used: the sum of these x --training_substeps."
        },
    )
    randomize_substeps: bool = field(
        default=False, metadata={"help": "Draw the segment lengths anew for every substep of training."}
    )
    segment_gradient_checkpointing: bool = field(
        default=False, metadata={"help": "Recompute every segment but the last of a substep in the backward pass."}
    )
    predict_substep_borders: bool = field(
        default=True,
        metadata={
            "help": "Predict the first token of a substep from the last of the one before; false loses it, and"
            " weighs substeps equally whatever their token count, as the published code does."
        },
    )
    full_attention: bool = field(
        default=False, metadata={"help": "Baseline: read the whole sequence in one pass, without summary vectors."}
    )
    max_position_embeddings: int | None = field(
        default=None,
        metadata={"help": "Longest segment in tokens; repeats (or cuts) OPT's position table to this length."},
    )
    fast_attention: bool = field(
        default=False, metadata={"help": "Use flash_attention_2 where it can run, otherwise sdpa."}
    )
    use_cache: bool = field(
        default=True,
        metadata={"help": "Value of `use_cache` in the saved config; training itself never keeps a cache."},
    )

    def __post_init__(self):
        super().__post_init__()
        for name in ("training_substeps", "segments_per_substep"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be 1 or more, got {getattr(self, name)}.")
        for name in ("reconstruction_weight", "distillation_weight"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"`{name}` must be 0 or more, and finite, got {getattr(self, name)}.")
        if (self.distillation_weight > 0) != (self.distillation_model is not None):
            raise ValueError(
                "`distillation_weight` above 0 and `distillation_model` belong together, got"
                f" {self.distillation_weight} and {self.distillation_model}."
            )
        if any(length < 1 for length in self.segment_lengths):
            raise ValueError(f"`segment_lengths` must be positive, got {self.segment_lengths}.")


__all__ = ["ModelArguments", "TrainingArguments"]
