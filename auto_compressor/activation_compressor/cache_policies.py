"""What a layer of a key/value cache keeps: selection, merging, and the policies of the literature as small functions.

A policy takes a [`LayerState`] and the slots that each row may hold, and returns [`Slots`]. It sees one layer, and its
rows and heads do not see each other. `POLICIES` names those without parameters.
"""

from dataclasses import dataclass, field

import torch
from torch.nn import functional as F


# Log-mass of a slot that holds nothing: no attention in any dtype, and no NaN where all slots are empty.
EMPTY = torch.finfo(torch.float16).min
# Keys that are compared with all slots at once, so that the similarities of a long text fit into memory.
KEYS_PER_CHUNK = 2048


@dataclass(frozen=True)
class LayerState:
    r"""
    What a policy sees of a layer: old slots and the tokens after them, here all called tokens, in order of position.

    Args:
        keys, values (`torch.Tensor` of shape `(batch_size, num_kv_heads, tokens, head_dim)`): As they are cached.
        log_mass (`torch.Tensor` of shape `(batch_size, num_kv_heads, tokens)`):
            What is added to the attention score of a token; [`EMPTY`] for padding.
        queries (`torch.Tensor` of shape `(batch_size, num_heads, queries, head_dim)`):
            Of the last tokens, scaled, so that their product with a key is a score.
        protected (`torch.BoolTensor` of shape `(batch_size, num_kv_heads, tokens)`): Tokens to be kept as they are.
        layer_idx (`int`): The layer.
    """

    keys: torch.Tensor
    values: torch.Tensor
    log_mass: torch.Tensor
    queries: torch.Tensor
    protected: torch.BoolTensor
    layer_idx: int = 0

    @property
    def valid(self) -> torch.BoolTensor:
        """Tokens that are no padding, `(batch_size, num_kv_heads, tokens)`."""
        return is_filled(self.log_mass)


@dataclass(frozen=True)
class Slots:
    r"""
    What a layer holds after a policy.

    Args:
        keys, values (`torch.Tensor` of shape `(batch_size, num_kv_heads, slots, head_dim)`): As they are cached.
        log_mass (`torch.Tensor` of shape `(batch_size, num_kv_heads, slots)`): [`EMPTY`] for slots of no token.
        assignment (`torch.LongTensor` of shape `(batch_size, num_kv_heads, tokens)`):
            The slot that each token is in; -1 for tokens that were dropped, and for padding.
        kept (`torch.BoolTensor` of shape `(batch_size, num_kv_heads, tokens)`): Tokens whose key a slot has.
        residuals (`slice`): The slots of gated residuals, which are not in order of position.
    """

    keys: torch.Tensor
    values: torch.Tensor
    log_mass: torch.Tensor
    assignment: torch.LongTensor
    kept: torch.BoolTensor
    residuals: slice = field(default_factory=lambda: slice(0, 0))


@dataclass(frozen=True)
class Selection:
    r"""
    Tokens chosen to have a slot, in order of position.

    Args:
        indices (`torch.LongTensor` of shape `(batch_size, num_kv_heads, slots)`): The token of each slot.
        filled (`torch.BoolTensor` of shape `(batch_size, num_kv_heads, slots)`): Slots that have one.
        assignment (`torch.LongTensor` of shape `(batch_size, num_kv_heads, tokens)`): The slot of a token, or -1.
    """

    indices: torch.LongTensor
    filled: torch.BoolTensor
    assignment: torch.LongTensor

    @property
    def kept(self) -> torch.BoolTensor:
        return self.assignment >= 0

    def gather(self, tokens: torch.Tensor) -> torch.Tensor:
        """`(batch_size, num_kv_heads, tokens, ...)` -> `(batch_size, num_kv_heads, slots, ...)`."""
        return gather(tokens, self.indices)


def is_filled(log_mass: torch.Tensor) -> torch.BoolTensor:
    return log_mass > EMPTY / 2


def gather(tensor: torch.Tensor, indices: torch.LongTensor) -> torch.Tensor:
    """Entries of `(batch, heads, n, ...)` at `indices` `(batch, heads, m)`, of shape `(batch, heads, m, ...)`."""
    trailing = tensor.shape[3:]
    indices = indices.reshape(*indices.shape, *(1 for _ in trailing)).expand(*indices.shape, *trailing)
    return tensor.gather(2, indices)


