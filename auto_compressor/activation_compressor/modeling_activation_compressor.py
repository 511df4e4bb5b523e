"""The activation compressor: a key/value cache of few slots, each of which stands for many tokens.

- Important tokens keep a slot; every other token joins the slot of the most similar key. The slot's value becomes the
  mean of its tokens, and its log-mass makes it draw the attention of all of them.
- Tokens whose value the mean would miss may keep a slot of their own: gated residuals.
- What is learned are corrections, which are zero in a new compressor: of the importance, and of the gates.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial, wraps

import torch
from torch import nn
from transformers import Cache, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput, logging

from .cache_names import CacheOutput, as_cache, takes_cache
from .cache_policies import (
    EMPTY,
    LayerState,
    Selection,
    Slots,
    evict,
    gather,
    importance,
    is_filled,
    merged_values,
    nearest_slot,
    protected_tokens,
    select,
)
from .configuration_activation_compressor import ActivationCompressorConfig
from .identity import model_fingerprint
from .losses import contrastive_loss, divergence_loss, importance_loss
from .merging_cache import MergingCache, MergingLayer, check_base, insert, merging_attention
from .tensors import (
    check_layer_checkpointing,
    equal_segment_lengths,
    mean_over_targets,
    shift_labels_left,
    sum_over_processes,
    summed_cross_entropy,
)


logger = logging.get_logger(__name__)

# Bases that have no vector for later positions.
LEARNED_POSITIONS = ("gpt2", "opt")
# Attention below this counts as this, so that its logarithm is finite.
LEAST_ATTENTION = 1e-8
# How gradually the threshold tells similar tokens from others, in units of cosine.
THRESHOLD_TEMPERATURE = 0.3
Policy = Callable[[LayerState, torch.LongTensor], Slots]


@dataclass
class ActivationCompressorOutput(CacheOutput):
    r"""
    Output of [`ActivationCompressor`].

    Args:
        loss (`torch.FloatTensor`, scalar): The weighted sum of `losses`.
        losses (`dict[str, torch.FloatTensor]`): Means in nats, those whose weight is above 0:
            `lm`, cross-entropy of the continuation; `distillation`, KL(full cache || compressed cache) of it;
            `importance`, KL(attention of the continuation || learned importance); `contrastive`, see
            [`~losses.contrastive_loss`]. The latter two are over the compressed layers.
        cache (`MergingCache`): The compressed context and the continuation.
    """

    loss: torch.FloatTensor | None = None
    losses: dict[str, torch.FloatTensor] | None = None
    cache: Cache | None = None


def without_autocast(method: Callable) -> Callable:
    """A method of a model that computes in the dtypes that it states: what is measured stays in float32."""

    @wraps(method)
    def exact(self: PreTrainedModel, *args, **kwargs):
        with torch.autocast(self.device.type, enabled=False):
            return method(self, *args, **kwargs)

    return exact


class LayerCompressor(nn.Module):
    """The learned corrections of one layer, linear in features of a token and different for every head."""

    def __init__(self, config: ActivationCompressorConfig):
        super().__init__()
        num_heads, num_features = config.num_key_value_heads, 2 * config.head_dim + 1
        self.importance_weight = nn.Parameter(torch.empty(num_heads, num_features))
        self.gate_weight = nn.Parameter(torch.empty(num_heads, 2))
        self.gate_bias = nn.Parameter(torch.empty(num_heads))
        self.threshold = nn.Buffer(torch.empty(()))

    def _apply(self, fn, *args, **kwargs) -> "LayerCompressor":
        """Moves the layer; the threshold, a running mean, is not rounded to less than float32."""
        threshold = self.threshold
        super()._apply(fn, *args, **kwargs)
        if self.threshold.element_size() < threshold.element_size() and not self.threshold.is_meta:
            self.threshold = threshold.to(self.threshold.device)
        return self

    def log_importance(self, state: LayerState) -> torch.Tensor:
        """log a_i and its correction, `(batch_size, num_kv_heads, tokens)`: what a token weighs among others."""
        log_attention = importance(state).clamp_min(LEAST_ATTENTION).log()  # (batch, kv_heads, tokens)
        valid = state.valid
        # (batch, kv_heads, 1): what is learned is relative to the mean of the text
        mean = (log_attention * valid).sum(dim=-1, keepdim=True) / valid.sum(dim=-1, keepdim=True).clamp_min(1)
        # joined: (batch, kv_heads, tokens, 2 * head_dim + 1)
        features = [unit_rms(state.keys), unit_rms(state.values), (log_attention - mean)[..., None]]
        return log_attention + (torch.cat(features, dim=-1) * self.importance_weight[:, None].float()).sum(dim=-1)

    def gate(self, log_importance: torch.Tensor, log_residual: torch.Tensor) -> torch.Tensor:
        """log g_i = log sigmoid(f(a_i, |v_i - V_c|)), the part of a token that its own slot has; same shapes."""
        features = torch.stack([log_importance, log_residual], dim=-1)  # (batch, kv_heads, tokens, 2)
        logits = (features * self.gate_weight[:, None].float()).sum(dim=-1) + self.gate_bias[:, None].float()
        return nn.functional.logsigmoid(logits)


class ActivationCompressorPreTrainedModel(PreTrainedModel):
    """Initialisation of an [`ActivationCompressor`]: it starts as the plain rule, without corrections."""

    config: ActivationCompressorConfig
    _keep_in_fp32_modules_strict = {"threshold"}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        if isinstance(module, LayerCompressor):
            init.zeros_(module.importance_weight)
            init.zeros_(module.gate_weight)
            # A residual has 98% of its token.
            init.constant_(module.gate_bias, 4.0)
            init.constant_(module.threshold, self.config.similarity_threshold)


class ActivationCompressor(ActivationCompressorPreTrainedModel):
    """
    Compresses the key/value cache of a base model, which is no part of it: it is saved alone, with the identity of its
    base.

    Example:

    ```python
    >>> compressor = ActivationCompressor.from_base(model, compression_ratio=4)
    >>> with compressor.attach(model):
    ...     cache = compressor.compress(model, input_ids[:, :-1])
    ...     output_ids = model.generate(input_ids, cache=cache.fork())
    >>> cache.num_bytes
    ```"""

    def __init__(self, config: ActivationCompressorConfig):
        super().__init__(config)
        self.layers = nn.ModuleDict({str(index): LayerCompressor(config) for index in config.compressed_layers})
        self.post_init()

    @classmethod
    def from_base(cls, base_model: PreTrainedModel, **fields) -> "ActivationCompressor":
        """
        A new compressor for a base model, in evaluation mode as from `from_pretrained`.

        Args:
            base_model (`PreTrainedModel`): A causal language model, see [`~merging_cache.merging_attention`].
            fields: Of [`ActivationCompressorConfig`].

        Raises:
            ValueError: for another base or attention, and for fields out of their range.
        """
        base = base_model.config
        check_base(base)
        num_heads = base.num_attention_heads
        config = ActivationCompressorConfig(
            base_model_type=base.model_type,
            num_hidden_layers=base.num_hidden_layers,
            num_key_value_heads=getattr(base, "num_key_value_heads", None) or num_heads,
            head_dim=getattr(base, "head_dim", None) or base.hidden_size // num_heads,
            **fields,
        )
        compressor = cls(config).to(base_model.device).eval()
        compressor.identify(base_model)
        return compressor

    def identify(self, base_model: PreTrainedModel):
        """States that this compressor belongs to these weights; needed where training has changed them."""
        self.config.base_name_or_path = base_model.config.name_or_path
        self.config.base_fingerprint = model_fingerprint(base_model)

    def check_identity(self, base_model: PreTrainedModel):
        """Raises a `ValueError` unless `base_model` is the one that this compressor belongs to."""
        config, base = self.config, base_model.config
        if base.model_type != config.base_model_type or model_fingerprint(base_model) != config.base_fingerprint:
            raise ValueError(
                f"This compressor belongs to {config.base_name_or_path!r} ({config.base_model_type}), with other"
                f" weights than those of {base.name_or_path!r} ({base.model_type})."
            )

    @contextmanager
    def attach(self, base_model: PreTrainedModel) -> Iterator[PreTrainedModel]:
        """
        Lets the base model attend to compressed caches; nothing of it stays behind.

        Raises:
            ValueError: for another base than that of this compressor, or attention that cannot weigh slots.
        """
        self.check_identity(base_model)
        with merging_attention(base_model):
            yield base_model

    @takes_cache
    @torch.no_grad()
    def compress(
        self,
        base_model: PreTrainedModel,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        segment_length: int | None = None,
        compression_ratio: float | None = None,
        policy: Policy | None = None,
        cache: MergingCache | None = None,
    ) -> MergingCache:
        r"""
        Reads a text into a compressed cache; one that fits into sinks and recent window is kept whole.

        Args:
            base_model (`PreTrainedModel`): The model that this compressor belongs to.
            input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`): The text.
            attention_mask (`torch.Tensor` of shape `(batch_size, seen_length + sequence_length)`, *optional*):
                0 for padding, which must stand on the left; over the tokens in `cache` too.
            segment_length (`int`, *optional*):
                The cache is compressed whenever so many tokens were read, so that it never holds more than its slots
                and these. Default: once, after the whole text.
            compression_ratio (`float`, *optional*): Default: that of the config, or its `num_slots`.
            policy (`Callable`, *optional*): What to do with a layer, see `cache_policies`. Default: [`merge`].
            cache (`MergingCache`, *optional*): What was read before, which the text continues.

        Returns:
            [`MergingCache`], for `base_model(..., cache=cache)` within [`attach`].

        Raises:
            ValueError: as [`attach`], and for arguments out of their range.
        """
        cache = MergingCache(base_model.config) if cache is None else cache
        mask = left_padding_mask(attention_mask, input_ids, cache.get_seq_length())  # (batch, seen + length)
        budgets = self.budgets(mask.sum(dim=1), compression_ratio)
        with self.attach(base_model):
            for end in self._read(base_model, cache, input_ids, attention_mask, segment_length):
                self._compress_layers(cache, mask[:, :end], budgets, policy or self.merge)
        return cache

    @torch.no_grad()
    def compress_cache(
        self,
        cache: MergingCache,
        attention_mask: torch.Tensor | None = None,
        compression_ratio: float | None = None,
        policy: Policy | None = None,
    ) -> list[tuple[LayerState, Slots]]:
        r"""
        Compresses what a cache holds, in place; [`compress`] is this after every segment.

        Args:
            cache (`MergingCache`): What is compressed; `observe` must have been called before the text was read.
            attention_mask (`torch.Tensor` of shape `(batch_size, seen_length)`, *optional*): 0 for padding.
            compression_ratio, policy: As in [`compress`].

        Returns:
            For every compressed layer what it held, and to what it was compressed; nothing if all tokens fit.

        Raises:
            ValueError: as [`compress`], and if the cache is empty or has no queries.
        """
        keys = cache.layers[0].keys
        if keys is None:
            raise ValueError("`cache` must hold a text, it is empty.")
        seen = keys.new_empty(keys.shape[0], cache.get_seq_length(), dtype=torch.long)
        mask = left_padding_mask(attention_mask, seen, 0)
        return self._compress_layers(
            cache, mask, self.budgets(mask.sum(dim=1), compression_ratio), policy or self.merge
        )

    def forward(
        self,
        base_model: PreTrainedModel,
        input_ids: torch.LongTensor,
        context_length: int,
        attention_mask: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        segment_length: int | None = None,
    ) -> ActivationCompressorOutput:
        r"""
        The training objective: what the base model predicts after a compressed context.

        Args:
            base_model (`PreTrainedModel`): As in [`compress`]; its identity is not checked, training may change it.
            input_ids, attention_mask, segment_length: As in [`compress`].
            context_length (`int`): The first tokens, which are compressed; the others are the continuation.
            labels (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
                As for a causal language model; those of the continuation count. Default: `input_ids` without padding.

        Raises:
            ValueError: as [`compress`], and unless there are both a context and a continuation.
        """
        if not 0 < context_length < input_ids.shape[1] - 1:
            raise ValueError(
                f"`context_length` must be above 0 and leave 2 tokens or more of {input_ids.shape[1]}, got"
                f" {context_length}."
            )
        check_layer_checkpointing(base_model)
        mask = left_padding_mask(attention_mask, input_ids, 0)
        labels = input_ids.masked_fill(mask == 0, -100) if labels is None else labels
        counted, targets = labels[:, context_length:] != -100, shift_labels_left(labels[:, context_length:])
        cache, contrastive = MergingCache(base_model.config), []
        context, continuation = input_ids.tensor_split([context_length], dim=1)
        budgets = self.budgets(mask[:, :context_length].sum(dim=1))
        with frozen(base_model) if self.config.freeze_base else nullcontext(), merging_attention(base_model):
            policy = partial(self._merge, follow=self.training)
            for end in self._read(base_model, cache, context, attention_mask, segment_length):
                full = cache.fork()
                compressed = self._compress_layers(cache, mask[:, :end], budgets, policy)
                contrastive += [self._contrastive_loss(*pair) for pair in compressed]
            logits = read_on(base_model, cache, continuation, attention_mask).logits  # (batch, continuation, vocab)
            losses = {"lm": mean_over_targets(summed_cross_entropy(logits, targets), targets)}
            if self.config.distillation_weight > 0 or self.config.importance_weight > 0:
                if segment_length is not None:  # `full` is what the last compression found, not all of the context
                    full = self._full_cache(base_model, context, attention_mask)
                losses |= self._losses_to_full_cache(base_model, full, continuation, attention_mask, logits, counted)
        if self.config.contrastive_weight > 0 and contrastive:
            losses["contrastive"] = torch.stack(contrastive).mean()
        loss = sum(getattr(self.config, f"{name}_weight", 1) * value for name, value in losses.items())
        return ActivationCompressorOutput(loss=loss, losses=losses, cache=cache)

    @torch.no_grad()
    def _full_cache(
        self, base_model: PreTrainedModel, input_ids: torch.LongTensor, attention_mask: torch.Tensor | None
    ) -> MergingCache:
        """All of a text, and the queries of its end."""
        cache = MergingCache(base_model.config)
        for _ in self._read(base_model, cache, input_ids, attention_mask, None):
            full = cache.fork()
        return full

    def _losses_to_full_cache(
        self,
        base_model: PreTrainedModel,
        cache: MergingCache,
        continuation: torch.LongTensor,
        attention_mask: torch.Tensor | None,
        logits: torch.Tensor,
        counted: torch.BoolTensor,
    ) -> dict[str, torch.Tensor]:
        """What the full cache says about the logits of the continuation, and about the importance of its context."""
        length, losses = cache.get_seq_length(), {}
        mask = left_padding_mask(attention_mask, logits[..., 0], length)  # (batch, context + continuation)
        contexts = [self.layer_state(cache.layers[int(index)], mask[:, :length], int(index)) for index in self.layers]
        cache.observe(continuation.shape[1])
        with torch.no_grad():
            full_logits = read_on(base_model, cache, continuation, attention_mask).logits
        if self.config.distillation_weight > 0:
            losses["distillation"] = divergence_loss(logits, full_logits, counted)
        if self.config.importance_weight > 0:
            # The importance at the end of the context, and what the continuation then attended to.
            pairs = [(context, self.layer_state(cache.layers[context.layer_idx], mask, 0)) for context in contexts]
            losses["importance"] = torch.stack([self._importance_loss(*pair) for pair in pairs]).mean()
        return losses

    @without_autocast
    def _importance_loss(self, context: LayerState, later: LayerState) -> torch.Tensor:
        log_importance = self.layers[str(context.layer_idx)].log_importance(context)
        attention = importance(later)[..., : log_importance.shape[-1]]  # (batch, kv_heads, context)
        return importance_loss(log_importance, attention, context.valid)

    @without_autocast
    def _contrastive_loss(self, state: LayerState, slots: Slots) -> torch.Tensor:
        assignment = slots.assignment.masked_fill(slots.kept, -1)  # (batch, kv_heads, tokens)
        filled = is_filled(slots.log_mass)  # (batch, kv_heads, slots)
        temperature = self.config.contrastive_temperature
        return contrastive_loss(state.values, slots.values, assignment, filled, temperature)

    def _read(
        self,
        base_model: PreTrainedModel,
        cache: MergingCache,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None,
        segment_length: int | None,
    ) -> Iterator[int]:
        """Reads a text segment by segment, with its last queries; yields the tokens in the cache after each."""
        if segment_length is not None and segment_length < 1:
            raise ValueError(f"`segment_length` must be 1 or more, got {segment_length}.")
        length = input_ids.shape[1]
        check_positions(base_model, cache.get_seq_length() + length, attention_mask)
        cache.observe(self.config.observation_window)
        for segment in input_ids.split(equal_segment_lengths(length, segment_length or length), dim=1):
            read_on(base_model.base_model, cache, segment, attention_mask)
            yield cache.get_seq_length()
        cache.observe(0)

    def budgets(
        self, num_tokens: torch.LongTensor, compression_ratio: float | None = None
    ) -> dict[int, torch.LongTensor]:
        """
        Slots of every compressed layer, `(batch_size,)`, for rows of so many tokens.

        They are never fewer than `min_slots` of the config: a row of no more tokens is kept whole.
        """
        budgets = self._allotted(num_tokens, compression_ratio)
        return {layer: budget.clamp_min(self.config.min_slots) for layer, budget in budgets.items()}

    def check_ratio(self, num_tokens: int, compression_ratio: float | None = None):
        """Raises a `ValueError` where texts of so many tokens would be held in more slots than was asked for."""
        config = self.config
        ratio = config.compression_ratio if compression_ratio is None else compression_ratio
        budgets = self._allotted(torch.tensor([num_tokens]), compression_ratio)
        fewest = min(int(budget) for budget in budgets.values())
        if ratio > 1 and fewest < config.min_slots:
            raise ValueError(
                f"`compression_ratio` {ratio} leaves {fewest} slots of {num_tokens}"
                f" tokens; `num_sinks` + `recent_window` = {config.min_slots - 1} must be fewer."
            )

    def _allotted(self, num_tokens: torch.LongTensor, compression_ratio: float | None) -> dict[int, torch.LongTensor]:
        """What every compressed layer has of the slots that the ratio allows, `(batch_size,)`."""
        config = self.config
        ratio = config.compression_ratio if compression_ratio is None else compression_ratio
        if not 1 <= ratio < math.inf:
            raise ValueError(f"`compression_ratio` must be 1 or more, and finite, got {ratio}.")
        layers = config.compressed_layers
        if config.num_slots is not None and compression_ratio is None:
            slots = torch.full_like(num_tokens, config.num_slots)
        elif ratio == 1:
            return dict.fromkeys(layers, num_tokens)
        else:
            # A slot has a log-mass beside key and value.
            slots = (num_tokens.double() / (ratio * (1 + 1 / (2 * config.head_dim)))).long()
        shares = config.layer_budgets or [1.0] * len(layers)
        return {
            layer: (slots * (share * len(layers) / math.fsum(shares))).long()
            for layer, share in zip(layers, shares, strict=True)
        }

    @without_autocast
    def _compress_layers(
        self, cache: MergingCache, mask: torch.Tensor, budgets: dict[int, torch.LongTensor], policy: Policy
    ) -> list[tuple[LayerState, Slots]]:
        """Compresses every layer with a budget if one of them holds more; the others keep all of their tokens."""
        held = {index: cache.layers[index].num_slots + cache.layers[index].recent_length for index in budgets}
        if all(held[index] <= int(budget.min()) for index, budget in budgets.items()):
            return []
        compressed = []
        for index, layer in enumerate(cache.layers):
            state = self.layer_state(layer, mask, index)
            if index in budgets:
                slots = policy(state, budgets[index])
                compressed.append((state, slots))
            else:
                slots = evict(state, state.log_mass, mask.sum(dim=1))
            int8 = slots.residuals if self.config.residual_int8 else slice(0, 0)
            layer.replace(slots.keys, slots.values, slots.log_mass, int8)
        return compressed

    def layer_state(self, layer: MergingLayer, mask: torch.Tensor, layer_idx: int) -> LayerState:
        if layer.queries is None:
            raise ValueError("`cache` must have observed queries: call `cache.observe` before it reads a text.")
        keys, values = layer.states()
        num_recent = layer.recent_length
        # Each recent token counts once, padding not at all.
        recent = keys.new_zeros(()).where(mask[:, None, mask.shape[1] - num_recent :] > 0, EMPTY)
        recent = recent.expand(-1, keys.shape[1], -1)  # (batch, kv_heads, recent tokens)
        log_mass = recent if layer.log_mass is None else torch.cat([layer.log_mass, recent], dim=-1)
        config = self.config
        protected = protected_tokens(is_filled(log_mass), config.num_sinks, config.recent_window)
        return LayerState(keys, values, log_mass, layer.queries, protected, layer_idx)

    def merge(self, state: LayerState, budget: torch.LongTensor) -> Slots:
        """
        The policy of this compressor: the most important tokens have slots, and all others join them.

        Args:
            state (`LayerState`): A layer that is compressed.
            budget (`torch.LongTensor` of shape `(batch_size,)`): Slots of each row.
        """
        return self._merge(state, budget)

    @without_autocast
    def _merge(self, state: LayerState, budget: torch.LongTensor, follow: bool = False) -> Slots:
        """[`merge`]; a step of training lets the threshold follow the similarities (`follow`)."""
        layer = self.layers[str(state.layer_idx)]
        log_importance = layer.log_importance(state)  # (batch, kv_heads, tokens)
        num_residual, cost = self._residual_budget(state, budget)  # (batch,) each
        pivots = select(state, log_importance.detach(), budget - cost)
        # (batch, kv_heads, tokens) each; protected tokens are kept as they are, so that no other joins them
        similarity, slot = nearest_slot(state, pivots, pivots.filled & ~pivots.gather(state.protected))
        members = state.valid & ~pivots.kept  # (batch, kv_heads, tokens): all that join a slot
        # (batch, kv_heads, tokens): the weight of a token by that of the slot's own, 0 for those that join none
        shares = log_importance - gather(pivots.gather(log_importance), slot)
        shares = shares.masked_fill(~members, -torch.inf).exp()
        if int(num_residual.max()) == 0:
            return merged_slots(state, pivots, slot, shares)
        log_residual = residual_norm(state.values, pivots, slot, shares).clamp_min(LEAST_ATTENTION).log()
        log_gate = layer.gate(log_importance.detach(), log_residual)
        threshold = self._threshold(layer, similarity, members, num_residual)
        if follow and self.config.adaptive_threshold:
            follow_threshold(layer, threshold)
        # How much a token rather stays apart, the less similar it is.
        log_apart = nn.functional.logsigmoid((threshold - similarity) / THRESHOLD_TEMPERATURE)
        scores = self.config.residual_importance * log_importance + log_gate + log_residual + log_apart
        rest = replace(state, log_mass=state.log_mass.masked_fill(~members, EMPTY), protected=state.valid & False)
        residuals = select(rest, scores.detach(), num_residual)
        # The gate divides the mass of a residual: g to a slot of its own, 1 - g to the one that it would have joined.
        slots = merged_slots(state, pivots, slot, shares * torch.where(residuals.kept, -log_gate.expm1(), 1))
        own = merged_slots(replace(state, log_mass=state.log_mass + log_gate), residuals)
        return join_slots(own, slots, self.config.num_sinks)

    def _residual_budget(
        self, state: LayerState, budget: torch.LongTensor
    ) -> tuple[torch.LongTensor, torch.LongTensor]:
        """How many gated residuals each row has, and what they cost of its slots, both `(batch_size,)`."""
        config = self.config
        # Protected and valid tokens are as many in every head.
        free = budget - state.protected[:, 0].sum(dim=-1)  # (batch,)
        excess = state.valid[:, 0].sum(dim=-1) - budget  # (batch,)
        fraction = config.residual_fraction if config.use_residuals else 0.0
        cost = (free * fraction).long().where(excess > 0, 0)
        if not config.residual_int8:
            return cost, cost
        # Key and value, two scales and the log-mass, by a slot that is not in int8.
        size, width = state.keys.element_size(), 2 * config.head_dim
        fit = (cost * ((width + 1) * size / (width + 3 * size))).long()
        return torch.minimum(fit, excess + cost).clamp_min(0), cost

    def _threshold(
        self,
        layer: LayerCompressor,
        similarity: torch.Tensor,
        members: torch.BoolTensor,
        num_residual: torch.LongTensor,
    ) -> torch.Tensor:
        """The similarity below which a token rather keeps a slot; if adaptive, of shape `(batch, heads, 1)`."""
        if not self.config.adaptive_threshold:
            return similarity.new_tensor(self.config.similarity_threshold)
        ranked = similarity.masked_fill(~members, torch.inf).sort(dim=-1).values  # (batch, kv_heads, tokens)
        rank = num_residual.clamp_max(ranked.shape[-1] - 1)[:, None, None].expand(*ranked.shape[:2], 1)
        at_budget = ranked.gather(-1, rank)  # (batch, kv_heads, 1)
        at_budget = at_budget.where(at_budget.isfinite(), layer.threshold)
        return torch.lerp(at_budget, layer.threshold.to(at_budget.dtype), self.config.threshold_momentum)


@torch.no_grad()
def follow_threshold(layer: LayerCompressor, threshold: torch.Tensor):
    """Moves the threshold of a layer to the mean of those found `(batch, heads, 1)`, over all processes."""
    found = threshold.sum()
    total, count = sum_over_processes(torch.stack([found, torch.full_like(found, threshold.numel())]))
    layer.threshold.copy_(total / count)


def residual_norm(
    values: torch.Tensor, selection: Selection, slot: torch.LongTensor, shares: torch.Tensor
) -> torch.Tensor:
    """|v_i - V_c|, the distance of each value from the mean that it would join; shapes as in [`merged_values`]."""
    values = values.detach().float()
    means, _ = merged_values(values, selection, slot, shares.detach())  # (batch, kv_heads, slots, head_dim)
    return (values - gather(means, slot)).norm(dim=-1)


def merged_slots(
    state: LayerState,
    selection: Selection,
    slot: torch.LongTensor | None = None,
    shares: torch.Tensor | None = None,
) -> Slots:
    """The slots of the selected tokens, with those that join them; shapes as in [`merged_values`]."""
    # (batch, kv_heads, slots), (batch, kv_heads, slots, head_dim), (batch, kv_heads, tokens)
    log_mass, values, assignment = (
        selection.gather(state.log_mass),
        selection.gather(state.values),
        selection.assignment,
    )
    if shares is not None:
        means, log_growth = merged_values(state.values.float(), selection, slot, shares)
        log_mass, values = log_mass + log_growth, means.to(values.dtype)
        assignment = torch.where(state.valid & ~selection.kept, slot, assignment)
    log_mass = log_mass.to(values.dtype).masked_fill(~selection.filled, EMPTY)
    return Slots(selection.gather(state.keys), values, log_mass, assignment, selection.kept)


def join_slots(residuals: Slots, slots: Slots, num_sinks: int) -> Slots:
    """Puts the slots of gated residuals behind the sinks: what is first and last in position stays so."""
    count, start = residuals.log_mass.shape[-1], min(num_sinks, slots.log_mass.shape[-1])
    return Slots(
        insert(slots.keys, residuals.keys, start),
        insert(slots.values, residuals.values, start),
        insert(slots.log_mass, residuals.log_mass, start),
        torch.where(
            residuals.kept, residuals.assignment + start, slots.assignment + count * (slots.assignment >= start)
        ),
        residuals.kept | slots.kept,
        slice(start, start + count),
    )


def unit_rms(vectors: torch.Tensor) -> torch.Tensor:
    """Vectors `(..., dim)` in float32, detached and scaled to a mean square of 1."""
    vectors = vectors.detach().float()
    return nn.functional.rms_norm(vectors, vectors.shape[-1:])


def read_on(
    model: PreTrainedModel, cache: MergingCache, input_ids: torch.LongTensor, attention_mask: torch.Tensor | None
) -> ModelOutput:
    """Reads tokens after those that the cache has seen; the mask covers both, and may go on."""
    start = cache.get_seq_length()
    end = start + input_ids.shape[1]
    if attention_mask is None:
        position_ids = torch.arange(start, end, device=input_ids.device).expand(input_ids.shape)
    else:
        attention_mask = attention_mask[:, :end]
        position_ids = positions(attention_mask)[:, start:]
    text = {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids}
    return model(**text, **as_cache(cache), use_cache=True)


def check_positions(base_model: PreTrainedModel, length: int, attention_mask: torch.Tensor | None):
    """
    Warns once of a text of so many tokens, padding too, that is longer than the base was made for.

    Raises:
        ValueError: if the base has learned positions, and none for the last tokens.
    """
    available = getattr(base_model.config, "max_position_embeddings", None)
    length = length if attention_mask is None else int(attention_mask[:, :length].sum(dim=1).max())
    if available is None or length <= available:
        return
    if base_model.config.model_type in LEARNED_POSITIONS:
        raise ValueError(f"`input_ids` must fit the {available} positions of the base, with those before {length}.")
    logger.warning_once(
        f"The base was made for {available} positions, {length} are read: what it says after that may be worthless."
    )


def positions(mask: torch.Tensor) -> torch.LongTensor:
    """Position of every token, `(batch_size, length)`; padding has that of the first."""
    return (mask.long().cumsum(dim=1) - 1).clamp_min(0)


def left_padding_mask(
    attention_mask: torch.Tensor | None, input_ids: torch.Tensor, seen_length: int
) -> torch.LongTensor:
    """Returns the mask `(batch_size, seen_length + length)`; a `ValueError` unless its padding stands on the left."""
    shape = (input_ids.shape[0], seen_length + input_ids.shape[1])
    if attention_mask is None:
        return input_ids.new_ones(shape, dtype=torch.long)
    if attention_mask.shape != shape:
        raise ValueError(
            f"`attention_mask` must cover the text, seen and new: {shape}, got {tuple(attention_mask.shape)}."
        )
    if (attention_mask[:, 1:] < attention_mask[:, :-1]).any():
        raise ValueError("`attention_mask` must have its padding on the left: each row 0s, and then 1s.")
    return attention_mask.long()


@contextmanager
def frozen(model: nn.Module) -> Iterator[nn.Module]:
    """Keeps gradients from the parameters of a model, but not from what goes through it."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        yield model
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


__all__ = [
    "ActivationCompressor",
    "ActivationCompressorOutput",
    "LayerCompressor",
]
