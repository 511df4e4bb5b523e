"""The activation compressor: its rule against loops, its promises against the plain model, its training and files."""

import copy
import json
import math

import pytest
import torch
from activation_testing import (
    SMALL,
    continue_from,
    each_base,
    every_base,
    random_state,
    tiny_base,
    tiny_compressor,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from modeling_testing import (
    CLOSE,
    EXACT,
    gradients,
    pad_rows,
    random_ids,
    run_without_package,
    uninitialised_memory_is_nan,
)
from safetensors.torch import load_file, save_file
from torch.nn.functional import cosine_similarity, cross_entropy, kl_div, normalize
from torch.testing import assert_close
from transformers import AutoConfig, AutoModel

from auto_compressor import POLICIES, ActivationCompressor, ActivationCompressorConfig, MergingCache, merging_attention
from auto_compressor.activation_compressor import modeling_activation_compressor
from auto_compressor.activation_compressor.cache_policies import EMPTY, importance
from auto_compressor.activation_compressor.losses import contrastive_loss
from auto_compressor.activation_compressor.modeling_activation_compressor import (
    LEAST_ATTENTION,
    THRESHOLD_TEMPERATURE,
    follow_threshold,
    frozen,
    unit_rms,
)
from auto_compressor.cache_names import as_cache


BUDGET = torch.tensor([12, 11])
OFF = {"use_residuals": False}


def random_compressor(perturbed=True, **fields) -> ActivationCompressor:
    """For the layers of `random_state`."""
    config = ActivationCompressorConfig(
        num_hidden_layers=1, num_key_value_heads=2, head_dim=6, num_sinks=2, recent_window=4, **fields
    )
    compressor = ActivationCompressor(config).eval()
    with torch.no_grad():
        for parameter in compressor.parameters() if perturbed else ():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(7)))
    return compressor


def looped_merge(compressor, state, row, head, budget):
    """The rule of a head, one token at a time: `[(key, value, log_mass, tokens)]`, residuals behind the sinks."""
    config, layer = compressor.config, compressor.layers["0"]
    valid = state.valid[row, head].nonzero()[:, 0].tolist()
    protected = [t for t in valid if state.protected[row, head, t]]
    log_attention = importance(state)[row, head].clamp_min(LEAST_ATTENTION).log()
    keys, values, masses = state.keys[row, head], state.values[row, head], state.log_mass[row, head]
    weight = {}
    for t in valid:
        features = [unit_rms(keys[t]), unit_rms(values[t]), (log_attention[t] - log_attention[valid].mean())[None]]
        weight[t] = log_attention[t] + torch.cat(features) @ layer.importance_weight[head]
    num_residual = int((budget - len(protected)) * config.residual_fraction) if config.use_residuals else 0
    ranked = sorted(set(valid) - set(protected), key=lambda t: -weight[t])
    pivots = ranked[: budget - num_residual - len(protected)]
    members = ranked[len(pivots) :]
    similarity = {t: torch.stack([cosine_similarity(keys[t], keys[p], dim=0) for p in pivots]) for t in members}
    joined = {t: pivots[int(similarity[t].argmax())] for t in members}

    def merged(pivot, kept_part):
        group = [t for t in members if joined[t] == pivot]
        shares = torch.stack([torch.ones(()), *((weight[t] - weight[pivot]).exp() * kept_part[t] for t in group)])
        value = (shares[:, None] * values[[pivot, *group]]).sum(dim=0) / shares.sum()
        return keys[pivot], value, masses[pivot] + shares.sum().log(), [pivot, *group]

    plain = {pivot: merged(pivot, dict.fromkeys(members, 1.0))[1] for pivot in pivots}
    log_residual = {t: (values[t] - plain[joined[t]]).norm().log() for t in members}
    gate = {}
    for t in members:
        logit = torch.stack([weight[t], log_residual[t]]) @ layer.gate_weight[head] + layer.gate_bias[head]
        gate[t] = logit.sigmoid()
    nearest = torch.stack([similarity[t].max() for t in members])
    threshold = torch.tensor(config.similarity_threshold)
    if config.adaptive_threshold:
        old = layer.threshold * config.threshold_momentum
        threshold = old + (1 - config.threshold_momentum) * nearest.sort().values[num_residual]
    scores = [
        config.residual_importance * weight[t]
        + gate[t].log()
        + log_residual[t]
        + ((threshold - s) / THRESHOLD_TEMPERATURE).sigmoid().log()
        for t, s in zip(members, nearest, strict=True)
    ]
    order = sorted(range(len(members)), key=lambda i: scores[i], reverse=True)
    residuals = sorted(members[i] for i in order[:num_residual])
    slots = [(keys[t], values[t], masses[t] + gate[t].log(), [t]) for t in residuals]
    rest = {t: 1 - gate[t] if t in residuals else torch.ones(()) for t in members}
    others = []
    for t in sorted(protected + pivots):
        others.append((keys[t], values[t], masses[t], [t]) if t in protected else merged(t, rest))
    return others[:2] + slots + others[2:], residuals


@pytest.mark.parametrize(
    "fields",
    [
        {},
        OFF,
        {"residual_fraction": 0.3, "residual_importance": 1},
        {"residual_fraction": 0.5, "residual_importance": 0},
        {"residual_fraction": 0.5, "adaptive_threshold": False, "similarity_threshold": 0.6},
        {"residual_fraction": 0.5, "adaptive_threshold": False, "similarity_threshold": -1},
        {"residual_fraction": 0.5, "threshold_momentum": 0, "similarity_threshold": -0.5},
    ],
    ids=str,
)
@pytest.mark.parametrize("seed", [0, 1])
def test_merge(fields, seed):
    compressor = random_compressor(**fields)
    state = random_state(tokens=24, seed=seed)
    with torch.no_grad():
        slots = compressor.merge(state, BUDGET)
        for row in range(2):
            for head in range(2):
                expected, residuals = looped_merge(compressor, state, row, head, int(BUDGET[row]))
                filled = (slots.log_mass[row, head] > EMPTY / 2).nonzero()[:, 0].tolist()
                assert len(filled) == len(expected) == BUDGET[row]
                for index, (key, value, log_mass, tokens) in zip(filled, expected, strict=True):
                    assert torch.equal(slots.keys[row, head, index], key)
                    assert_close(slots.values[row, head, index], value, **CLOSE)
                    assert_close(slots.log_mass[row, head, index], log_mass, **CLOSE)
                    alone = [t for t in tokens if t not in residuals or len(tokens) == 1]
                    assert (slots.assignment[row, head, alone] == index).all()
                kept = {tokens[0] for *_, tokens in expected}
                assert set(slots.kept[row, head].nonzero()[:, 0].tolist()) == kept
    assert slots.residuals == (
        slice(0, 0) if fields == OFF else slice(2, 2 + int(6 * compressor.config.residual_fraction))
    )


