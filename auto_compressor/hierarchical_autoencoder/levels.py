"""A level of the hierarchical autoencoder: bytes (or codes) -> segments -> codes, and back.

- [`ByteSegmentCompressor`] reads bytes (or codes) with a local language model, cuts them into segments where its
  entropy says so, pools each segment and quantises it.
- [`CodeExpander`] turns codes back into what is below, all segments at once, each from the codes up to its own and
  from its own earlier symbols.
"""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import DynamicCache, PreTrainedModel
from transformers import initialization as init

from .code_tokens import Likeliest, entropy, keep_codebook, symbol_positions
from .configuration_hierarchical_autoencoder import HierarchicalLevelConfig
from .outputs import CodeExpanderOutput, SegmentCompressorOutput
from .patching import (
    BORDER_RULES,
    limit_patch_lengths,
    patch_ids_from_borders,
    patch_lengths_from_ids,
    positions_in_patch,
)
from .sliding_window import LearnedQueryAttention, SlidingWindowTransformer
from .tensors import RunningNorm, masked_mean, sum_over_processes, token_losses
from .vector_quantizer import FiniteScalarQuantizer, ResidualVectorQuantizer, VectorQuantizer


STATISTICS_DECAY = 0.9  # what the threshold of `target_ratio` and the norm in front of codes keep at every batch


def make_quantizer(config: HierarchicalLevelConfig) -> nn.Module:
    if config.quantizer == "fsq":
        return FiniteScalarQuantizer(config.fsq_levels)
    codebook = {
        "codebook_size": config.codebook_size,
        "codebook_dim": config.codebook_dim,
        "ema_decay": config.ema_decay,
        "dead_code_threshold": config.dead_code_threshold,
    }
    if config.quantizer == "ema_vq":
        return VectorQuantizer(**codebook)
    return ResidualVectorQuantizer(config.num_quantizers, **codebook)


class HierarchicalPreTrainedModel(PreTrainedModel):
    """What the autoencoder and its parts share: initialisation and flags."""

    config: HierarchicalLevelConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _keep_in_fp32_modules_strict = ["quantizer", "code_norm", "border_threshold"]

    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, VectorQuantizer):
            init.normal_(module.codebook)
            init.zeros_(module.cluster_size)
            init.zeros_(module.num_batches)
        elif isinstance(module, LearnedQueryAttention):
            init.normal_(module.queries, std=self.config.initializer_range)
            # Of mean square 1, as what they multiply.
            init.normal_(module.positions, std=1.0)
        elif isinstance(module, CodeExpander):
            init.normal_(module.positions, std=1.0)
        elif isinstance(module, ByteSegmentCompressor):
            init.constant_(module.border_threshold, self.config.border_threshold)
        elif isinstance(module, RunningNorm):
            init.zeros_(module.mean)
            init.ones_(module.variance)
            init.zeros_(module.num_batches)