def protected_tokens(valid: torch.BoolTensor, num_sinks: int, recent_window: int) -> torch.BoolTensor:
    """
    The attention sinks and the recent window: the first and the last tokens of every row (Xiao et al., "Efficient
    Streaming Language Models with Attention Sinks", ICLR 2024).

    Args:
        valid (`torch.BoolTensor` of shape `(batch_size, num_kv_heads, tokens)`): False for padding.
        num_sinks, recent_window (`int`): Tokens of each.
    """
    from_start = valid.cumsum(dim=-1)  # (batch, heads, tokens)
    from_end = valid.flip(-1).cumsum(dim=-1).flip(-1)
    return valid & ((from_start <= num_sinks) | (from_end <= recent_window))


def select(state: LayerState, scores: torch.Tensor, budget: torch.LongTensor) -> Selection:
    """
    Chooses the protected tokens, and after them those of the highest scores.

    Args:
        state (`LayerState`): The layer.
        scores (`torch.Tensor` of shape `(batch_size, num_kv_heads, tokens)`): Higher is kept.
        budget (`torch.LongTensor` of shape `(batch_size,)`): Slots of each row.
    """
    num_tokens = scores.shape[-1]
    ranked = scores.float().masked_fill(state.protected, torch.inf).masked_fill(~state.valid, -torch.inf)
    num_slots = min(int(budget.max()), num_tokens)
    indices = ranked.topk(num_slots, dim=-1).indices  # (batch, heads, slots)
    allowed = torch.minimum(budget[:, None], state.valid.sum(dim=-1))  # (batch, heads)
    over_budget = torch.arange(num_slots, device=scores.device) >= allowed[..., None]  # (batch, heads, slots)
    # In order of position; slots over the budget of their row come last, with the token `num_tokens`, which is none.
    indices = indices.masked_fill(over_budget, num_tokens).sort(dim=-1).values
    slots = torch.arange(num_slots, device=scores.device).expand_as(indices)
    # One token more takes the slots of no token.
    assignment = torch.full_like(F.pad(scores, (0, 1)), -1, dtype=torch.long).scatter(2, indices, slots)[..., :-1]
    filled = indices < num_tokens
    return Selection(indices.where(filled, 0), filled, assignment)


def evict(state: LayerState, scores: torch.Tensor, budget: torch.LongTensor) -> Slots:
    """Keeps the tokens of the highest scores and drops all others; shapes as in [`select`]."""
    selection = select(state, scores, budget)
    return Slots(
        selection.gather(state.keys),
        selection.gather(state.values),
        selection.gather(state.log_mass).masked_fill(~selection.filled, EMPTY),
        selection.assignment,
        selection.kept,
    )


def nearest_slot(
    state: LayerState, selection: Selection, open_slots: torch.BoolTensor
) -> tuple[torch.Tensor, torch.LongTensor]:
    """
    The open slot whose key is most like that of each token.

    Args:
        state (`LayerState`): The layer.
        selection (`Selection`): The tokens that have slots.
        open_slots (`torch.BoolTensor` of shape `(batch_size, num_kv_heads, slots)`): Slots that others may join.

    Returns:
        Cosine similarities and slots, both of shape `(batch_size, num_kv_heads, tokens)`.
    """
    keys = F.normalize(state.keys.detach().float(), dim=-1)
    slots = selection.gather(keys).transpose(2, 3)  # (batch, heads, head_dim, slots)
    closed = ~open_slots[:, :, None]
    nearest = [(chunk @ slots).masked_fill(closed, -2.0).max(dim=-1) for chunk in keys.split(KEYS_PER_CHUNK, dim=2)]
    similarity, slot = (torch.cat(parts, dim=-1) for parts in zip(*nearest, strict=True))
    return similarity, slot