@settings(deadline=None, max_examples=20)
@given(
    tokens=st.integers(8, 30),
    padding=st.integers(0, 12),
    budgets=st.tuples(st.integers(7, 32), st.integers(7, 32)),
    fraction=st.sampled_from([0.0, 0.25, 0.7]),
    int8=st.booleans(),
    seed=st.integers(0, 99),
)
def test_no_attention_is_lost(tokens, padding, budgets, fraction, int8, seed):
    """Without corrections, the observed attention of a slot is that of its tokens, and nothing is dropped."""
    compressor = random_compressor(False, residual_fraction=fraction, residual_int8=int8)
    state = random_state(tokens=tokens, padding=(0, min(padding, tokens)), seed=seed)
    budget = torch.tensor(budgets)
    slots = compressor.merge(state, budget)
    filled = slots.log_mass > EMPTY / 2
    fits = state.valid.sum(dim=-1) <= budget[:, None]
    assert all(part.isfinite().all() for part in (slots.keys, slots.values, slots.log_mass))
    assert torch.equal(slots.assignment >= 0, state.valid) and (slots.kept | ~state.protected)[state.valid].all()
    assert (filled.sum(dim=-1)[fits] == state.valid.sum(dim=-1)[fits]).all()
    if not int8:
        assert (filled.sum(dim=-1)[~fits] == budget[:, None].expand(-1, 2)[~fits]).all()
    attention = importance(state).clamp_min(LEAST_ATTENTION) * state.valid
    kept = torch.where(slots.kept, slots.assignment, slots.log_mass.shape[-1])
    own, mass = (
        torch.zeros(2, 2, slots.log_mass.shape[-1] + 1).scatter(2, kept, part)[..., :-1]
        for part in (attention, state.log_mass)
    )
    drawn = (own * (slots.log_mass - mass).exp()).where(filled, 0)
    assert_close(drawn.sum(dim=-1), attention.sum(dim=-1), rtol=1e-4, atol=1e-6)
    assert (drawn.sum(dim=-1) > 0.9)[state.valid[..., -5:].any(dim=-1)].all()


@every_base
@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
def test_ratio_1_is_the_plain_model(name, attn_implementation):
    base = tiny_base(name, attn_implementation)
    compressor = tiny_compressor(base, compression_ratio=1)
    ids = random_ids(2, 40)
    mask = torch.ones_like(ids)
    mask[1, :9] = 0
    positions = (mask.cumsum(dim=1) - 1).clamp_min(0)
    expected = base(ids, attention_mask=mask, position_ids=positions).logits
    for segment_length in (None, 10):
        cache = compressor.compress(base, ids[:, :30], mask[:, :30], segment_length=segment_length)
        found = continue_from(base, compressor, cache, ids, mask)
        assert_close(found, expected[:, 30:], **CLOSE)
    cache = compressor.compress(base, ids[:, :30])
    assert_close(continue_from(base, compressor, cache, ids), base(ids).logits[:, 30:], **CLOSE)
    assert cache.num_slots == [0, 0]


@each_base
@pytest.mark.parametrize("beams", [1, 2])
def test_generate_at_ratio_1(name, beams):
    base = tiny_base(name)
    compressor = tiny_compressor(base, compression_ratio=1)
    rows = [random_ids(1, length, seed=length) for length in (24, 15)]
    ids, mask = pad_rows(rows, "left")
    kwargs = {"attention_mask": mask, "num_beams": beams, "do_sample": False, "max_new_tokens": 6, "pad_token_id": 0}
    with compressor.attach(base):
        cache = compressor.compress(base, ids[:, :-1], mask[:, :-1])
        found = base.generate(ids, **as_cache(cache), **kwargs)
    assert torch.equal(found, base.generate(ids, **kwargs))


@each_base
@pytest.mark.parametrize("beams", [1, 2])
def test_generate_from_a_quarter(name, beams):
    """Greedy search equals a loop over the model, and rows and beams of a batch those alone."""
    base = tiny_base(name)
    compressor = tiny_compressor(base)
    rows = [random_ids(1, length, seed=length) for length in (48, 41)]
    ids, mask = pad_rows(rows, "left")
    kwargs = {"num_beams": beams, "do_sample": False, "max_new_tokens": 6, "min_new_tokens": 6, "pad_token_id": 0}
    with compressor.attach(base), torch.no_grad():
        cache = compressor.compress(base, ids[:, :-1], mask[:, :-1])
        cache.batch_repeat_interleave(beams)
        found = base.generate(ids, attention_mask=mask, **as_cache(cache), **kwargs)
        for index, row in enumerate(rows):
            cache = compressor.compress(base, row[:, :-1])
            alone = base.generate(row, **as_cache(cache), **kwargs)
            assert torch.equal(alone[0, -6:], found[index, -6:])
            if beams == 1:
                cache, token, tokens = compressor.compress(base, row[:, :-1]), row[:, -1:], []
                for _ in range(6):
                    token = base(token, **as_cache(cache)).logits[:, -1:].argmax(dim=-1)
                    tokens.append(int(token))
                assert tokens == alone[0, -6:].tolist()


@each_base
@pytest.mark.parametrize("segment_length", [None, 12])
def test_causality_and_rows(name, segment_length):
    """Bit for bit: later tokens change nothing before them, and other rows nothing at all."""
    base = tiny_base(name)
    compressor = tiny_compressor(base)
    ids, other = random_ids(2, 60), random_ids(2, 60, seed=1)

    def logits(ids):
        return continue_from(
            base, compressor, compressor.compress(base, ids[:, :48], segment_length=segment_length), ids
        )

    expected = logits(ids)
    changed = torch.cat([ids[:, :54], other[:, 54:]], dim=1)
    assert torch.equal(logits(changed)[:, :6], expected[:, :6])
    assert not torch.equal(logits(changed)[:, 6:], expected[:, 6:])
    row = torch.stack([ids[0], other[1]])
    assert torch.equal(logits(row)[0], expected[0])
    assert not torch.equal(logits(row)[1], expected[1])


