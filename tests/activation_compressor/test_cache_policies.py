"""Selection, merging and the baselines, against loops over rows, heads and tokens."""

import math
from dataclasses import replace

import pytest
import torch
from activation_testing import random_state, row_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cosine_similarity
from torch.testing import assert_close

from auto_compressor.activation_compressor.cache_policies import (
    EMPTY,
    POLICIES,
    evict,
    expected_attention,
    importance,
    merged_values,
    nearest_slot,
    observed_attention,
    protected_tokens,
    select,
)


HEADS = [(row, head) for row in range(2) for head in range(2)]
DETERMINISTIC = [name for name in POLICIES if name != "random"]
BUDGET = torch.tensor([9, 8])


def looped_attention(state, row, head):
    """Attention of every query of a head to every token, by its definition."""
    groups = state.queries.shape[1] // state.keys.shape[1]
    tokens, queries = state.keys.shape[2], state.queries.shape[2]
    found = torch.zeros(groups, queries, tokens)
    for group in range(groups):
        for index in range(queries):
            position = tokens - queries + index
            seen = [t for t in range(position + 1) if state.valid[row, head, t]]
            if position not in seen:
                continue
            query = state.queries[row, head * groups + group, index]
            scores = [state.keys[row, head, t] @ query + state.log_mass[row, head, t] for t in seen]
            found[group, index, seen] = torch.stack(scores).softmax(dim=0)
    return found


@pytest.mark.parametrize("padding", [(0, 3), (0, 17)])
def test_importance(padding):
    state = random_state(padding=padding)
    attention = observed_attention(state).unflatten(2, (2, 5))
    for row, head in HEADS:
        expected = looped_attention(state, row, head)
        assert_close(attention[row, head], expected)
        num_queries = int(state.valid[row, head, -5:].sum())
        assert_close(importance(state)[row, head], expected.sum(dim=(0, 1)) / (2 * num_queries))


def test_importance_of_nothing_is_zero():
    state = random_state(padding=(0, 20))
    assert torch.equal(importance(state)[1], torch.zeros(2, 20))
    assert_close(importance(state).sum(dim=-1)[0], torch.ones(2))


def test_protected_tokens():
    valid = torch.tensor([[[False, False, True, True, True, True, True, False, True]]])
    assert protected_tokens(valid, 2, 1)[0, 0].tolist() == [False] * 2 + [True] * 2 + [False] * 4 + [True]


def test_select():
    state = random_state()
    scores = torch.randn(2, 2, 20)
    selection = select(state, scores, BUDGET)
    for row, head in HEADS:
        protected = state.protected[row, head].nonzero()[:, 0].tolist()
        others = [t for t in range(20) if state.valid[row, head, t] and t not in protected]
        others.sort(key=lambda t: -scores[row, head, t])
        expected = sorted(protected + others[: BUDGET[row] - len(protected)])
        filled = selection.filled[row, head]
        assert selection.indices[row, head][filled].tolist() == expected
        assert filled.tolist() == [True] * len(expected) + [False] * (9 - len(expected))
        slots = {token: slot for slot, token in enumerate(expected)}
        assert selection.assignment[row, head].tolist() == [slots.get(t, -1) for t in range(20)]


def test_evict_keeps_tokens_as_they_are():
    state = random_state()
    scores = torch.randn(2, 2, 20)
    slots, selection = evict(state, scores, BUDGET), select(state, scores, BUDGET)
    for row, head in HEADS:
        tokens = selection.indices[row, head, : BUDGET[row]]
        assert torch.equal(slots.keys[row, head, : BUDGET[row]], state.keys[row, head, tokens])
        assert torch.equal(slots.values[row, head, : BUDGET[row]], state.values[row, head, tokens])
        assert torch.equal(slots.log_mass[row, head, : BUDGET[row]], state.log_mass[row, head, tokens])
        assert (slots.log_mass[row, head, BUDGET[row] :] == EMPTY).all()