def merged_values(values: torch.Tensor, selection: Selection, slot: torch.LongTensor, shares: torch.Tensor):
    """
    The mean of the values in each slot, weighted; exactly its own value where nothing joins it.

    Args:
        values (`torch.Tensor` of shape `(batch_size, num_kv_heads, tokens, head_dim)`): Float32.
        selection (`Selection`): The tokens that have slots.
        slot (`torch.LongTensor` of shape `(batch_size, num_kv_heads, tokens)`): What each of the others joins.
        shares (`torch.Tensor` of shape `(batch_size, num_kv_heads, tokens)`):
            Weight of each token by that of the slot's own; 0 for those that join none.

    Returns:
        Means `(batch_size, num_kv_heads, slots, head_dim)`, and log(1 + sum of the shares) `(..., slots)`.
    """
    own = selection.gather(values)  # (batch, heads, slots, head_dim)
    joined = torch.zeros_like(own[..., 0]).scatter_add(2, slot, shares)  # (batch, heads, slots)
    differences = shares[..., None] * (values - gather(own, slot))  # (batch, heads, tokens, head_dim)
    # By differences: a slot that nothing joins keeps its value to the last bit.
    total = torch.zeros_like(own).scatter_add(2, slot[..., None].expand_as(differences), differences)
    return own + total / (1 + joined)[..., None], joined.log1p()


def observed_attention(state: LayerState) -> torch.Tensor:
    """
    Attention of the last queries to all tokens, 0 from and to padding.

    Returns:
        `torch.Tensor` of shape `(batch_size, num_kv_heads, queries per head, tokens)`, float32.
    """
    num_heads, num_tokens = state.keys.shape[1:3]
    num_queries = state.queries.shape[2]
    queries = state.queries.detach().unflatten(1, (num_heads, -1))  # (batch, heads, groups, queries, head_dim)
    scores = queries.float() @ state.keys.detach().float().transpose(2, 3)[:, :, None]
    scores = scores + state.log_mass.detach().float()[:, :, None, None]  # (batch, heads, groups, queries, tokens)
    seen = torch.ones(num_queries, num_tokens, dtype=torch.bool, device=scores.device).tril(num_tokens - num_queries)
    attention = scores.masked_fill(~seen, -torch.inf).softmax(dim=-1)
    attention = attention * state.valid[:, :, None, None] * state.valid[:, :, None, -num_queries:, None]
    return attention.flatten(2, 3)


def importance(state: LayerState) -> torch.Tensor:
    """Mean attention a_i of the last queries to each token, `(batch_size, num_kv_heads, tokens)`."""
    attention = observed_attention(state)  # (batch, heads, groups * queries, tokens)
    num_queries = state.queries.shape[2]
    groups = attention.shape[2] // num_queries
    count = groups * state.valid[..., -num_queries:].sum(dim=-1, keepdim=True)  # (batch, heads, 1)
    return attention.sum(dim=2) / count.clamp_min(1)


def window(state: LayerState, budget: torch.LongTensor) -> Slots:
    """Attention sinks and the last tokens (Xiao et al., ICLR 2024)."""
    positions = torch.arange(state.keys.shape[2], device=state.keys.device)
    return evict(state, positions.expand_as(state.log_mass), budget)


def random(state: LayerState, budget: torch.LongTensor) -> Slots:
    """Any tokens, by torch's generator."""
    return evict(state, torch.rand_like(state.log_mass, dtype=torch.float32), budget)


def key_norm(state: LayerState, budget: torch.LongTensor) -> Slots:
    """The tokens of the smallest keys (Devoto et al., "A Simple and Effective L2 Norm-Based Strategy", EMNLP 2024)."""
    return evict(state, -state.keys.float().norm(dim=-1), budget)


def keydiff(state: LayerState, budget: torch.LongTensor) -> Slots:
    """The tokens whose keys are least like the mean key (Park et al., "KeyDiff", 2025, section 3)."""
    keys = F.normalize(state.keys.float(), dim=-1) * state.valid[..., None]
    anchor = F.normalize(keys.sum(dim=2, keepdim=True), dim=-1)  # (batch, heads, 1, head_dim)
    return evict(state, -(keys * anchor).sum(dim=-1), budget)