@each_base
@pytest.mark.parametrize("fields", [{}, {"residual_int8": True}, {"num_slots": 11}], ids=str)
@pytest.mark.parametrize("segment_length", [None, 12])
def test_padding_does_not_matter(name, fields, segment_length):
    base = tiny_base(name)
    compressor = tiny_compressor(base, **fields)
    # As many segments, which end at the same tokens.
    rows = [random_ids(1, 48, seed=0), random_ids(1, 36, seed=1)]
    ids, mask = pad_rows(rows, "left")
    new = random_ids(2, 6, seed=2)
    cache = compressor.compress(base, ids, mask, segment_length=segment_length)
    wide = torch.cat([mask, torch.ones_like(new)], dim=1)
    found = continue_from(base, compressor, cache, torch.cat([ids, new], dim=1), wide)
    for index, row in enumerate(rows):
        cache = compressor.compress(base, row, segment_length=segment_length)
        alone = continue_from(base, compressor, cache, torch.cat([row, new[index : index + 1]], dim=1))
        assert_close(found[index : index + 1], alone, **CLOSE)


@each_base
@pytest.mark.parametrize("fields", [{}, {"residual_int8": True}], ids=str)
def test_eager_equals_sdpa(name, fields):
    ids, results = random_ids(2, 60), []
    for attn_implementation in ("eager", "sdpa"):
        base = tiny_base(name, attn_implementation)
        compressor = tiny_compressor(base, **fields)
        cache = compressor.compress(base, ids[:, :48], segment_length=24)
        logits = continue_from(base, compressor, cache, ids)
        compressor.train()
        results.append((logits, gradients(compressor, compressor(base, ids, 48, segment_length=24).loss)))
    assert_close(results[0], results[1], rtol=1e-4, atol=1e-5)


def test_compression_changes_the_outputs():
    """Else all of these tests would be empty."""
    base = tiny_base("llama")
    ids = random_ids(2, 60)
    exact = base(ids).logits[:, 48:]
    for ratio in (2, 4):
        compressor = tiny_compressor(base, compression_ratio=ratio)
        found = continue_from(base, compressor, compressor.compress(base, ids[:, :48]), ids)
        assert (found - exact).abs().max() > 0.05


@each_base
@pytest.mark.parametrize("ratio", [2, 3.5, 8])
@pytest.mark.parametrize("fields", [{}, {"residual_int8": True}, OFF], ids=str)
@pytest.mark.parametrize("policy", [None, "snapkv"])
def test_bytes_held(name, ratio, fields, policy):
    base = tiny_base(name)
    compressor = tiny_compressor(base, compression_ratio=ratio, **fields)
    cache = compressor.compress(base, random_ids(2, 96), policy=policy and POLICIES[policy])
    full = MergingCache(base.config)
    base(random_ids(2, 96), **as_cache(full))
    assert full.num_bytes / cache.num_bytes >= ratio
    # Not by more than the rounding to slots, and to those in int8.
    slot = 2 * 2 * sum(layer.keys.shape[1] * (2 * layer.keys.shape[-1] + 1) * 4 for layer in full.layers) / 2
    assert cache.num_bytes + slot * (1 + ("residual_int8" in fields)) > full.num_bytes / ratio


@pytest.mark.parametrize("num_slots", [None, 9])
def test_streaming_is_bounded(num_slots, monkeypatch):
    base = tiny_base("llama")
    compressor = tiny_compressor(base, num_slots=num_slots, compression_ratio=4)
    held = []
    compress_layers = compressor._compress_layers

    def recorded(cache, *args):
        before = [layer.keys.shape[2] for layer in cache.layers]
        compressed = compress_layers(cache, *args)
        held.append((max(before), max(layer.keys.shape[2] for layer in cache.layers)))
        return compressed

    monkeypatch.setattr(compressor, "_compress_layers", recorded)
    cache = compressor.compress(base, random_ids(2, 96), segment_length=16)
    slots = 9 if num_slots else int(96 / 4 / (1 + 1 / 16))
    assert len(held) == 6 and max(before for before, _ in held) <= slots + 16
    assert all(after == min(slots, 16 * (index + 1)) for index, (_, after) in enumerate(held))
    assert cache.get_seq_length() == 96 and cache.num_slots == [slots, slots]


@each_base
@pytest.mark.parametrize("residual_int8", [False, True])
@pytest.mark.parametrize("segment_length", [12, 3])
def test_sinks_and_window_stay_as_they_are(name, residual_int8, segment_length):
    """Through many compressions; the first layer's keys depend on nothing but their tokens."""
    base = tiny_base(name)
    compressor = tiny_compressor(base, num_slots=16, residual_fraction=0.6, residual_int8=residual_int8)
    ids = random_ids(2, 96)
    full = cache_of(base, ids).layers[0]
    layer = compressor.compress(base, ids, segment_length=segment_length).layers[0]
    keys, values = layer.states()
    for slots, tokens in ((slice(2), slice(2)), (slice(-4, None), slice(-4, None))):
        assert_close(keys[:, :, slots], full.keys[:, :, tokens], **CLOSE)
        assert_close(values[:, :, slots], full.values[:, :, tokens], **CLOSE)
        assert (layer.log_mass[:, :, slots] == 0).all()


@each_base
def test_a_text_in_two_calls(name):
    """What is read on goes by the same rule as what is read at once, with padding."""
    base = tiny_base(name)
    compressor = tiny_compressor(base, num_slots=12)
    ids, mask = pad_rows([random_ids(1, 60), random_ids(1, 40, seed=1)], "left")
    once = compressor.compress(base, ids[:, :48], mask[:, :48], segment_length=24)
    twice = compressor.compress(base, ids[:, :24], mask[:, :24])
    again = compressor.compress(base, ids[:, 24:48], mask[:, :48], cache=twice)
    assert again is twice
    expected = continue_from(base, compressor, once, ids, mask)
    assert_close(continue_from(base, compressor, twice, ids, mask), expected, **EXACT)


def test_short_texts_are_kept_whole():
    """A fixed number of slots that all tokens fit into changes nothing."""
    base = tiny_base("llama")
    compressor = tiny_compressor(base, num_slots=20)
    ids = random_ids(2, 26)
    cache = compressor.compress(base, ids[:, :20])
    assert cache.num_slots == [0, 0]
    assert torch.equal(
        continue_from(base, compressor, cache, ids), continue_from(base, compressor, cache_of(base, ids[:, :20]), ids)
    )


