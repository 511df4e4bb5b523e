"""Attention within windows and segments: Llama layers that see a few positions back, and pooling of segments."""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaConfig,
    LlamaDecoderLayer,
    LlamaRotaryEmbedding,
    apply_rotary_pos_emb,
    eager_attention_forward,
)

from .cache_names import as_cache, takes_cache


def sliding_window_mask(group_ids: torch.LongTensor, window: int, dtype: torch.dtype) -> torch.Tensor:
    """
    The mask of [`SlidingWindowAttention`]: a position sees itself and the `window` positions before it, as far as they
    are of its own group.

    Args:
        group_ids (`torch.LongTensor` of shape `(batch_size, length)`): Groups that do not see each other; padding is
            a group of its own.
        window (`int`): Positions before each one that it sees.
        dtype (`torch.dtype`): dtype of the mask, which is added to attention scores.

    Returns:
        `torch.Tensor` of shape `(batch_size * blocks, 1, block, 2 * block)`; a block has `max(window, 1)` positions.
    """
    block = max(window, 1)
    queries = torch.arange(block, device=group_ids.device)[:, None]
    distance = block + queries - torch.arange(2 * block, device=group_ids.device)  # (block, 2 * block)
    near = (distance >= 0) & (distance <= window)
    queries, keys = fold_blocks(group_ids[..., None] + 1, block)  # what fills the blocks is group 0
    # queries: (batch * blocks, block, 1), keys: (batch * blocks, 2 * block, 1)
    visible = near & (queries == keys.transpose(1, 2))  # (batch * blocks, block, 2 * block)
    return torch.zeros_like(visible, dtype=dtype).masked_fill(~visible, torch.finfo(dtype).min)[:, None]