def snapkv(state: LayerState, budget: torch.LongTensor, kernel_size: int = 5) -> Slots:
    """The tokens that the last queries look at, and their neighbours (Li et al., "SnapKV", NeurIPS 2024)."""
    pooled = F.avg_pool1d(importance(state), kernel_size, stride=1, padding=kernel_size // 2)  # (batch, heads, tokens)
    return evict(state, pooled, budget)


def expected_attention(state: LayerState, budget: torch.LongTensor) -> Slots:
    """
    The tokens of the largest expected contribution |v| E[exp(q k)] for Gaussian queries (Devoto et al., "Expected
    Attention", 2025), whose mean and covariance are those of the last queries, with their positions.
    """
    # (batch, 1, queries, 1): 0 for the queries of padding
    weights = state.valid[:, :1, -state.queries.shape[2] :, None].float()
    queries = state.queries.float()
    count = weights.sum(dim=2, keepdim=True).clamp_min(1)
    mean = (queries * weights).sum(dim=2, keepdim=True) / count  # (batch, num_heads, 1, head_dim)
    centred = (queries - mean) * weights
    covariance = centred.transpose(2, 3) @ centred / count  # (batch, num_heads, head_dim, head_dim)
    # (batch, heads, groups, 1 or head_dim, head_dim)
    mean, covariance = (part.unflatten(1, (state.keys.shape[1], -1)) for part in (mean, covariance))
    keys = state.keys.float()[:, :, None]  # (batch, heads, 1, tokens, head_dim)
    # (batch, heads, groups, tokens): log E[exp(q k)] of a Gaussian q
    scores = (keys * mean).sum(dim=-1) + (keys @ covariance * keys).sum(dim=-1) / 2 + state.log_mass[:, :, None]
    attention = scores.softmax(dim=-1).mean(dim=2)  # (batch, heads, tokens)
    return evict(state, attention * state.values.float().norm(dim=-1), budget)


def adjacent(state: LayerState, budget: torch.LongTensor) -> Slots:
    """Merges runs of neighbours into their mean key and value, with the mass of all of them."""
    valid, protected = state.valid, state.protected
    between = valid & ~protected
    # (batch, heads, 1)
    num_runs = torch.minimum(budget[:, None] - protected.sum(dim=-1), between.sum(dim=-1))[..., None]
    # (batch, heads, tokens): the run of each token, as even in length as can be
    run = (between.cumsum(dim=-1) - 1) * num_runs // between.sum(dim=-1, keepdim=True).clamp_min(1)
    starts = protected | (between & (F.pad(run, (1, 0), value=-1)[..., :-1] != run))
    num_slots = min(int(budget.max()), valid.shape[-1])
    slot = (starts.cumsum(dim=-1) - 1).clamp(0, num_slots - 1)  # (batch, heads, tokens)
    weights = state.log_mass.float().exp() * valid
    mass = weights.new_zeros(*weights.shape[:2], num_slots).scatter_add(2, slot, weights)  # (batch, heads, slots)

    def mean(tokens: torch.Tensor) -> torch.Tensor:
        weighted = tokens.float() * weights[..., None]
        total = weighted.new_zeros(*mass.shape, tokens.shape[-1])  # (batch, heads, slots, head_dim)
        total = total.scatter_add(2, slot[..., None].expand_as(weighted), weighted)
        return (total / mass.clamp_min(torch.finfo(mass.dtype).tiny)[..., None]).to(tokens.dtype)

    log_mass = mass.log().clamp_min(EMPTY).to(state.log_mass.dtype)
    return Slots(mean(state.keys), mean(state.values), log_mass, slot.masked_fill(~valid, -1), starts)


POLICIES = {
    "window": window,
    "random": random,
    "key_norm": key_norm,
    "keydiff": keydiff,
    "snapkv": snapkv,
    "expected_attention": expected_attention,
    "adjacent": adjacent,
}

__all__ = [
    "EMPTY",
    "POLICIES",
    "LayerState",
    "Selection",
    "Slots",
    "adjacent",
    "evict",
    "expected_attention",
    "gather",
    "importance",
    "is_filled",
    "key_norm",
    "keydiff",
    "merged_values",
    "nearest_slot",
    "observed_attention",
    "protected_tokens",
    "random",
    "select",
    "snapkv",
    "window",
]