@pytest.mark.parametrize("segment_length", [None, 5])
@pytest.mark.parametrize("name", [None, *POLICIES])
@pytest.mark.parametrize("fields", [{}, {"num_slots": 7, "layer_budgets": [1, 5]}], ids=["ratio", "slots"])
def test_short_texts_get_what_rows_of_a_batch_get(fields, name, segment_length):
    """A text of a few tokens is held alone as beside a long one, whatever the ratio leaves of it."""
    base, policy = tiny_base("llama"), POLICIES.get(name)
    compressor = tiny_compressor(base, **fields)
    for length in (1, 6, 7, 8, 20):
        rows = [random_ids(1, length + 3), random_ids(1, 60, seed=1)]
        ids, mask = pad_rows(rows, "left")
        alone = compressor.compress(base, rows[0][:, :-3], segment_length=segment_length, policy=policy)
        assert (alone.num_slots == [0, 0]) == (length <= 7)
        logits = continue_from(base, compressor, alone, rows[0])
        if length <= 7:
            assert_close(logits, base(rows[0]).logits[:, -3:], **CLOSE)
        if segment_length is None and name != "random":
            cache = compressor.compress(base, ids[:, :-3], mask[:, :-3], policy=policy)
            assert_close(continue_from(base, compressor, cache, ids, mask)[:1], logits, **CLOSE)


def test_short_texts_read_on():
    """A chat that begins with a few words: read in parts, it is compressed when there is more than it may hold."""
    base, ids = tiny_base("llama"), random_ids(1, 60)
    compressor, cache = tiny_compressor(base), None
    for start, end in ((0, 2), (2, 6), (6, 7), (7, 12), (12, 58)):
        cache = compressor.compress(base, ids[:, start:end], cache=cache)
        assert cache.num_slots == ([0, 0] if end <= 7 else [max(7, int(end / 4 / (1 + 1 / 16)))] * 2)
    assert continue_from(base, compressor, cache, ids).isfinite().all()


def cache_of(base, ids):
    cache = MergingCache(base.config)
    with torch.no_grad():
        base(ids, **as_cache(cache))
    return cache


@each_base
def test_layers_and_budgets(name):
    base = tiny_base(name)
    ids = random_ids(2, 96)
    full = cache_of(base, ids)
    cache = tiny_compressor(base, compression_layers=[1]).compress(base, ids)
    assert cache.num_slots[0] == 96 and cache.num_slots[1] < 96 / 4
    assert torch.equal(cache.layers[0].keys, full.layers[0].keys)
    assert torch.equal(cache.layers[0].values, full.layers[0].values)
    assert (cache.layers[0].log_mass == 0).all()
    # Only what compression changes is different: the first layer attends to all tokens.
    none = tiny_compressor(base, compression_layers=[0], compression_ratio=1).compress(base, ids)
    assert none.num_slots == [0, 0]
    even = tiny_compressor(base).compress(base, ids).num_slots
    shares = tiny_compressor(base, layer_budgets=[3, 1]).compress(base, ids).num_slots
    assert shares == [int(even[0] * 1.5), int(even[0] * 0.5)]


def test_uncompressed_layers_see_everything():
    base = tiny_base("llama")
    ids = random_ids(2, 60)
    compressor = tiny_compressor(base, compression_layers=[1])
    with torch.no_grad():
        expected = base(ids, output_hidden_states=True).hidden_states[1][:, 48:]
        with compressor.attach(base):
            cache = compressor.compress(base, ids[:, :48])
            outputs = base(ids[:, 48:], **as_cache(cache), output_hidden_states=True)
    assert_close(outputs.hidden_states[1], expected, **CLOSE)
    assert (
        outputs.hidden_states[2] - base(ids, output_hidden_states=True).hidden_states[2][:, 48:]
    ).abs().max() > 0.01


def logits_with(base, ids, seed=0, **fields):
    compressor = tiny_compressor(base, **fields)
    return continue_from(base, compressor, compressor.compress(base, ids[:, :48]), ids)


@each_base
def test_flags(name):
    """A flag switched off takes its effect away exactly; switched on, it has one."""
    base = tiny_base(name)
    ids = random_ids(2, 60)
    off = logits_with(base, ids, **OFF)
    assert torch.equal(logits_with(base, ids, **OFF, residual_fraction=0.5, residual_int8=True), off)
    assert torch.equal(logits_with(base, ids, **OFF, similarity_threshold=0.1, adaptive_threshold=False), off)
    assert torch.equal(logits_with(base, ids, residual_fraction=0), off)
    on = logits_with(base, ids, residual_fraction=0.5)
    assert not torch.equal(on, off)
    fixed = {"residual_fraction": 0.5, "adaptive_threshold": False}
    assert torch.equal(logits_with(base, ids, **fixed, threshold_momentum=0), logits_with(base, ids, **fixed))
    thresholds = [logits_with(base, ids, **fixed, similarity_threshold=value) for value in (-1, 0.85, 1)]
    assert not torch.equal(thresholds[0], thresholds[2])
    assert not torch.equal(logits_with(base, ids, residual_fraction=0.5, threshold_momentum=0), thresholds[0])
    assert not torch.equal(logits_with(base, ids, residual_fraction=0.5, residual_int8=True), on)
    assert not torch.equal(logits_with(base, ids, observation_window=20), logits_with(base, ids))


def test_a_new_compressor_has_no_corrections():
    base = tiny_base("llama")
    state_dict = ActivationCompressor.from_base(base).state_dict()
    assert len(state_dict) == 8
    for name, tensor in state_dict.items():
        expected = {"gate_bias": 4.0, "threshold": 0.85}.get(name.split(".")[-1], 0.0)
        assert torch.equal(tensor, torch.full_like(tensor, expected))


def test_losses():
    base = tiny_base("llama")
    weights = {"contrastive_weight": 0.5, "distillation_weight": 2.0, "importance_weight": 3.0}
    compressor = tiny_compressor(base, **weights)
    ids, mask = pad_rows([random_ids(1, 60), random_ids(1, 50, seed=1)], "left")
    outputs = compressor(base, ids, 48, attention_mask=mask)
    cache = compressor.compress(base, ids[:, :48], mask[:, :48])
    logits = continue_from(base, compressor, cache, ids, mask)
    positions = (mask.cumsum(dim=1) - 1).clamp_min(0)
    full = base(ids, attention_mask=mask, position_ids=positions).logits[:, 48:]
    assert_close(outputs.losses["lm"], cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 49:].flatten()))
    divergence = kl_div(logits.log_softmax(-1), full.log_softmax(-1), log_target=True, reduction="none").sum(-1)
    assert_close(outputs.losses["distillation"], divergence.mean(), **CLOSE)
    total = outputs.losses["lm"] + 2 * outputs.losses["distillation"]
    assert_close(outputs.loss, total + 3 * outputs.losses["importance"] + 0.5 * outputs.losses["contrastive"])
    labels = ids.clone()
    labels[:, 48:54] = -100
    partial = compressor(base, ids, 48, attention_mask=mask, labels=labels)
    assert_close(partial.losses["lm"], cross_entropy(logits[:, 5:-1].flatten(0, 1), ids[:, 54:].flatten()))
    assert_close(partial.losses["distillation"], divergence[:, 6:].mean(), **CLOSE)