class ByteSegmentCompressor(HierarchicalPreTrainedModel):
    """
    Cuts units (bytes, or the segments of the level below) into segments and makes a code of each.

    A local language model reads the symbols; the entropy of its prediction of the next unit decides where segments
    start. The states of a segment are pooled by learned queries and quantised.
    """

    def __init__(self, config: HierarchicalLevelConfig):
        super().__init__(config)
        self.symbols_per_unit = config.symbols_per_unit
        self.codebook_size = config.vocab_size // config.symbols_per_unit  # of what is below
        if config.input_dim is None:
            self.embed_symbols = nn.Embedding(config.vocab_size, config.hidden_size)
        else:
            self.embed_symbols = nn.Linear(config.input_dim, config.hidden_size, bias=False)
        self.encoder = SlidingWindowTransformer(config, config.num_hidden_layers, config.window)
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.pooler = LearnedQueryAttention(
            config.hidden_size,
            config.num_attention_heads,
            config.num_queries,
            config.max_patch_length * config.symbols_per_unit,
        )
        self.code_proj = nn.Linear(config.hidden_size, config.codebook_dim)
        self.code_norm = RunningNorm(config.codebook_dim, STATISTICS_DECAY)
        self.quantizer = make_quantizer(config)
        self.border_threshold = nn.Buffer(torch.empty(()))
        self.post_init()

    def next_symbol_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        logits = self.lm_head(self.norm(hidden_states))  # (batch, symbols, vocab)
        if self.symbols_per_unit == 1:
            return logits
        following = (torch.arange(logits.shape[1], device=logits.device) + 1) % self.symbols_per_unit
        return keep_codebook(logits, following, self.codebook_size, self.symbols_per_unit)

    @torch.no_grad()
    def follow_target_ratio(self, entropies: torch.Tensor, mask: torch.BoolTensor):
        """Moves the threshold towards the rise that one of `target_ratio` units exceeds."""
        rises = entropies.diff(dim=1).masked_fill(~mask[:, 1:], torch.nan)  # (batch, units - 1)
        found = rises.nanquantile(1 - 1 / self.config.target_ratio).nan_to_num(self.config.border_threshold)
        total, count = sum_over_processes(torch.stack([found, torch.ones_like(found)]))
        self.border_threshold.lerp_((total / count).to(self.border_threshold.dtype), 1 - STATISTICS_DECAY)

    @torch.no_grad()
    def borders(
        self, entropies: torch.Tensor, mask: torch.BoolTensor, context_lengths: torch.LongTensor | None = None
    ) -> torch.BoolTensor:
        """Where segments start: `(batch_size, units)`, from entropies up to each unit, and behind the context."""
        borders = BORDER_RULES[self.config.border_rule](entropies, self.border_threshold)  # (batch, units)
        if context_lengths is not None:
            borders = borders | (torch.arange(mask.shape[1], device=mask.device) == context_lengths[:, None])
        if self.training and self.config.border_rule == "target_ratio":
            self.follow_target_ratio(entropies, mask)
        return limit_patch_lengths(borders, self.config.max_patch_length)

    def forward(
        self,
        symbols: torch.LongTensor,
        mask: torch.BoolTensor,
        vectors: torch.Tensor | None = None,
        context_lengths: torch.LongTensor | None = None,
    ) -> SegmentCompressorOutput:
        """
        Args:
            symbols (`torch.LongTensor` of shape `(batch_size, units * symbols_per_unit)`): Bytes, or the codes of the
                level below as tokens.
            mask (`torch.BoolTensor` of shape `(batch_size, units)`): True for units, False for the padding behind.
            vectors (`torch.Tensor` of shape `(batch_size, units * symbols_per_unit, input_dim)`, *optional*): What
                the codes stand for.
            context_lengths (`torch.LongTensor` of shape `(batch_size,)`, *optional*): Units after which a segment has
                to start.
        """
        symbol_mask = mask.repeat_interleave(self.symbols_per_unit, dim=1)  # (batch, symbols)
        positions = torch.arange(symbols.shape[1], device=symbols.device)[None]  # (1, symbols)
        hidden_states = self.embed_symbols(symbols if vectors is None else vectors)  # (batch, symbols, hidden)
        hidden_states = self.encoder(hidden_states, symbol_mask.long(), positions)
        logits = self.next_symbol_logits(hidden_states)  # (batch, symbols, vocab)
        labels = symbols.masked_fill(~symbol_mask, -100)[:, 1:]  # (batch, symbols - 1)
        last_symbols = logits.detach()[:, self.symbols_per_unit - 1 :: self.symbols_per_unit]  # (batch, units, vocab)
        entropies = entropy(last_symbols).masked_fill(~mask, 0.0)  # (batch, units)
        borders = self.borders(entropies, mask, context_lengths)
        patch_ids = patch_ids_from_borders(borders, mask)  # (batch, units)
        # The one number that is read back from the device: the shapes of the next level depend on it.
        num_patches = int(patch_ids.max()) + 1 if patch_ids.numel() else 0
        patch_lengths = patch_lengths_from_ids(patch_ids, num_patches)  # (batch, patches)
        positions = positions_in_patch(borders)  # (batch, units)
        pooled = self.pooler(
            hidden_states,
            patch_ids.repeat_interleave(self.symbols_per_unit, dim=1),
            symbol_positions(positions, self.symbols_per_unit),
            num_patches,
        )  # (batch, patches, hidden)
        vectors = self.code_norm(self.code_proj(pooled), patch_lengths > 0)  # (batch, patches, codebook_dim)
        found = self.quantizer(vectors, patch_lengths > 0)  # stages: (batch, patches, quantizers, codebook_dim)
        return SegmentCompressorOutput(
            stages=found.stages,
            codes=found.codes.masked_fill(patch_lengths[..., None] == 0, -1),
            patch_ids=patch_ids,
            positions=positions,
            patch_lengths=patch_lengths,
            entropies=entropies,
            commitment_loss=found.commitment_loss,
            lm_loss=masked_mean(token_losses(logits[:, :-1], labels), labels >= 0, over_processes=self.training),
        )