def fold_blocks(tensor: torch.Tensor, block: int) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Cuts `(batch, ..., length, size)` into blocks, `(batch * blocks, ..., block, size)`, and into blocks with those
    before them, `(batch * blocks, ..., 2 * block, size)`. What is missing in front and at the end is 0.
    """
    length, size = tensor.shape[-2:]
    missing = -length % block
    padded = F.pad(tensor, (0, 0, block, missing))  # (batch, ..., block + length + missing, size)
    blocks = padded.unflatten(-2, (-1, block)).movedim(-3, 1)  # (batch, 1 + blocks, ..., block, size)
    pairs = torch.cat([blocks[:, :-1], blocks[:, 1:]], dim=-2)  # (batch, blocks, ..., 2 * block, size)
    return blocks[:, 1:].flatten(0, 1), pairs.flatten(0, 1)


class SlidingWindowAttention(LlamaAttention):
    """
    Llama's attention of every position to itself and the `window` positions before it (Beltagy et al., arXiv
    2004.05150, section 3.1). Time and memory grow with length x window: queries attend in blocks, each to its own
    block and the one before.
    """

    @takes_cache
    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        cache: Cache | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, None]:
        """
        Args:
            hidden_states (`torch.Tensor` of shape `(batch_size, length, hidden_size)`)
            position_embeddings: Cosine and sine, each `(batch_size, length, head_dim)`.
            attention_mask: [`sliding_window_mask`]. Not needed with a cache.
            cache (`Cache`, *optional*): Then one position at a time is read, which sees all of the cache:
                who calls keeps it within the window.
        """
        batch_size, length, _ = hidden_states.shape
        states = (proj(hidden_states) for proj in (self.q_proj, self.k_proj, self.v_proj))
        query, key, value = (state.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for state in states)
        query, key = apply_rotary_pos_emb(query, key, *position_embeddings)  # (batch, heads of each, length, head_dim)
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)  # (batch, kv_heads, seen + 1, head_dim)
        else:
            block = attention_mask.shape[-2]
            # query: (batch * blocks, heads, block, head_dim); key, value: 2 * block in place of block
            query, (_, key), (_, value) = (
                fold_blocks(query, block)[0],
                fold_blocks(key, block),
                fold_blocks(value, block),
            )
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        dropout = self.attention_dropout if self.training else 0.0
        output, _ = attend(self, query, key, value, attention_mask, scaling=self.scaling, dropout=dropout)
        # (batch * blocks, block, heads, head_dim), and a last block that may be longer than the text
        output = output.reshape(batch_size, -1, self.config.num_attention_heads * self.head_dim)[:, :length]
        return self.o_proj(output), None


class SlidingWindowLayer(LlamaDecoderLayer):
    """A Llama layer with [`SlidingWindowAttention`], whose norms keep float64."""

    def __init__(self, config: LlamaConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        self.self_attn = SlidingWindowAttention(config, layer_idx)
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)


class RotaryEmbedding(LlamaRotaryEmbedding):
    """Llama's rotary embedding, whose angles are float64 where the states are: Llama takes them in float32."""

    @torch.no_grad()
    def forward(self, x: torch.Tensor, position_ids: torch.LongTensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosine and sine in the dtype of `x`, each `(batch_size, length, head_dim)`."""
        if x.dtype != torch.float64:
            return super().forward(x, position_ids)
        angles = position_ids[..., None] * self.inv_freq.to(x)  # (batch, length, head_dim / 2)
        angles = torch.cat([angles, angles], dim=-1)  # (batch, length, head_dim)
        return angles.cos() * self.attention_scaling, angles.sin() * self.attention_scaling


class SlidingWindowTransformer(nn.Module):
    """Layers of [`SlidingWindowAttention`] over vectors, without a norm at the end.

    Args:
        config (`LlamaConfig`): Sizes of the layers.
        num_layers (`int`): How many there are.
        window (`int`): Positions before each one that it sees in every layer.
    """

    def __init__(self, config: LlamaConfig, num_layers: int, window: int):
        super().__init__()
        self.window = window
        self.layers = nn.ModuleList(SlidingWindowLayer(config, index) for index in range(num_layers))
        self.rotary_emb = RotaryEmbedding(config)

    def forward(
        self, hidden_states: torch.Tensor, group_ids: torch.LongTensor, position_ids: torch.LongTensor
    ) -> torch.Tensor:
        """
        Args:
            hidden_states (`torch.Tensor` of shape `(batch_size, length, hidden_size)`)
            group_ids (`torch.LongTensor` of shape `(batch_size, length)`): Groups that do not see each other.
            position_ids (`torch.LongTensor` of shape `(batch_size or 1, length)`)

        Returns:
            `torch.Tensor` of shape `(batch_size, length, hidden_size)`.
        """
        if hidden_states.shape[1] == 0:  # no attention takes an empty batch of blocks
            return hidden_states
        position_embeddings = self.rotary_emb(hidden_states, position_ids)
        mask = sliding_window_mask(group_ids, self.window, hidden_states.dtype)
        for layer in self.layers:
            hidden_states = layer(hidden_states, attention_mask=mask, position_embeddings=position_embeddings)
        return hidden_states

    def step(self, hidden_states: torch.Tensor, cache: Cache, position: int) -> torch.Tensor:
        """One position `(batch_size, 1, hidden_size)` behind those of the cache, which sees all of them."""
        position_ids = torch.full((1, 1), position, device=hidden_states.device)  # (1, 1)
        position_embeddings = self.rotary_emb(hidden_states, position_ids)
        for layer in self.layers:
            hidden_states = layer(hidden_states, **as_cache(cache), position_embeddings=position_embeddings)
        return hidden_states


class LearnedQueryAttention(nn.Module):
    """
    Pools every segment into one vector: learned queries attend to the positions of the segment, of any number, by a
    softmax over segments that scatters and needs no mask (as the cross-attention pooling of BLT, arXiv 2412.09871,
    section 3.2.2). States are multiplied by a learned vector of their place in the segment, so that their sum keeps
    the order (the binding of Plate, "Holographic Reduced Representations", 1995, by elementwise products).

    Args:
        hidden_size (`int`), num_attention_heads (`int`): Sizes of the attention.
        num_queries (`int`): Learned queries per segment; what they find is joined and projected.
        max_positions (`int`): Positions of the longest segment.
    """

    def __init__(self, hidden_size: int, num_attention_heads: int, num_queries: int, max_positions: int):
        super().__init__()
        self.head_dim = hidden_size // num_attention_heads
        self.queries = nn.Parameter(torch.empty(num_queries, num_attention_heads, self.head_dim))
        self.positions = nn.Parameter(torch.empty(max_positions, hidden_size))
        self.norm = nn.RMSNorm(hidden_size)
        self.k_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.v_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.o_proj = nn.Linear(num_queries * hidden_size, hidden_size, bias=False)

    def forward(
        self,
        hidden_states: torch.Tensor,
        patch_ids: torch.LongTensor,
        positions: torch.LongTensor,
        num_patches: int,
    ) -> torch.Tensor:
        """
        Args:
            hidden_states (`torch.Tensor` of shape `(batch_size, length, hidden_size)`)
            patch_ids (`torch.LongTensor` of shape `(batch_size, length)`): Segment of each position, -1 for none.
            positions (`torch.LongTensor` of shape `(batch_size, length)`): Place within the segment.
            num_patches (`int`): Segments of the longest row.

        Returns:
            `torch.Tensor` of shape `(batch_size, num_patches, hidden_size)`, zeros where a row has no such segment.
        """
        batch_size = hidden_states.shape[0]
        hidden_states = self.norm(hidden_states) * self.positions[positions]
        # (batch, length, heads, head_dim)
        key, value = (proj(hidden_states).unflatten(-1, (-1, self.head_dim)) for proj in (self.k_proj, self.v_proj))
        # (batch, length, queries, heads)
        scores = torch.einsum("blhd,qhd->blqh", key, self.queries) * self.head_dim**-0.5
        # One more segment per row takes the padding.
        rows = torch.arange(batch_size, device=patch_ids.device)[:, None] * (num_patches + 1)
        index = (rows + patch_ids % (num_patches + 1)).flatten()  # (batch * length,)
        size = batch_size * (num_patches + 1)
        weights = segment_softmax(scores.flatten(0, 1), index, size)  # (batch * length, queries, heads)
        found = weights[..., None] * value.flatten(0, 1)[:, None]  # (batch * length, queries, heads, head_dim)
        # (batch * (patches + 1), queries, heads, head_dim)
        pooled = found.new_zeros(size, *found.shape[1:]).index_add(0, index, found)
        return self.o_proj(pooled.flatten(1)).view(batch_size, num_patches + 1, -1)[:, :-1]


def segment_softmax(scores: torch.Tensor, index: torch.LongTensor, size: int) -> torch.Tensor:
    """Softmax of `(length, ...)` over the positions with the same `index`, which is `(length,)` and below `size`."""
    dtype = scores.dtype
    scores = scores.to(torch.promote_types(dtype, torch.float32))
    flat = index.view(-1, *[1] * (scores.ndim - 1)).expand_as(scores)
    # The highest of each segment, for a softmax that cannot overflow; it has no gradient.
    highest = (
        scores.detach()
        .new_full((size, *scores.shape[1:]), -torch.inf)
        .scatter_reduce(0, flat, scores.detach(), "amax")
    )  # (size, ...)
    exps = (scores - highest[index]).exp()  # (length, ...)
    sums = exps.new_zeros(size, *scores.shape[1:]).index_add(0, index, exps)  # (size, ...)
    return (exps / sums[index]).to(dtype)


__all__ = [
    "LearnedQueryAttention",
    "SlidingWindowAttention",
    "SlidingWindowTransformer",
    "sliding_window_mask",
]
