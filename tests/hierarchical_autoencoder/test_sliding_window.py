"""`sliding_window.py`: attention in blocks equals attention under a full mask, pooling equals a loop over segments."""

import pytest
import torch
from modeling_testing import DOUBLE, EXACT, gradients, randomize_
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close
from transformers import DynamicCache, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm

from auto_compressor.hierarchical_autoencoder import sliding_window
from auto_compressor.hierarchical_autoencoder.sliding_window import (
    LearnedQueryAttention,
    RotaryEmbedding,
    SlidingWindowTransformer,
    segment_softmax,
)


attentions = pytest.mark.parametrize("attention", ["eager", "sdpa"])
windows = pytest.mark.parametrize("window", [0, 1, 3, 8])


@pytest.fixture(autouse=True)
def all_in_float64(monkeypatch):
    """Llama's norms and the softmax of its eager attention too, which are in float32 whatever comes in."""
    softmax = F.softmax

    def norm(self, hidden_states):
        return F.rms_norm(hidden_states, hidden_states.shape[-1:], self.weight, self.variance_epsilon)

    monkeypatch.setattr(LlamaRMSNorm, "forward", norm)
    monkeypatch.setattr(F, "softmax", lambda scores, dim, dtype: softmax(scores, dim=dim))


class DenseTransformer(nn.Module):
    """Llama layers under a mask of every pair of positions."""

    def __init__(self, config, num_layers, window):
        super().__init__()
        self.window = window
        self.layers = nn.ModuleList(LlamaDecoderLayer(config, index) for index in range(num_layers))
        self.rotary_emb = RotaryEmbedding(config)

    def sees(self, groups, query, key):
        return 0 <= query - key <= self.window and groups[query] == groups[key]

    def forward(self, hidden_states, group_ids, position_ids):
        places = range(group_ids.shape[1])
        visible = [[[[self.sees(row, q, k) for k in places] for q in places]] for row in group_ids.tolist()]
        mask = torch.zeros(1, dtype=hidden_states.dtype).masked_fill(~torch.tensor(visible), -torch.inf)
        rotations = self.rotary_emb(hidden_states, position_ids)
        for layer in self.layers:
            hidden_states = layer(hidden_states, attention_mask=mask, position_embeddings=rotations)
        return hidden_states