def test_weights_of_the_losses():
    base = tiny_base("llama")
    ids = random_ids(2, 60)
    names = ("contrastive", "distillation", "importance")
    full = tiny_compressor(base)(base, ids, 48)
    for name in (None, *names):
        weights = {f"{other}_weight": int(other == name) for other in names}
        outputs = tiny_compressor(base, **weights)(base, ids, 48)
        found = set(outputs.losses) - {"lm"}
        assert found == {name} - {None} and torch.equal(outputs.losses["lm"], full.losses["lm"])
        expected = outputs.losses["lm"] + sum(full.losses[other] for other in found)
        assert_close(outputs.loss, expected, **EXACT)
    plain = tiny_compressor(base, compression_ratio=1)(base, ids, 48)
    assert plain.losses["distillation"] < 1e-6 and "contrastive" not in plain.losses
    cold, warm = (tiny_compressor(base, contrastive_temperature=t)(base, ids, 48) for t in (0.1, 1.0))
    assert not torch.equal(cold.losses["contrastive"], warm.losses["contrastive"])


def test_contrastive_loss():
    members, slots = torch.randn(2, 2, 5, 4), torch.randn(2, 2, 3, 4)
    assignment = torch.tensor([0, -1, 1, 0, -1]).expand(2, 2, 5).clone()
    filled = torch.tensor([[True, True, True], [True, True, False]])[:, None].expand(2, 2, 3)
    losses = []
    for row in range(2):
        for head in range(2):
            for token in (0, 2, 3):
                similarities = normalize(slots[row, head], dim=-1) @ normalize(members[row, head, token], dim=-1)
                logits = (similarities / 0.2)[: 3 - row]
                losses.append(-logits.log_softmax(dim=0)[assignment[row, head, token]])
    assert_close(contrastive_loss(members, slots, assignment, filled, 0.2), torch.stack(losses).mean())
    assert contrastive_loss(members, slots, assignment.fill_(-1), filled, 0.2) == 0


@each_base
def test_importance_loss(name):
    """Against the attention weights of the base model itself."""
    base, eager = tiny_base(name), tiny_base(name, "eager")
    compressor = tiny_compressor(base, compression_layers=[1], observation_window=7)
    rows = [random_ids(1, length, seed=length) for length in (60, 52)]
    ids, mask = pad_rows(rows, "left")
    losses = []
    for row in rows:
        context, layer = row.shape[1] - 12, compressor.layers["1"]
        cache = MergingCache(base.config)
        with torch.no_grad():
            attention = eager(row, **as_cache(cache), output_attentions=True).attentions[1][0]
        keys, values = (states[0, :, :context] for states in (cache.layers[1].keys, cache.layers[1].values))
        groups = attention.unflatten(0, (keys.shape[0], -1))
        before = groups[:, :, context - 7 : context, :context].mean(dim=(1, 2)).clamp_min(LEAST_ATTENTION).log()
        after = groups[:, :, context:, :context].sum(dim=(1, 2))
        centred = (before - before.mean(dim=-1, keepdim=True))[..., None]
        features = torch.cat([unit_rms(keys), unit_rms(values), centred], dim=-1)
        log_importance = before + (features @ layer.importance_weight[..., None])[..., 0]
        target = after / after.sum(dim=-1, keepdim=True)
        losses.append(kl_div(log_importance.log_softmax(dim=-1), target, reduction="none").sum(dim=-1).mean())
    found = compressor(base, ids, 48, attention_mask=mask).losses["importance"]
    assert_close(found, torch.stack(losses).mean(), rtol=1e-4, atol=1e-5)


@each_base
@pytest.mark.parametrize("segment_length", [None, 16])
@pytest.mark.parametrize("fields", [{}, {"residual_int8": True}], ids=str)
def test_every_parameter_gets_a_gradient(name, segment_length, fields):
    """By way of the compressed cache alone."""
    base = tiny_base(name)
    fields |= {"contrastive_weight": 0, "importance_weight": 0, "residual_fraction": 0.5}
    compressor = tiny_compressor(base, **fields).train()
    # A gate wide open has no gradient to speak of.
    for layer in compressor.layers.values():
        layer.gate_bias.data.fill_(0.5)
    loss = compressor(base, random_ids(2, 60), 48, segment_length=segment_length).loss
    found = gradients(compressor, loss)
    assert len(found) == 6
    for parameter, gradient in found.items():
        assert gradient.isfinite().all() and gradient.abs().max() > 1e-6, parameter
    assert all(parameter.grad is None and parameter.requires_grad for parameter in base.parameters())


def test_gradients_are_those_of_the_loss():
    """By finite differences, along random directions, where no choice of tokens changes."""
    base = tiny_base("llama")
    compressor = tiny_compressor(base, residual_fraction=0.5)
    ids = random_ids(2, 60)
    loss = compressor(base, ids, 48).loss
    for name, gradient in gradients(compressor, loss).items():
        parameter = compressor.get_parameter(name)
        if "gate" not in name:
            continue
        direction = torch.randn_like(parameter)
        values = []
        for step in (1e-2, -1e-2):
            with torch.no_grad():
                parameter.add_(step * direction)
                values.append(compressor(base, ids, 48).loss)
                parameter.sub_(step * direction)
        assert_close((values[0] - values[1]) / 2e-2, (gradient * direction).sum(), rtol=0.1, atol=1e-4)


def test_freeze_base():
    base = tiny_base("llama")
    ids = random_ids(2, 60)
    base.lm_head.weight.requires_grad_(False)
    tiny_compressor(base).train()(base, ids, 48).loss.backward()
    assert all(parameter.grad is None for parameter in base.parameters())
    assert [name for name, parameter in base.named_parameters() if not parameter.requires_grad] == ["lm_head.weight"]
    compressor = tiny_compressor(base, freeze_base=False).train()
    compressor(base, ids, 48).loss.backward()
    for name, parameter in base.named_parameters():
        assert name == "lm_head.weight" or parameter.grad.abs().max() > 0, name
    # Its weights change in training, and are identified after it.
    base.model.norm.weight.data[0] += 1
    compressor(base, ids, 48)
    with pytest.raises(ValueError, match="with other weights"):
        compressor.compress(base, ids)
    compressor.identify(base)
    compressor.compress(base, ids)