def test_nearest_slot(monkeypatch):
    state = random_state()
    selection = select(state, torch.randn(2, 2, 20), BUDGET)
    open_slots = selection.filled & ~selection.gather(state.protected)
    found = nearest_slot(state, selection, open_slots)
    for row, head in HEADS:
        slots = open_slots[row, head].nonzero()[:, 0].tolist()
        for token in range(20):
            keys = state.keys[row, head, selection.indices[row, head, slots]]
            similarities = cosine_similarity(state.keys[row, head, token][None], keys)
            assert_close(found[0][row, head, token], similarities.max())
            assert found[1][row, head, token] == slots[int(similarities.argmax())]
    monkeypatch.setattr("auto_compressor.activation_compressor.cache_policies.KEYS_PER_CHUNK", 3)
    assert_close(nearest_slot(state, selection, open_slots), found)


def test_merged_values():
    state = random_state()
    selection = select(state, torch.randn(2, 2, 20), BUDGET)
    _, slot = nearest_slot(state, selection, selection.filled)
    shares = torch.rand(2, 2, 20) * (state.valid & ~selection.kept)
    shares[..., 4:12] = 0
    means, growth = merged_values(state.values, selection, slot, shares)
    for row, head in HEADS:
        for index in range(int(BUDGET[row])):
            members = [t for t in range(20) if slot[row, head, t] == index and shares[row, head, t] > 0]
            token = selection.indices[row, head, index]
            weights = torch.tensor([1.0, *(shares[row, head, t] for t in members)])
            values = state.values[row, head, [token, *members]]
            assert_close(means[row, head, index], (weights[:, None] * values).sum(dim=0) / weights.sum())
            assert_close(growth[row, head, index], weights.sum().log())
            if not members:
                assert torch.equal(means[row, head, index], values[0]) and growth[row, head, index] == 0


def test_window():
    slots = POLICIES["window"](random_state(), BUDGET)
    assert slots.kept[0, 0].nonzero()[:, 0].tolist() == [0, 1, *range(13, 20)]
    assert slots.kept[1, 0].nonzero()[:, 0].tolist() == [3, 4, *range(14, 20)]


def test_random_is_random():
    torch.manual_seed(0)
    first, second = (POLICIES["random"](random_state(), BUDGET) for _ in range(2))
    assert not torch.equal(first.kept, second.kept)
    torch.manual_seed(0)
    assert torch.equal(POLICIES["random"](random_state(), BUDGET).kept, first.kept)


def looped_scores(name, state, row, head):
    valid = state.valid[row, head]
    keys, values = state.keys[row, head], state.values[row, head]
    if name == "key_norm":
        return -keys.norm(dim=-1)
    if name == "keydiff":
        directions = keys / keys.norm(dim=-1, keepdim=True)
        return -cosine_similarity(keys, directions[valid].mean(dim=0)[None])
    if name == "snapkv":
        attention = looped_attention(state, row, head)
        mean = attention.mean(dim=(0, 1)).tolist()
        return torch.tensor([sum(mean[max(0, t - 2) : t + 3]) / 5 for t in range(len(mean))])
    scores = []
    for group in range(2):
        queries = state.queries[row, 2 * head + group]
        centred = queries - queries.mean(dim=0)
        covariance = centred.T @ centred / len(queries)
        logits = [
            k @ queries.mean(dim=0) + k @ covariance @ k / 2 + b
            for k, b in zip(keys, state.log_mass[row, head], strict=True)
        ]
        scores.append(torch.stack(logits).masked_fill(~valid, -math.inf).softmax(dim=0))
    return torch.stack(scores).mean(dim=0) * values.norm(dim=-1)


@pytest.mark.parametrize("name", ["key_norm", "keydiff", "snapkv", "expected_attention"])
def test_scores(name):
    state = random_state()
    kept = POLICIES[name](state, BUDGET).kept
    for row, head in HEADS:
        scores = torch.full((2, 2, 20), -math.inf)
        scores[row, head] = looped_scores(name, state, row, head)
        assert torch.equal(kept[row, head], select(state, scores, BUDGET).kept[row, head])