def make_transformer(window, attention="sdpa", num_layers=2, cls=SlidingWindowTransformer):
    """Two key heads for four query heads, and random weights."""
    sizes = {"hidden_size": 16, "intermediate_size": 20, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(**sizes, vocab_size=8, max_position_embeddings=64)
    config._attn_implementation = attention
    return randomize_(cls(config, num_layers, window)).double().eval()


def make_inputs(length):
    """Rows: all one group, padded with group 0, two groups in turns at random, and segments padded with -1."""
    groups = torch.ones(4, length, dtype=torch.long)
    groups[1, length // 2 + 1 :] = 0
    groups[2] = torch.randint(2, (length,))
    groups[3] = torch.arange(length) // 4
    groups[3, 3 * length // 4 + 1 :] = -1
    positions = torch.arange(length).expand(4, -1).clone()
    positions[3] %= 4
    return torch.randn(4, length, 16).double(), groups, positions


def around_blocks(window):
    block = max(window, 1)
    return sorted({1, *(count * block + more for count in (1, 2, 3) for more in (-1, 0, 1))} - {0})


# Windows


@attentions
@windows
def test_equals_dense_attention(window, attention):
    """In values and gradients, padding that is seen by itself included, but not what stands for nothing (-1)."""
    model = make_transformer(window, attention)
    dense = make_transformer(window, attention, cls=DenseTransformer)
    for length in around_blocks(window):
        hidden_states, groups, positions = make_inputs(length)
        weights, results = torch.randn_like(hidden_states) * (groups >= 0)[..., None], []
        for transformer in (model, dense):
            inputs = hidden_states.clone().requires_grad_()
            outputs = transformer(inputs, groups, positions)
            found = gradients(transformer, (outputs * weights).sum())
            results.append((outputs[groups >= 0], inputs.grad, found))
        assert_close(*results, **DOUBLE)


def assert_causal(model, length):
    """Noise from a position on leaves everything before it as it is, to the last bit."""
    hidden_states, groups, positions = make_inputs(length)
    expected = model(hidden_states, groups, positions)
    for start in range(length):
        changed = hidden_states.clone()
        changed[:, start:] = 10 * torch.randn_like(changed[:, start:])
        outputs = model(changed, groups, positions)
        assert_close(outputs[:, :start], expected[:, :start], **EXACT)
        assert not torch.equal(outputs[:, start:], expected[:, start:])


@attentions
@windows
@torch.no_grad()
def test_causality(window, attention):
    assert_causal(make_transformer(window, attention), 13)


@attentions
@torch.no_grad()
def test_the_check_of_causality_sees_a_look_ahead(attention, monkeypatch):
    mask = sliding_window.sliding_window_mask
    monkeypatch.setattr(sliding_window, "sliding_window_mask", lambda *inputs: torch.zeros_like(mask(*inputs)))
    with pytest.raises(AssertionError):
        assert_causal(make_transformer(3, attention), 13)


@windows
def test_blocks_grow_with_the_length_only(window):
    block = max(window, 1)
    for length in around_blocks(window):
        mask = sliding_window.sliding_window_mask(torch.ones(2, length).long(), window, torch.float32)
        assert mask.shape == (2 * -(-length // block), 1, block, 2 * block)


@attentions
@windows
@pytest.mark.parametrize("num_layers", [1, 2])
@torch.no_grad()
def test_exactly_the_window_is_seen(num_layers, window, attention):
    model, length = make_transformer(window, attention, num_layers), 19
    hidden_states, positions = torch.randn(1, length, 16).double(), torch.arange(length)
    groups = torch.zeros(1, length, dtype=torch.long)
    expected = model(hidden_states, groups, positions[None])
    for place in range(length):
        changed = hidden_states.clone()
        changed[:, place] = torch.randn(16)
        differs = (model(changed, groups, positions[None]) != expected)[0].any(dim=-1)
        assert torch.equal(differs, (positions >= place) & (positions <= place + num_layers * window))


@attentions
@torch.no_grad()
def test_groups_and_rows_do_not_see_each_other(attention):
    model, (hidden_states, groups, positions) = make_transformer(8, attention), make_inputs(13)
    expected = model(hidden_states, groups, positions)
    for row, group in ((1, 1), (2, 0), (3, 2)):
        changed, own = hidden_states.clone(), torch.zeros_like(groups, dtype=torch.bool)
        own[row] = groups[row] == group
        changed[own] = torch.randn_like(changed[own])
        assert_close(model(changed, groups, positions)[~own], expected[~own], **EXACT)


@attentions
@torch.no_grad()
def test_steps_equal_the_full_pass(attention):
    """As many as the window holds."""
    model, hidden_states, cache = make_transformer(8, attention), torch.randn(3, 9, 16).double(), DynamicCache()
    steps = [model.step(vectors, cache, index) for index, vectors in enumerate(hidden_states.split(1, dim=1))]
    expected = model(hidden_states, torch.ones(3, 9).long(), torch.arange(9)[None])
    assert_close(torch.cat(steps, dim=1), expected, **DOUBLE)


@attentions
@windows
def test_no_positions(window, attention):
    empty = torch.zeros(2, 0, dtype=torch.long)
    assert make_transformer(window, attention)(torch.zeros(2, 0, 16).double(), empty, empty).shape == (2, 0, 16)


# Pooling


def make_pooler(num_queries):
    return randomize_(LearnedQueryAttention(12, 3, num_queries, max_positions=6)).double()


def make_segments():
    """Rows with three segments, one, and none; behind them padding, which has a place all the same."""
    lengths = [[3, 1, 5], [6], []]
    patch_ids, positions = torch.full((3, 11), -1), torch.arange(33).view(3, 11) % 6
    for row, counts in enumerate(lengths):
        patch_ids[row, : sum(counts)] = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts).long())
        positions[row, : sum(counts)] = torch.tensor([place for count in counts for place in range(count)])
    return torch.randn(3, 11, 12).double(), patch_ids, positions


def pool_by_loops(pooler, hidden_states, patch_ids, positions, num_patches):
    pooled = torch.zeros(len(patch_ids), num_patches, hidden_states.shape[-1]).double()
    for row, patch in {(row, patch) for row, ids in enumerate(patch_ids.tolist()) for patch in ids if patch >= 0}:
        where = patch_ids[row] == patch
        own = pooler.norm(hidden_states[row, where]) * pooler.positions[positions[row, where]]
        keys, values = (proj(own).unflatten(-1, (-1, pooler.head_dim)) for proj in (pooler.k_proj, pooler.v_proj))
        found = []
        for query in pooler.queries:
            scores = (keys * query).sum(dim=-1) / pooler.head_dim**0.5  # (positions, heads)
            found.append((scores.softmax(dim=0)[..., None] * values).sum(dim=0).flatten())
        pooled[row, patch] = pooler.o_proj(torch.cat(found))
    return pooled


@pytest.mark.parametrize("num_queries", [1, 3])
def test_pooling_equals_loops(num_queries):
    """In values and gradients; a row may have less segments than the others, and all less than `num_patches`."""
    pooler, (hidden_states, patch_ids, positions) = make_pooler(num_queries), make_segments()
    weights, results = torch.randn(3, 4, 12).double(), []
    for pool in (pooler, lambda *inputs: pool_by_loops(pooler, *inputs)):
        inputs = hidden_states.clone().requires_grad_()
        pooled = pool(inputs, patch_ids, positions, 4)
        results.append((pooled, gradients(pooler, (pooled * weights).sum()), inputs.grad))
    assert_close(*results, **DOUBLE)
    pooled, _, gradient = results[0]
    assert (pooled[0, 3:] == 0).all() and (pooled[1, 1:] == 0).all() and (pooled[2] == 0).all()
    assert torch.equal((gradient != 0).any(dim=-1), patch_ids >= 0)


@torch.no_grad()
def test_rows_and_segments_are_pooled_alone():
    """Noise in one segment, or in the padding, changes nothing else, to the last bit."""
    pooler, (hidden_states, patch_ids, positions) = make_pooler(2), make_segments()
    expected = pooler(hidden_states, patch_ids, positions, 3)
    for row, patch in ((0, 0), (0, 1), (0, 2), (1, 0), (0, -1), (1, -1), (2, -1)):
        changed, where = hidden_states.clone(), patch_ids[row] == patch
        changed[row, where] = 100 * torch.randn_like(changed[row, where])
        differs = (pooler(changed, patch_ids, positions, 3) != expected).any(dim=-1)
        assert differs.nonzero().tolist() == ([[row, patch]] if patch >= 0 else [])


def test_nothing_to_pool():
    pooler, nothing = make_pooler(2), torch.zeros(2, 0, dtype=torch.long)
    assert pooler(torch.zeros(2, 0, 12).double(), nothing, nothing, 0).shape == (2, 0, 12)
    padding = torch.full((2, 3), -1)
    assert pooler(torch.randn(2, 3, 12).double(), padding, padding + 1, 0).shape == (2, 0, 12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_segment_softmax(dtype):
    """Sums to one in every segment that has positions, however large the scores; equals softmax."""
    index, scores = torch.tensor([4, 0, 0, 2, 4, 0, 4]), 300 * torch.randn(7, 2, 3).to(dtype)
    weights = segment_softmax(scores, index, 6)
    assert weights.dtype == dtype
    for segment in index.unique():
        own = weights[index == segment].double()
        assert_close(own.sum(dim=0), torch.ones(2, 3).double(), rtol=0, atol=4 * torch.finfo(dtype).eps)
        assert_close(own, scores[index == segment].double().softmax(dim=0), rtol=1e-2, atol=torch.finfo(dtype).eps)
