"""Arguments of `train.py`, in three groups: the model, the data, the training.

`python train.py --help` lists those of AutoCompressors, whose names are those of the published script;
`python train.py --model_type hierarchical_autoencoder --help` those of another family. Every argument of
[`transformers.TrainingArguments`] is accepted too.
"""

from dataclasses import dataclass, field

from transformers import TrainingArguments as HfTrainingArguments


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
    lora: bool = field(default=False, metadata={"help": "Train LoRA adapters (and --lora_modules_to_save) only."})
    lora_path: str | None = field(
        default=None, metadata={"help": "Folder of a trained LoRA adapter to continue from."}
    )
    lora_r: int = field(default=8, metadata={"help": "Rank of the LoRA adapters."})
    lora_alpha: int = field(default=16, metadata={"help": "LoRA scale: updates are multiplied by alpha / r."})
    lora_dropout: float = field(default=0.05, metadata={"help": "Dropout before the LoRA adapters, in [0, 1)."})
    lora_target_modules: list[str] = field(
        default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj", "out_proj"],
        metadata={"help": "Names of the linear layers that get an adapter."},
    )
    lora_modules_to_save: list[str] = field(
        default_factory=lambda: ["embed_summary"],
        metadata={
            "help": "Modules that are trained in full and saved with the adapters; those of the summary vectors that"
            " the model has (embed_summary or stop_head, and the rows of <sum> and <eoc>) always are."
        },
    )


