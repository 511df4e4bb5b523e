"""Configs of the hierarchical byte autoencoder: one per level, one for the language model over the top codes."""

import math
from itertools import pairwise
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import LlamaConfig, PreTrainedConfig


QUANTIZERS = ("ema_vq", "residual_vq", "fsq")
BORDER_RULES = ("entropy_rise", "entropy_threshold", "cumulative_entropy", "target_ratio")


@strict
class HierarchicalLevelConfig(LlamaConfig):
    """
    One level: how its compressor cuts symbols into segments and makes a code of each, and how its expander turns codes
    into symbols again. The symbols of the lowest level are bytes, those of another one the codes below it.

    The fields of [`LlamaConfig`] give the sizes of all its layers.

    Args:
        vocab_size (`int`, defaults to 256), symbols_per_unit (`int`, defaults to 1), input_dim (`int`, *optional*):
            What is below: the number of symbols (256 bytes, or the codes of all codebooks), how many of them a unit
            has, and the width of their vectors. [`HierarchicalAutoencoderConfig`] sets all three.
        num_hidden_layers (`int`, defaults to 2): Layers of the compressor.
        num_memory_layers (`int`, defaults to 1): Layers of the expander that read the codes, over a whole text.
        num_expander_layers (`int`, defaults to 2): Layers of the expander within a segment.
        window (`int`, defaults to 32): Symbols before each one that the compressor sees in a layer.
        memory_window (`int`, defaults to 16): Codes before each one that the expander sees in a layer.
        border_rule (`str`, defaults to `"entropy_rise"`): A segment starts where the entropy of what comes next rises
            by more than `border_threshold` (`"entropy_rise"`), is above it (`"entropy_threshold"`), has summed up to
            it since the last start (`"cumulative_entropy"`), or rises by more than what training found to give
            `target_ratio` (`"target_ratio"`).
        border_threshold (`float`, defaults to 0.2): The threshold of `border_rule`, in nats.
        target_ratio (`float`, defaults to 2.4): Units (bytes, or segments of the level below) per segment that the
            rule `"target_ratio"` aims at, 1 or more.
        max_patch_length (`int`, defaults to 12): Most units of a segment.
        num_queries (`int`, defaults to 1): Learned queries that pool a segment.
        quantizer (`str`, defaults to `"ema_vq"`): How a vector becomes codes: by a codebook that follows the means of
            its vectors (`"ema_vq"`), by several in turn (`"residual_vq"`), or by rounding (`"fsq"`).
        codebook_size (`int`, defaults to 1024): Codes in a codebook; with `"fsq"` it is the product of `fsq_levels`.
        codebook_dim (`int`, defaults to 32): Width of the vectors that codes stand for; with `"fsq"` it is the number
            of `fsq_levels`.
        num_quantizers (`int`, defaults to 1): Codes per segment; more than one needs `"residual_vq"`.
        fsq_levels (`list[int]`, defaults to `[8, 5, 5, 5]`): With `"fsq"`: the values that each dimension can take.
        ema_decay (`float`, defaults to 0.95): Share of the running statistics of a codebook that is kept at every
            batch; less at first.
        dead_code_threshold (`float`, defaults to 0.1): A code that is used less than this share of the mean use of
            all codes starts anew.
    """

    model_type = "hierarchical_autoencoder_level"

    hidden_size: int = 128
    intermediate_size: int = 512
    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    initializer_range: float | int = 0.05
    max_position_embeddings: int = 512
    vocab_size: int = 256
    symbols_per_unit: int = 1
    input_dim: int | None = None
    num_memory_layers: int = 1
    num_expander_layers: int = 2
    window: int = 32
    memory_window: int = 16
    border_rule: str = "entropy_rise"
    border_threshold: float | int = 0.2
    target_ratio: float | int = 2.4
    max_patch_length: int = 12
    num_queries: int = 1
    quantizer: str = "ema_vq"
    codebook_size: int = 1024
    codebook_dim: int = 32
    num_quantizers: int = 1
    fsq_levels: list[int] | None = None
    ema_decay: float | int = 0.95
    dead_code_threshold: float | int = 0.1

    def __post_init__(self, **kwargs):
        if self.quantizer == "fsq":
            self.fsq_levels = self.fsq_levels or [8, 5, 5, 5]
            self.codebook_size, self.codebook_dim = math.prod(self.fsq_levels), len(self.fsq_levels)
        super().__post_init__(**kwargs)

    @property
    def bits_per_code(self) -> float:
        """Bits of a segment's codes, stored as they are."""
        return self.num_quantizers * math.log2(self.codebook_size)

    def validate_architecture(self):
        super().validate_architecture()
        for field, choices in (("quantizer", QUANTIZERS), ("border_rule", BORDER_RULES)):
            if getattr(self, field) not in choices:
                raise ValueError(f"`{field}` must be one of {', '.join(choices)}, got {getattr(self, field)!r}.")
        if self.quantizer != "residual_vq" and self.num_quantizers != 1:
            raise ValueError(
                f"`num_quantizers` must be 1 unless `quantizer` is residual_vq, got {self.num_quantizers}."
            )
        positive = ("num_hidden_layers", "num_memory_layers", "num_expander_layers", "window", "memory_window")
        positive += ("max_patch_length", "num_queries", "codebook_size", "codebook_dim", "num_quantizers")
        positive += ("hidden_size", "intermediate_size")
        for field in positive:
            if getattr(self, field) < 1:
                raise ValueError(f"`{field}` must be 1 or more, got {getattr(self, field)}.")
        if any(level < 2 for level in self.fsq_levels or []):
            raise ValueError(f"`fsq_levels` must all be 2 or more, got {self.fsq_levels}.")
        if not 0 < self.ema_decay < 1:
            raise ValueError(f"`ema_decay` must be above 0 and below 1, got {self.ema_decay}.")
        if not self.target_ratio >= 1:
            raise ValueError(f"`target_ratio` must be 1 or more, got {self.target_ratio}.")
        if not 0 <= self.dead_code_threshold < 1:
            raise ValueError(f"`dead_code_threshold` must be at least 0 and below 1, got {self.dead_code_threshold}.")