def test_compress_cache():
    base = tiny_base("llama")
    compressor = tiny_compressor(base)
    ids, mask = pad_rows([random_ids(1, 60), random_ids(1, 51, seed=1)], "left")
    cache = MergingCache(base.config)
    cache.observe(compressor.config.observation_window)
    with torch.no_grad(), merging_attention(base):
        position_ids = (mask.cumsum(dim=1) - 1).clamp_min(0)
        base(ids, attention_mask=mask, position_ids=position_ids, **as_cache(cache))
    compressed = compressor.compress_cache(cache, mask, compression_ratio=3)
    expected = compressor.compress(base, ids, mask, compression_ratio=3)
    assert len(compressed) == len(cache.layers) and cache.num_bytes == expected.num_bytes
    for layer, other in zip(cache.layers, expected.layers, strict=True):
        for name in ("keys", "values", "log_mass"):
            assert_close(getattr(layer, name), getattr(other, name), **EXACT)
    assert expected.num_slots[0] > compressor.compress(base, ids, mask).num_slots[0]


@pytest.mark.parametrize("how", [copy.deepcopy, MergingCache.fork])
def test_copies_go_their_own_way(how):
    """Also those made outside of `attach`: a compressed prompt is read once and continued many times."""
    base = tiny_base("llama")
    compressor, ids = tiny_compressor(base), random_ids(1, 60)
    cache = compressor.compress(base, ids[:, :50])
    held = [layer.keys.clone() for layer in cache.layers]
    logits = [continue_from(base, compressor, how(cache), ids) for _ in range(2)]
    assert_close(logits[0], logits[1], **EXACT)
    assert all(torch.equal(layer.keys, keys) for layer, keys in zip(cache.layers, held, strict=True))
    assert cache.get_seq_length() == 50


def test_compress_cache_refuses():
    base = tiny_base("llama")
    compressor, cache = tiny_compressor(base), MergingCache(base.config)
    with pytest.raises(ValueError, match="`cache` must hold a text, it is empty"):
        compressor.compress_cache(cache)
    with torch.no_grad():
        base(random_ids(2, 60), **as_cache(cache))
    with pytest.raises(ValueError, match="`cache` must have observed queries"):
        compressor.compress_cache(cache)
    for ratio in (0, 0.5, math.inf):
        with pytest.raises(ValueError, match="`compression_ratio` must be 1 or more, and finite, got"):
            compressor.compress(base, random_ids(2, 60), compression_ratio=ratio)


def test_frozen_restores_after_an_error():
    base = tiny_base("llama")
    base.lm_head.weight.requires_grad_(False)
    with pytest.raises(RuntimeError), frozen(base):
        assert not any(parameter.requires_grad for parameter in base.parameters())
        raise RuntimeError
    assert sum(not parameter.requires_grad for parameter in base.parameters()) == 1


def test_training_lowers_the_loss():
    base = tiny_base("llama")
    compressor = tiny_compressor(base, perturbed=False, residual_fraction=0.5).train()
    ids = random_ids(4, 60)
    optimizer = torch.optim.Adam(compressor.parameters(), lr=0.02)
    losses = []
    for _ in range(25):
        outputs = compressor(base, ids, 48)
        losses.append(outputs.losses["importance"])
        optimizer.zero_grad()
        outputs.loss.backward()
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]


def test_adaptive_threshold():
    """It moves in training towards the similarity at which residuals are just enough, and only there."""
    base = tiny_base("llama")
    ids = random_ids(2, 60)
    for training, adaptive, moves in ((True, True, True), (False, True, False), (True, False, False)):
        compressor = tiny_compressor(base, residual_fraction=0.5, adaptive_threshold=adaptive).train(training)
        compressor(base, ids, 48)
        assert (compressor.layers["0"].threshold != 0.85) == moves
    compressor = random_compressor(residual_fraction=0.5, threshold_momentum=0)
    members = torch.ones(2, 2, 24, dtype=torch.bool)
    similarity = torch.rand(2, 2, 24)
    layer = compressor.layers["0"]
    threshold = compressor._threshold(layer, similarity, members, torch.tensor([3, 5]))
    assert ((similarity < threshold).sum(dim=-1) == torch.tensor([3, 5])[:, None]).all()
    assert layer.threshold == torch.tensor(0.85)
    follow_threshold(layer, threshold)
    assert_close(layer.threshold, threshold.mean())
    compressor.config.threshold_momentum = 0.75
    again = compressor._threshold(layer, similarity, members, torch.tensor([3, 5]))
    assert_close(again, 0.75 * layer.threshold + 0.25 * threshold)


def test_compressing_moves_no_threshold():
    """In any mode: what is read twice is held as the same slots."""
    base, ids = tiny_base("llama"), random_ids(2, 60)
    compressor = ActivationCompressor.from_base(base, **SMALL, residual_fraction=0.5)
    assert not compressor.training
    for mode in (False, True):
        compressor.train(mode)
        first, second = (compressor.compress(base, ids, segment_length=30) for _ in range(2))
        cache = compress_full(base, compressor, ids)
        assert compressor.layers["0"].threshold == torch.tensor(0.85)
        assert torch.equal(first.layers[1].keys, second.layers[1].keys)
        assert cache.num_slots == first.num_slots


def compress_full(base, compressor, ids):
    """Reads all of a text before its cache is compressed."""
    cache = MergingCache(base.config)
    cache.observe(compressor.config.observation_window)
    with torch.no_grad(), merging_attention(base):
        base(ids, **as_cache(cache))
    compressor.compress_cache(cache)
    return cache


def test_save_and_load(tmp_path):
    base = tiny_base("llama")
    compressor = tiny_compressor(base, compression_ratio=3, compression_layers=[1])
    compressor.layers["1"].threshold.fill_(0.7)
    compressor.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_size < 5000
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["model_type"] == "activation_compressor" and written["base_model_type"] == "llama"
    loaded = AutoModel.from_pretrained(tmp_path)
    assert type(loaded) is ActivationCompressor and not loaded.training
    assert type(AutoConfig.from_pretrained(tmp_path)) is ActivationCompressorConfig
    assert_close(dict(loaded.state_dict()), dict(compressor.state_dict()), **EXACT)
    ids = random_ids(2, 60)
    expected, found = (continue_from(base, c, c.compress(base, ids[:, :48]), ids) for c in (compressor, loaded))
    assert torch.equal(found, expected)


def test_each_missing_key_is_initialised(tmp_path):
    tiny_compressor(tiny_base("llama")).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    assert len(weights) == 8
    for missing in weights:
        given = {name: tensor for name, tensor in weights.items() if name != missing}
        save_file(given, tmp_path / "model.safetensors", metadata={"format": "pt"})
        with uninitialised_memory_is_nan():
            state_dict = ActivationCompressor.from_pretrained(tmp_path).state_dict()
        for name, tensor in state_dict.items():
            assert tensor.isfinite().all() and (name == missing or torch.equal(tensor, given[name])), name