@dataclass
class HierarchicalArguments:
    """Which hierarchical autoencoder is trained: a checkpoint, one with new levels over its own, or a new model.

    The fields of levels take one value for all levels, or one for each, bytes first; the levels of a checkpoint keep
    theirs. What is not given is as in [`HierarchicalLevelConfig`].
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
        metadata={"help": "Levels of codes, each over the one below (default: those of the checkpoint, else 1)."},
    )
    freeze_levels: int = field(
        default=0, metadata={"help": "The first levels, codebooks too, stay as they are in the checkpoint."}
    )
    hidden_size: list[int] = field(default_factory=list, metadata={"help": "Width of the layers."})
    intermediate_size: list[int] = field(default_factory=list, metadata={"help": "Inner width of the layers."})
    num_hidden_layers: list[int] = field(default_factory=list, metadata={"help": "Layers of the compressor."})
    num_expander_layers: list[int] = field(default_factory=list, metadata={"help": "Layers of the expander."})
    window: list[int] = field(
        default_factory=list, metadata={"help": "Symbols before each one that a layer of the compressor sees."}
    )
    quantizer: list[str] = field(default_factory=list, metadata={"help": "ema_vq, residual_vq or fsq."})
    codebook_size: list[int] = field(default_factory=list, metadata={"help": "Codes of one codebook."})
    codebook_dim: list[int] = field(default_factory=list, metadata={"help": "Width of the codes."})
    num_quantizers: list[int] = field(default_factory=list, metadata={"help": "Codebooks of residual_vq."})
    fsq_levels: list[int] = field(
        default_factory=list, metadata={"help": "Levels of each dimension of fsq, the same on all levels of codes."}
    )
    ema_decay: list[float] = field(
        default_factory=list, metadata={"help": "What the statistics of a codebook keep at every batch."}
    )
    dead_code_threshold: list[float] = field(
        default_factory=list, metadata={"help": "Share of the mean use below which a code starts anew."}
    )
    border_rule: list[str] = field(
        default_factory=list,
        metadata={"help": "entropy_rise, entropy_threshold, cumulative_entropy or target_ratio."},
    )
    border_threshold: list[float] = field(default_factory=list, metadata={"help": "Of the border rule, in nats."})
    target_ratio: list[float] = field(
        default_factory=list, metadata={"help": "Symbols per segment that target_ratio aims at."}
    )
    max_patch_length: list[int] = field(default_factory=list, metadata={"help": "Most symbols of a segment."})
    code_loss_weight: float | None = field(
        default=None, metadata={"help": "Weight of the language model over the top codes (default: 0.2)."}
    )
    num_samples: int = field(default=4, metadata={"help": "Reconstructions that every evaluation writes."})


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
    sequence_length: int = field(default=128, metadata={"help": "Bytes of a window."})
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
    max_length: int = field(default=1152, metadata={"help": "Tokens of a sequence: context and continuation."})
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
        if not 2 <= self.continuation_length < self.max_length:
            raise ValueError(
                f"`continuation_length` must be 2 or more and below `max_length` = {self.max_length}, got"
                f" {self.continuation_length}."
            )
        if self.segment_length is not None and self.segment_length < 1:
            raise ValueError(f"`segment_length` must be 1 or more, got {self.segment_length}.")


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
class DataTrainingArguments:
    """Where the text comes from, and how it is cut into blocks of tokens.

    One kind of source at a time: a dataset by name, files, or datasets that are tokenised already. Without any, the
    text that comes with the package is used.
    """

    dataset_name: str | None = field(
        default=None, metadata={"help": "Dataset of the hub, or a folder that `datasets` reads."}
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of the dataset."})
    train_file: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Training files: txt, json, jsonl, csv or parquet, all of one kind.",
            "aliases": ["--data_path"],
        },
    )
    validation_file: list[str] = field(
        default_factory=list,
        metadata={"help": "Validation files, each PATH or NAME=PATH; every one is a validation set of its own."},
    )
    text_column: str = field(default="text", metadata={"help": "Column that holds the text."})
    preprocessed_train_datasets: list[str] = field(
        default_factory=list,
        metadata={"help": "Tokenised training sets (column input_ids): hub names, saved folders, parquet or jsonl."},
    )
    preprocessed_validation_datasets: list[str] = field(
        default_factory=list, metadata={"help": "Tokenised validation sets, each NAME, PATH or LABEL=PATH."}
    )
    block_size: int | None = field(
        default=None, metadata={"help": "Tokens per training sequence (default: what the model takes in)."}
    )
    add_special_tokens: bool = field(
        default=False, metadata={"help": "Let the tokenizer add bos/eos to every document."}
    )
    keep_linebreaks: bool = field(default=True, metadata={"help": "Keep the line ends of txt files."})
    streaming: bool = field(default=False, metadata={"help": "Read the training data as a stream; needs --max_steps."})
    validation_split_percentage: float = field(
        default=5.0,
        metadata={"help": "Share of the training text held out, at its end, where there is no validation set."},
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Use only the first training sequences."})
    max_eval_samples: int | None = field(
        default=None, metadata={"help": "Use only the first sequences of each validation set."}
    )
    preprocessing_num_workers: int | None = field(default=None, metadata={"help": "Processes that tokenise."})
    overwrite_cache: bool = field(default=False, metadata={"help": "Tokenise again even if a cached result exists."})


@dataclass
class OptimArguments(HfTrainingArguments):
    """Everything of [`transformers.TrainingArguments`], and Muon, for every family."""

    optim_family: str = field(
        default="adamw",
        metadata={"help": "adamw (or what --optim says), or muon: Muon for matrices, AdamW for all else."},
    )
    muon_scale: float = field(
        default=0.2,
        metadata={"help": "Muon moves a matrix by lr x this x sqrt(max(rows, columns)); published: 1 (default: 0.2)."},
    )
    muon_heads: bool = field(default=False, metadata={"help": "Muon for heads too, as far as they are matrices."})

    def __post_init__(self):
        super().__post_init__()
        if self.optim_family not in ("adamw", "muon"):
            raise ValueError(f"`optim_family` must be adamw or muon, got {self.optim_family!r}.")
        if not 0 < self.muon_scale < float("inf"):
            raise ValueError(f"`muon_scale` must be above 0, and finite, got {self.muon_scale}.")


@dataclass
class ContinuousTrainingArguments(OptimArguments):
    """Everything of [`OptimArguments`], with the published settings as defaults."""

    per_device_train_batch_size: int = field(default=48, metadata={"help": "Sequences per step and device."})
    learning_rate: float = field(default=1e-4, metadata={"help": "Highest learning rate."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Schedule of the learning rate."})
    warmup_steps: float = field(default=100, metadata={"help": "Steps, or a share of all, up to that rate."})
    adam_beta2: float = field(default=0.95, metadata={"help": "Decay of the second moments of AdamW."})


@dataclass
class ByteLMTrainingArguments(OptimArguments):
    """Everything of [`OptimArguments`], with the published settings as defaults."""

    max_steps: int = field(default=10_000, metadata={"help": "Optimisation steps; -1: --num_train_epochs decides."})
    per_device_train_batch_size: int = field(default=8, metadata={"help": "Windows per step and device."})
    learning_rate: float = field(default=3e-4, metadata={"help": "Learning rate of AdamW."})
    weight_decay: float = field(default=1e-2, metadata={"help": "Weight decay of AdamW."})
    lr_scheduler_type: str = field(default="constant", metadata={"help": "Schedule of the learning rate."})
    use_cache: bool = field(default=True, metadata={"help": "What the saved config says of `use_cache`."})


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


@dataclass
class TrainingArguments(OptimArguments):
    """How the compressor is trained: segments, substeps, and everything of [`OptimArguments`]."""

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
            "help": "Weight of the length penalty, E[vectors] / (tokens + alpha x vectors before) (default: 0)."
        },
    )
    compression_alpha: float | None = field(
        default=None, metadata={"help": "What a vector counts beside a token in that penalty (default: 1)."}
    )
    truncate_bptt_segments: int | None = field(
        default=None,
        metadata={"help": "Segments after which variable-length summary vectors are detached (default: 1)."},
    )
    compress_stop_threshold: float | None = field(
        default=None,
        metadata={"help": "At inference, stop above this probability of <eoc>, in (0, 1] (default: 0.5)."},
    )
    nested_summaries: bool = field(
        default=False,
        metadata={
            "help": "Train for any number of summary vectors: every other step uses only the first ones, of a number"
            " drawn log-uniformly."
        },
    )
    reconstruction_weight: float = field(
        default=0.0, metadata={"help": "Weight of reading each compressed segment back from its summary vectors."}
    )
    distillation_weight: float = field(
        default=0.0, metadata={"help": "Weight of KL(full-context model || model); needs --distillation_model."}
    )
    distillation_model: str | None = field(
        default=None, metadata={"help": "Full-context model that is distilled: a hub name, a folder, or smollm2."}
    )
    training_substeps: int = field(
        default=1,
        metadata={"help": "Backward passes per sequence; gradients stop at the summary vectors between them."},
    )
    segments_per_substep: int = field(default=2, metadata={"help": "Segments per substep."})
    segment_lengths: list[int] = field(
        default_factory=list,
        metadata={
            "help": "Tokens of each segment of a substep. The last sum * substeps tokens of a sequence are used."
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
        metadata={"help": "What the saved config says of `use_cache`; training itself never keeps a cache."},
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