@strict
class CodeSequenceConfig(LlamaConfig):
    """
    The language model over the top codes, a Llama. Its tokens are the codes of codebook 0, those of codebook 1, and so
    on, and one token in front of and behind every text.

    Args:
        codebook_size (`int`), num_quantizers (`int`): As those of the top level; `vocab_size` follows from them.
    """

    model_type = "code_sequence_transformer"

    hidden_size: int = 128
    intermediate_size: int = 512
    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    initializer_range: float | int = 0.05
    codebook_size: int = 1024
    num_quantizers: int = 1

    def __post_init__(self, **kwargs):
        self.vocab_size = self.codebook_size * self.num_quantizers + 1
        self.bos_token_id = self.eos_token_id = self.pad_token_id = self.vocab_size - 1
        super().__post_init__(**kwargs)


@strict
class HierarchicalAutoencoderConfig(PreTrainedConfig):
    """
    Config of [`HierarchicalAutoencoder`].

    Args:
        level_configs (`list[HierarchicalLevelConfig]`, *optional*): From bytes upwards, as configs or dicts (default:
            one level).
        code_sequence_config (`CodeSequenceConfig`, *optional*): The language model over the codes of the last level.
        commitment_loss_weight (`float`, defaults to 0.25): Weight of the distance of vectors from their codes.
        lm_loss_weight (`float`, defaults to 1.0): Weight of the compressors' next-symbol loss, which gives entropies.
        code_loss_weight (`float`, defaults to 0.2): Weight of the loss of the language model over the top codes.
        block_size (`int`, defaults to 512): Bytes that are compressed together; longer texts are cut into blocks.
        vocab_size (`int`, defaults to 259): Bytes, and the special tokens of [`ByteTokenizer`]: end of text, padding
            and beginning of text.
    """

    model_type = "hierarchical_autoencoder"
    sub_configs = {"code_sequence_config": CodeSequenceConfig}
    keys_to_ignore_at_inference = ["losses", "codes", "patch_ids", "entropies"]

    level_configs: list[dict[str, Any] | PreTrainedConfig] | None = None
    code_sequence_config: dict[str, Any] | PreTrainedConfig | None = None
    commitment_loss_weight: float | int = 0.25
    lm_loss_weight: float | int = 1.0
    code_loss_weight: float | int = 0.2
    block_size: int = 512
    vocab_size: int = 259
    eos_token_id: int = 256
    pad_token_id: int = 257
    bos_token_id: int = 258
    initializer_range: float | int = 0.02

    def __post_init__(self, **kwargs):
        self.level_configs = [
            level if isinstance(level, PreTrainedConfig) else HierarchicalLevelConfig(**level)
            for level in self.level_configs or [{}]
        ]
        for below, level in pairwise(self.level_configs):
            level.vocab_size = below.num_quantizers * below.codebook_size
            level.symbols_per_unit, level.input_dim = below.num_quantizers, below.codebook_dim
        top = self.level_configs[-1]
        codes = {"codebook_size": top.codebook_size, "num_quantizers": top.num_quantizers}
        if not isinstance(self.code_sequence_config, PreTrainedConfig):
            self.code_sequence_config = CodeSequenceConfig(**(self.code_sequence_config or {}) | codes)
        super().__post_init__(**kwargs)

    @property
    def num_levels(self) -> int:
        return len(self.level_configs)

    def to_dict(self) -> dict[str, Any]:
        levels = [level.to_diff_dict() for level in self.level_configs]
        for level in levels:
            level.pop("transformers_version", None)
        return super().to_dict() | {"level_configs": levels}

    def validate_architecture(self):
        top, codes = self.level_configs[-1], self.code_sequence_config
        if (codes.codebook_size, codes.num_quantizers) != (top.codebook_size, top.num_quantizers):
            raise ValueError(
                "`code_sequence_config` must have the codes of the last level, `codebook_size` and `num_quantizers`"
                f" {top.codebook_size} and {top.num_quantizers}, got {codes.codebook_size} and {codes.num_quantizers}."
            )
        if self.block_size < 1:
            raise ValueError(f"`block_size` must be 1 or more, got {self.block_size}.")
        for field in ("commitment_loss_weight", "lm_loss_weight", "code_loss_weight"):
            if not 0 <= getattr(self, field) < math.inf:
                raise ValueError(f"`{field}` must be 0 or more, and finite, got {getattr(self, field)}.")


__all__ = ["CodeSequenceConfig", "HierarchicalAutoencoderConfig", "HierarchicalLevelConfig"]