@each_base
def test_another_base_is_refused(name, tmp_path):
    base = tiny_base(name)
    tiny_compressor(base).save_pretrained(tmp_path)
    compressor = ActivationCompressor.from_pretrained(tmp_path)
    other_type = tiny_base("opt" if name != "opt" else "gpt2")
    for other in (tiny_base(name, seed=1), other_type):
        for call in (
            lambda other=other: compressor.compress(other, random_ids(1, 60)),
            lambda other=other: compressor.attach(other).__enter__(),
        ):
            with pytest.raises(ValueError, match="belongs to .* with other weights"):
                call()
        assert other.config._attn_implementation == "sdpa"


def test_nothing_stays_behind_after_an_error():
    base = tiny_base("llama")
    compressor = tiny_compressor(base)
    before = dict(base.model.layers[0].self_attn.__dict__)

    def failing(state, budget):
        raise RuntimeError("policy")

    with pytest.raises(RuntimeError, match="policy"):
        compressor.compress(base, random_ids(1, 60), policy=failing)
    assert base.config._attn_implementation == "sdpa"
    assert not any(module._forward_pre_hooks for module in base.modules())
    assert base.model.layers[0].self_attn.__dict__.keys() == before.keys()


@pytest.mark.parametrize("name", POLICIES)
def test_policies_in_the_same_interface(name):
    base = tiny_base("llama")
    compressor = tiny_compressor(base)
    ids, mask = pad_rows([random_ids(1, 60), random_ids(1, 50, seed=1)], "left")
    cache = compressor.compress(base, ids[:, :48], mask[:, :48], segment_length=16, policy=POLICIES[name])
    assert cache.num_slots == [int(48 / 4 / (1 + 1 / 16))] * 2
    logits = continue_from(base, compressor, cache.fork(), ids, mask)
    assert logits.isfinite().all()
    with merging_attention(base):
        base.generate(ids, attention_mask=mask, **as_cache(cache), max_new_tokens=2, pad_token_id=0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"compression_ratio": 0.5}, "`compression_ratio` must be 1 or more"),
        ({"compression_ratio": math.inf}, "`compression_ratio` must be 1 or more, and finite"),
        ({"num_slots": 6}, "`num_slots` must be more than `num_sinks` . `recent_window` = 6, got 6"),
        ({"num_sinks": -1}, "`num_sinks` must be 0 or more"),
        ({"recent_window": -1}, "`recent_window` must be 0 or more"),
        ({"observation_window": 0}, "`observation_window` must be 1 or more"),
        ({"compression_layers": [2]}, "`compression_layers` must name different layers from 0 to 1"),
        ({"compression_layers": [0, 0]}, "`compression_layers`"),
        ({"compression_layers": []}, "`compression_layers`"),
        ({"layer_budgets": [1]}, "`layer_budgets` must give a positive number for each of the 2"),
        ({"layer_budgets": [1, 0]}, "`layer_budgets`"),
        ({"residual_importance": -1}, "`residual_importance` must be 0 or more"),
        ({"residual_fraction": 1}, "`residual_fraction` must be at least 0 and below 1"),
        ({"threshold_momentum": 1.5}, "`threshold_momentum`"),
        ({"similarity_threshold": 1.5}, "`similarity_threshold` must be in"),
        ({"contrastive_weight": -1}, "`contrastive_weight` must be 0 or more"),
        ({"importance_weight": -1}, "`importance_weight` must be 0 or more"),
        ({"distillation_weight": -1}, "`distillation_weight` must be 0 or more"),
        ({"contrastive_temperature": 0}, "`contrastive_temperature` must be above 0"),
    ],
    ids=str,
)
def test_bad_fields(fields, message):
    with pytest.raises(ValueError, match=message):
        tiny_compressor(tiny_base("llama"), **fields)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing")  # 5.17 has no other name
def test_bad_calls():
    base = tiny_base("llama")
    compressor = tiny_compressor(base)
    ids = random_ids(2, 60)
    with pytest.raises(ValueError, match="`compression_ratio` 4.0 leaves 4 slots of 20 tokens; .* = 6 must be fewer"):
        compressor.check_ratio(20)
    with pytest.raises(ValueError, match="leaves 2 slots"):
        tiny_compressor(base, layer_budgets=[1, 9]).check_ratio(60)
    with pytest.raises(ValueError, match="`segment_length` must be 1 or more, got 0"):
        compressor.compress(base, ids, segment_length=0)
    with pytest.raises(ValueError, match="`attention_mask` must cover the text, seen and new: .2, 60., got .2, 50."):
        compressor.compress(base, ids, torch.ones(2, 50))
    right = torch.ones_like(ids)
    right[0, -1] = 0
    with pytest.raises(ValueError, match="padding on the left"):
        compressor.compress(base, ids, right)
    for context_length in (0, 59):
        with pytest.raises(ValueError, match="`context_length` must be above 0"):
            compressor(base, ids, context_length)
    base.gradient_checkpointing_enable()
    with pytest.raises(ValueError, match="`gradient_checkpointing` drops the cache"):
        compressor(base.train(), ids, 48)
    flash = tiny_base("llama")
    flash.config._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(ValueError, match="'eager' or 'sdpa' can add, got 'flash_attention_2'"):
        ActivationCompressor.from_base(flash)
    with pytest.raises(ValueError, match="'eager' or 'sdpa'"):
        compressor.compress(flash, ids)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(dtype):
    base = tiny_base("llama").to(dtype)
    compressor = tiny_compressor(base, residual_int8=True)
    ids, mask = pad_rows([random_ids(1, 60), random_ids(1, 50, seed=1)], "left")
    cache = compressor.compress(base, ids[:, :48], mask[:, :48], segment_length=24)
    assert {cache.layers[0].keys.dtype, cache.layers[0].log_mass.dtype} == {dtype}
    half = continue_from(base, compressor, cache, ids, mask)
    assert half.isfinite().all() and half.dtype == dtype
    loss = compressor.train()(base, ids, 48, attention_mask=mask).loss
    assert all(gradient.isfinite().all() for gradient in gradients(compressor, loss).values())


HALVES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