def test_expected_attention_ignores_padded_queries():
    state = random_state(queries=12, padding=(0, 10), sinks=0, recent=0)
    changed = state.queries.clone()
    changed[1, :, :2] += 5
    budget = torch.tensor([6, 5])
    kept = expected_attention(state, budget).kept
    assert torch.equal(expected_attention(replace(state, queries=changed), budget).kept, kept)
    changed[1, :, 2] += 5
    assert not torch.equal(expected_attention(replace(state, queries=changed), budget).kept, kept)


def test_adjacent():
    state = random_state()
    slots = POLICIES["adjacent"](state, BUDGET)
    for row, head in HEADS:
        start, budget = (0, 3)[row], int(BUDGET[row])
        between = list(range(start + 2, 16))
        num_runs = budget - 6
        runs = [[t for i, t in enumerate(between) if i * num_runs // len(between) == run] for run in range(num_runs)]
        groups = [[start], [start + 1], *runs, [16], [17], [18], [19]]
        for index, group in enumerate(groups):
            mass = state.log_mass[row, head, group].exp()
            for found, tokens in ((slots.keys, state.keys), (slots.values, state.values)):
                expected = (mass[:, None] * tokens[row, head, group]).sum(dim=0) / mass.sum()
                assert_close(found[row, head, index], expected, rtol=1e-4, atol=1e-5)
            assert_close(slots.log_mass[row, head, index], mass.sum().log())
            assert (slots.assignment[row, head, group] == index).all()
        assert (slots.log_mass[row, head, len(groups) :] == EMPTY).all()
    assert (slots.assignment[1, :, :3] == -1).all()


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_rows_and_padding_do_not_matter(name):
    state = random_state()
    slots = POLICIES[name](state, BUDGET)
    for row, padding in enumerate((0, 3)):
        alone = POLICIES[name](row_of(state, row, padding), BUDGET[row : row + 1])
        count = int(BUDGET[row])
        for found in ("keys", "values", "log_mass"):
            assert_close(getattr(slots, found)[row, :, :count], getattr(alone, found)[0])
        assert torch.equal(slots.assignment[row, :, padding:], alone.assignment[0])
        assert torch.equal(slots.kept[row, :, padding:], alone.kept[0])


@pytest.mark.parametrize("name", POLICIES)
@settings(deadline=None, max_examples=15)
@given(
    tokens=st.integers(8, 24),
    padding=st.integers(0, 8),
    budgets=st.tuples(st.integers(7, 30), st.integers(7, 30)),
    seed=st.integers(0, 99),
)
def test_what_every_policy_keeps(name, tokens, padding, budgets, seed):
    state = random_state(tokens=tokens, padding=(0, min(padding, tokens)), seed=seed)
    budget = torch.tensor(budgets)
    slots = POLICIES[name](state, budget)
    filled = slots.log_mass > EMPTY / 2
    expected = torch.minimum(budget, state.valid[:, 0].sum(dim=-1))
    assert torch.equal(filled.sum(dim=-1), expected[:, None].expand(-1, 2))
    assert slots.keys.shape[2] == min(tokens, max(budgets))
    assert all(part.isfinite().all() for part in (slots.keys, slots.values, slots.log_mass))
    assert slots.kept[state.protected].all() and not slots.kept[~state.valid].any()
    assert (slots.assignment[~state.valid] == -1).all() and (slots.assignment[slots.kept] >= 0).all()
    for row, head in HEADS:
        tokens_of = [t for t in range(tokens) if state.protected[row, head, t] or expected[row] < budget[row]]
        tokens_of = [t for t in tokens_of if state.valid[row, head, t]]
        index = slots.assignment[row, head, tokens_of]
        assert_close(slots.keys[row, head, index], state.keys[row, head, tokens_of])
        assert_close(slots.values[row, head, index], state.values[row, head, tokens_of])
        assert_close(slots.log_mass[row, head, index], state.log_mass[row, head, tokens_of])