class CodeExpander(HierarchicalPreTrainedModel):
    """
    Turns codes into the units below: each segment from the codes up to its own and from its own earlier symbols, with
    a flag that says whether a unit is the last of its segment. Segments do not see each other's symbols, so that all
    are generated at once.
    """

    def __init__(self, config: HierarchicalLevelConfig):
        super().__init__(config)
        self.symbols_per_unit = config.symbols_per_unit
        self.codebook_size = config.vocab_size // config.symbols_per_unit  # of what is below
        self.max_symbols = config.max_patch_length * config.symbols_per_unit
        self.embed_codes = nn.Linear(config.codebook_dim, config.hidden_size)
        self.memory = SlidingWindowTransformer(config, config.num_memory_layers, config.memory_window)
        self.positions = nn.Parameter(torch.empty(self.max_symbols, config.hidden_size))
        # The last row stands in front of a segment.
        self.embed_symbols = nn.Embedding(config.vocab_size + 1, config.hidden_size)
        self.decoder = SlidingWindowTransformer(config, config.num_expander_layers, self.max_symbols - 1)
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.end_head = nn.Linear(config.hidden_size, 1)
        self.post_init()

    def read_codes(self, vectors: torch.Tensor, mask: torch.BoolTensor) -> torch.Tensor:
        """The context of every code, `(batch_size, patches, hidden_size)`."""
        positions = torch.arange(mask.shape[1], device=mask.device)[None]
        return self.memory(self.embed_codes(vectors), mask.long(), positions)

    def symbol_logits(self, hidden_states: torch.Tensor, positions: torch.LongTensor) -> torch.Tensor:
        logits = self.lm_head(hidden_states)
        if self.symbols_per_unit == 1:
            return logits
        return keep_codebook(logits, positions % self.symbols_per_unit, self.codebook_size, self.symbols_per_unit)

    def end_logits(self, hidden_states: torch.Tensor, symbols: torch.LongTensor) -> torch.Tensor:
        """Logits that a symbol, the last one of a unit, ends its segment: `(...)` for `(..., hidden_size)` states."""
        return self.end_head(hidden_states + self.embed_symbols(symbols))[..., 0]

    def forward(
        self,
        vectors: torch.Tensor,
        mask: torch.BoolTensor,
        symbols: torch.LongTensor,
        patch_ids: torch.LongTensor,
        positions: torch.LongTensor,
    ) -> CodeExpanderOutput:
        """
        Args:
            vectors (`torch.Tensor` of shape `(batch_size, patches, codebook_dim)`): What the codes stand for.
            mask (`torch.BoolTensor` of shape `(batch_size, patches)`): False behind the last code of a row.
            symbols (`torch.LongTensor` of shape `(batch_size, units * symbols_per_unit)`): What is to be predicted.
            patch_ids, positions (`torch.LongTensor` of shape `(batch_size, units)`): Segment of every unit (-1 for
                padding), and its place there.
        """
        memory = F.pad(self.read_codes(vectors, mask), (0, 0, 1, 0))  # (batch, 1 + patches, hidden)
        patch_ids = patch_ids.repeat_interleave(self.symbols_per_unit, dim=1)  # (batch, symbols)
        positions = symbol_positions(positions, self.symbols_per_unit)  # (batch, symbols)
        # A segment begins without a symbol before it, so that all can be generated at once.
        previous = F.pad(symbols, (1, 0))[:, :-1].masked_fill(positions == 0, self.config.vocab_size)
        # Padding, whose segment is -1, reads the zeros in front.
        own = memory.gather(1, (patch_ids + 1)[..., None].expand(-1, -1, memory.shape[-1]))  # (batch, symbols, hidden)
        hidden_states = self.decoder(
            self.embed_symbols(previous) + own * self.positions[positions], patch_ids, positions
        )  # (batch, symbols, hidden)
        hidden_states = self.norm(hidden_states)
        last = slice(self.symbols_per_unit - 1, None, self.symbols_per_unit)
        return CodeExpanderOutput(
            logits=self.symbol_logits(hidden_states, positions),
            end_logits=self.end_logits(hidden_states[:, last], symbols[:, last]),
        )

    @torch.no_grad()
    def generate(
        self, memory: torch.Tensor, choice: Likeliest | None = None
    ) -> tuple[torch.LongTensor, torch.LongTensor]:
        """
        Generates segments, symbol by symbol, with a cache; those that have ended are left out.

        Args:
            memory (`torch.Tensor` of shape `(segments, hidden_size)`): The context of each code.
            choice (`Likeliest`, *optional*): Chooses symbols and ends.

        Returns:
            `tuple`: Symbols `(segments, max_patch_length * symbols_per_unit)`, of which the first ones count, and the
            lengths of the segments in units, `(segments,)`.
        """
        rows = torch.arange(memory.shape[0], device=memory.device)
        symbols = rows.new_zeros(memory.shape[0], self.max_symbols)
        lengths = torch.full_like(rows, self.config.max_patch_length)
        previous = torch.full_like(rows, self.config.vocab_size)
        cache, choice = DynamicCache(), choice or Likeliest()
        for step in range(self.max_symbols if len(rows) else 0):
            inputs = self.embed_symbols(previous) + memory * self.positions[step]  # (segments going on, hidden)
            hidden_states = self.norm(self.decoder.step(inputs[:, None], cache, step))[:, 0]
            logits = self.symbol_logits(hidden_states, torch.full_like(previous, step))
            previous = choice.symbols(rows, step, logits)  # (segments going on,)
            symbols[rows, step] = previous
            length, symbols_left = divmod(step + 1, self.symbols_per_unit)
            if symbols_left or length == self.config.max_patch_length:  # there every segment ends
                continue
            ends = choice.ends(rows, length, self.end_logits(hidden_states, previous))  # (segments going on,)
            lengths[rows[ends]] = length
            going_on = (~ends).nonzero()[:, 0]
            if not len(going_on):
                break
            # Rows and cache of the segments that have ended are dropped.
            rows, previous, memory = rows[going_on], previous[going_on], memory[going_on]
            cache.batch_select_indices(going_on)
        return symbols, lengths


__all__ = ["ByteSegmentCompressor", "CodeExpander", "HierarchicalPreTrainedModel"]