@HALVES
@each_base
@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("how", ["autocast", "compressor", "base", "all"])
def test_every_entry_in_half_precision(how, attn_implementation, name, dtype):
    """Reading, reading in parts, and a step of training; what is measured stays in float32."""
    ids, mask = pad_rows([random_ids(1, 60), random_ids(1, 50, seed=1)], "left")
    base = tiny_base(name, attn_implementation)
    expected = tiny_compressor(base)(base, ids, 48, attention_mask=mask).loss.detach()
    if how in ("base", "all"):
        base = base.to(dtype)
    compressor = tiny_compressor(base)
    if how in ("compressor", "all"):
        compressor.to(dtype)
    with torch.autocast("cpu", dtype, enabled=how in ("autocast", "all")):
        for segment_length in (None, 20):
            cache = compressor.compress(base, ids[:, :48], mask[:, :48], segment_length=segment_length)
            assert continue_from(base, compressor, cache, ids, mask).isfinite().all()
        loss = compressor.train()(base, ids, 48, attention_mask=mask).loss
    assert_close(loss.detach(), expected, rtol=0.02, atol=0)
    assert all(gradient.isfinite().all() for gradient in gradients(compressor, loss).values())
    threshold = compressor.layers["0"].threshold
    assert threshold.dtype == torch.float32 and threshold != threshold.to(dtype).float()


@HALVES
def test_files_in_half_precision(dtype, tmp_path):
    """Weights take the dtype that is asked for, the running threshold does not."""
    base = tiny_base("llama")
    compressor = tiny_compressor(base)
    compressor.layers["0"].threshold.fill_(0.123456)
    compressor.save_pretrained(tmp_path / "whole")
    compressor.to(dtype).save_pretrained(tmp_path / "half")
    for folder, options in (("whole", {"dtype": dtype}), ("half", {}), ("half", {"dtype": dtype})):
        loaded = ActivationCompressor.from_pretrained(tmp_path / folder, **options)
        assert loaded.layers["0"].threshold == torch.tensor(0.123456)
        assert loaded.layers["0"].gate_bias.dtype == options.get("dtype", dtype)
        assert loaded.compress(base, random_ids(2, 60)).num_slots == [14, 14]


def test_a_question_after_another():
    """Two questions over one compressed text, as the README asks them: each as if it were the first."""
    base, ids = tiny_base("llama"), random_ids(1, 60)
    compressor = tiny_compressor(base)
    options = {"do_sample": False, "max_new_tokens": 5, "min_new_tokens": 5, "pad_token_id": 0}
    with compressor.attach(base):
        cache, answers = compressor.compress(base, ids), []
        for seed in (1, 1, 2):
            question = random_ids(1, 4, seed=seed)
            mask = question.new_ones(1, cache.get_seq_length() + 4)
            answers.append(base.generate(question, attention_mask=mask, **as_cache(cache.fork()), **options))
        whole = torch.cat([ids, question], dim=1)
        again = base.generate(whole, **as_cache(cache.fork()), **options)
    assert torch.equal(answers[0], answers[1]) and torch.equal(answers[2], again[:, 60:])


@pytest.mark.parametrize("num_rows, num_beams", [(1, 1), (2, 2)])
def test_a_question_alone_that_is_longer_than_the_text(num_rows, num_beams):
    """Without a mask over all, it would be taken for the whole text and be cut: the ids that were read tell."""
    base, text = tiny_base("llama"), random_ids(1, 20)
    compressor = tiny_compressor(base)
    options = {"do_sample": False, "max_new_tokens": 3, "min_new_tokens": 3, "pad_token_id": 0, "num_beams": num_beams}
    question = random_ids(num_rows, 30, seed=1)
    whole = torch.cat([text.expand(num_rows, -1), question], dim=1)
    with compressor.attach(base):
        cache = compressor.compress(base, text)
        for mask in (None, torch.ones_like(question)):
            with pytest.raises(ValueError, match="the whole prompt, which begins with what the cache has read"):
                base.generate(question, attention_mask=mask, **as_cache(cache.fork()), **options)
        expected = base.generate(whole, **as_cache(cache.fork()), **options)
        alone = base.generate(question, attention_mask=torch.ones_like(whole), **as_cache(cache.fork()), **options)
        assert torch.equal(alone, expected[:, 20:])
        # What was generated was read as well.
        fork = cache.fork()
        first = base.generate(whole, **as_cache(fork), **options)
        second = torch.cat([first, random_ids(num_rows, 4, seed=2)], dim=1)
        if num_beams == 1:
            assert torch.equal(fork.input_ids, first[:, :-1])
            assert base.generate(second, **as_cache(fork), **options).shape == (num_rows, 60)
            with pytest.raises(ValueError, match="begins with what the cache has read"):
                base.generate(second.roll(1, dims=1), **as_cache(fork), **options)


@pytest.mark.parametrize("segment_length", [None, 50])
def test_more_tokens_than_positions(segment_length, monkeypatch):
    """Rotated positions go on, with a warning; learned ones end. Padding has none."""
    warnings = []
    monkeypatch.setattr(modeling_activation_compressor.logger, "warning_once", warnings.append)
    ids, mask = pad_rows([random_ids(1, 128), random_ids(1, 100)], "left")
    ids, mask = (torch.nn.functional.pad(tensor, (4, 0)) for tensor in (ids, mask))
    for name in ("llama", "gpt2", "opt"):
        base = tiny_base(name)
        tiny_compressor(base).compress(base, ids, mask, segment_length=segment_length)
        assert not warnings
        if name == "llama":
            tiny_compressor(base).compress(base, random_ids(1, 129), segment_length=segment_length)
            assert len(warnings) == 1 and "128 positions, 129 are read" in warnings.pop()
        else:
            with pytest.raises(ValueError, match="`input_ids` must fit the 128 positions of the base.* 129"):
                tiny_compressor(base).compress(base, random_ids(1, 129), segment_length=segment_length)


LOAD_WITHOUT_PACKAGE = """
from transformers import AutoModel, AutoModelForCausalLM

folder = sys.argv[1]
compressor = AutoModel.from_pretrained(folder, trust_remote_code=True)
base = AutoModelForCausalLM.from_pretrained(folder + "/base")
assert type(compressor).__module__.startswith("transformers_modules."), type(compressor)
saved = torch.load(folder + "/expected.pt", weights_only=True)
with torch.no_grad():
    assert torch.equal(compressor(base, saved["ids"], 48).loss, saved["loss"])
with compressor.attach(base):
    assert compressor.compress(base, saved["ids"]).num_slots == saved["num_slots"]
"""


def test_loads_without_the_package(tmp_path):
    """As from the hub: the code lies beside the weights, and nothing of this repository can be imported."""
    base, ids = tiny_base("llama"), random_ids(2, 64)
    compressor = tiny_compressor(base).eval()
    compressor.save_pretrained(tmp_path / "published")
    base.save_pretrained(tmp_path / "published" / "base")
    with torch.no_grad():
        loss = compressor(base, ids, 48).loss
    num_slots = compressor.compress(base, ids).num_slots
    torch.save({"ids": ids, "loss": loss, "num_slots": num_slots}, tmp_path / "published" / "expected.pt")
    run_without_package(LOAD_WITHOUT_PACKAGE, tmp_path / "published")
