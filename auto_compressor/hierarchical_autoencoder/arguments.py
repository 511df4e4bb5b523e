"""Arguments of `train.py` for hierarchical byte autoencoders."""

from dataclasses import dataclass, field


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


__all__ = ["HierarchicalArguments"]
