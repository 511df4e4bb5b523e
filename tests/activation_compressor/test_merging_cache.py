"""The cache of slots and the attention that weighs them."""

import copy
import math
from contextlib import nullcontext

import pytest
import torch
from activation_testing import BASES, each_base, every_base, tiny_base
from modeling_testing import CLOSE, random_ids
from torch.testing import assert_close
from transformers import DynamicCache
from transformers.generation.streamers import BaseStreamer

from auto_compressor import MergingCache, merging_attention
from auto_compressor.activation_compressor.cache_policies import EMPTY
from auto_compressor.activation_compressor.merging_cache import MergingLayer, biased_mask
from auto_compressor.cache_names import as_cache


each_attention = pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
SETTINGS = {"do_sample": False, "max_new_tokens": 6, "min_new_tokens": 6, "pad_token_id": 0}


def hold_as_slots(cache, attention_mask=None, **kwargs):
    """Puts every token into a slot of its own; padding into none."""
    for layer in cache.layers:
        log_mass = torch.zeros(layer.keys.shape[:3], dtype=layer.keys.dtype)
        if attention_mask is not None:
            log_mass = log_mass.masked_fill(attention_mask[:, None] == 0, EMPTY)
        layer.replace(layer.keys, layer.values, log_mass, **kwargs)
    return cache


def read(model, input_ids, **kwargs):
    cache = MergingCache(model.config)
    with merging_attention(model), torch.no_grad():
        model(input_ids, **as_cache(cache), use_cache=True, **kwargs)
    return cache


@torch.no_grad()
def logits_after(model, input_ids, cache, **kwargs):
    with merging_attention(model):
        return model(input_ids, **as_cache(cache), use_cache=True, **kwargs).logits


@every_base
@each_attention
def test_without_slots_it_is_a_plain_cache(name, attn_implementation):
    model = tiny_base(name, attn_implementation)
    ids = random_ids(2, 14)
    expected = model(ids, **as_cache(plain := DynamicCache(config=model.config))).logits
    cache = MergingCache(model.config)
    assert torch.equal(logits_after(model, ids, cache), expected)
    for layer, plain_layer in zip(cache.layers, plain.layers, strict=True):
        assert torch.equal(layer.keys, plain_layer.keys) and torch.equal(layer.values, plain_layer.values)
    assert cache.num_slots == [0, 0] and cache.get_seq_length() == 14


@each_base
@each_attention
def test_slots_of_one_token_are_the_plain_model(name, attn_implementation):
    """Positions go on, causality holds among the new tokens, and padding is not seen, in slots and after them."""
    model = tiny_base(name, attn_implementation)
    ids = random_ids(2, 22)
    mask = torch.ones_like(ids)
    mask[1, :5] = 0
    positions = (mask.cumsum(dim=1) - 1).clamp_min(0)
    expected = model(ids, attention_mask=mask, position_ids=positions).logits
    cache = hold_as_slots(
        read(model, ids[:, :12], attention_mask=mask[:, :12], position_ids=positions[:, :12]), mask[:, :12]
    )
    found = []
    for start, end in ((12, 16), (16, 17), (17, 22)):
        kwargs = {"attention_mask": mask[:, :end], "position_ids": positions[:, start:end]}
        found.append(logits_after(model, ids[:, start:end], cache, **kwargs))
    assert_close(torch.cat(found, dim=1), expected[:, 12:], **CLOSE)
    assert cache.get_seq_length() == 22 and cache.layers[0].recent_length == 10


@each_base
def test_padding_after_slots(name):
    """Rows whose text begins after the slots of others."""
    model = tiny_base(name)
    ids = random_ids(2, 14)
    mask = torch.ones_like(ids)
    mask[1, :8] = 0
    positions = (mask.cumsum(dim=1) - 1).clamp_min(0)
    cache = read(model, ids[:, :6], attention_mask=mask[:, :6], position_ids=positions[:, :6])
    hold_as_slots(cache, mask[:, :6])
    found = logits_after(model, ids[:, 6:], cache, attention_mask=mask, position_ids=positions[:, 6:])
    alone = model(ids[1:, 8:]).logits
    assert_close(found[1:, 2:], alone, **CLOSE)


@each_base
@each_attention
def test_log_mass_counts_tokens(name, attn_implementation):
    """A slot with the log-mass log(n) draws the attention of n slots with its key and value, in every head."""
    model = tiny_base(name, attn_implementation)
    ids = random_ids(2, 12)
    single, repeated = (read(model, ids[:, :8]) for _ in range(2))
    counts = torch.tensor([1, 3, 1, 2, 1, 1, 4, 1])
    for layer, other in zip(single.layers, repeated.layers, strict=True):
        # Heads have their slots in another order.
        orders = torch.stack([torch.randperm(8) for _ in range(layer.keys.shape[1])])
        index = orders[None, :, :, None].expand_as(layer.keys)
        keys, values = layer.keys.gather(2, index), layer.values.gather(2, index)
        log_mass = counts.log()[orders].expand(2, -1, -1)
        layer.replace(keys, values, log_mass)
        keys, values = (
            torch.stack(
                [states[:, h].repeat_interleave(counts[order], dim=1) for h, order in enumerate(orders)], dim=1
            )
            for states in (keys, values)
        )
        other.replace(keys, values, torch.zeros(keys.shape[:3]))
    found, expected = (logits_after(model, ids[:, 8:], cache) for cache in (single, repeated))
    assert_close(found, expected, **CLOSE)
    plain = logits_after(model, ids[:, 8:], hold_as_slots(read(model, ids[:, :8])))
    assert (found - plain).abs().max() > 0.01


def test_biased_mask():
    log_mass = torch.randn(2, 2, 3)
    mask = biased_mask(log_mass, None, torch.zeros(2, 4, 2, 6), recent_length=4)
    lowest = torch.finfo(torch.float32).min
    assert mask.shape == (2, 4, 2, 7)
    for head in range(4):
        for row in range(2):
            for query in range(2):
                assert torch.equal(mask[row, head, query, :3], log_mass[row, head // 2])
        assert mask[0, head, :, 3:].tolist() == [[0, 0, 0, lowest], [0, 0, 0, 0]]
    given = torch.tensor([[True, False], [True, True]])[None, None]
    expected = [[0, lowest], [0, 0]]
    assert biased_mask(log_mass, given, torch.zeros(2, 4, 2, 6), 2)[1, 3, :, 3:].tolist() == expected


@each_base
def test_gradient_of_the_log_mass(name):
    gradients = []
    for attn_implementation in ("eager", "sdpa"):
        model = tiny_base(name, attn_implementation)
        ids = random_ids(2, 12)
        cache = hold_as_slots(read(model, ids[:, :8]))
        leaves = []
        for layer in cache.layers:
            leaves += [layer.log_mass.requires_grad_(), layer.values.requires_grad_()]
        with merging_attention(model):
            model(ids[:, 8:], **as_cache(cache)).logits.pow(2).mean().backward()
        gradients.append([leaf.grad for leaf in leaves])
    assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-5)
    assert all(gradient.abs().max() > 1e-4 for gradient in gradients[0])


@each_base
@pytest.mark.parametrize("beams", [1, 3])
def test_generate(name, beams):
    """From slots of one token as from the text itself, batched and with beams."""
    model = tiny_base(name)
    ids = random_ids(2, 12)
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    expected = model.generate(ids, attention_mask=mask, num_beams=beams, **SETTINGS)
    positions = (mask.cumsum(dim=1) - 1).clamp_min(0)
    cache = read(model, ids[:, :9], attention_mask=mask[:, :9], position_ids=positions[:, :9])
    hold_as_slots(cache, mask[:, :9]).batch_repeat_interleave(beams)
    with merging_attention(model):
        found = model.generate(ids, attention_mask=mask, num_beams=beams, **as_cache(cache), **SETTINGS)
    assert torch.equal(found, expected)
    assert cache.get_seq_length() == 12 + 5


QUESTION = SETTINGS | {"max_new_tokens": 5, "min_new_tokens": 5}


@each_base
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}], ids=str)
@pytest.mark.parametrize("length", [1, 3, 15])
def test_questions_about_one_text(name, options, length):
    """Each reads on from a fork: the ids of the question alone, shorter or longer than the text, or all of them."""
    model = tiny_base(name)
    text, questions = random_ids(1, 9), [random_ids(1, length, seed=seed) for seed in (1, 2)]
    cache = hold_as_slots(read(model, text))
    for question in questions:
        whole = torch.cat([text, question], dim=1)
        expected = model.generate(whole, **QUESTION, **options)
        mask = torch.ones_like(whole)
        with merging_attention(model):
            alone = model.generate(question, attention_mask=mask, **as_cache(cache.fork()), **QUESTION, **options)
            found = model.generate(whole, attention_mask=mask, **as_cache(cache.fork()), **QUESTION, **options)
        assert torch.equal(alone, expected[:, 9:]) and torch.equal(found, expected)
    assert cache.get_seq_length() == 9 and cache.layers[0].keys.shape[0] == 1


@each_base
@each_attention
def test_several_questions_at_once(name, attn_implementation):
    """One text, and a batch of questions of two lengths, with beams: every row is repeated for its own."""
    model = tiny_base(name, attn_implementation)
    text, questions = random_ids(1, 9), random_ids(2, 4, seed=1)
    mask = torch.ones(2, 13, dtype=torch.long)
    mask[1, 9:11] = 0
    cache = hold_as_slots(read(model, text), int8=slice(0, 0))
    options = QUESTION | {"num_beams": 2}
    with merging_attention(model):
        found = model.generate(questions, attention_mask=mask, **as_cache(cache.fork()), **options)
    for row, question in enumerate((questions[:1], questions[1:, 2:])):
        whole = model.generate(torch.cat([text, question], dim=1), **options)
        assert torch.equal(found[row, 4:], whole[0, -5:])


def test_rows_that_do_not_fit():
    model = tiny_base("llama")
    cache = hold_as_slots(read(model, random_ids(2, 8)))
    for rows in (1, 3):
        with pytest.raises(ValueError, match=f"must be a multiple of those in the cache, 2, got {rows}"):
            logits_after(model, random_ids(rows, 2), cache)


def test_prompts_that_say_too_little():
    """Without help, transformers would read the last token twice, or cut the question."""
    model = tiny_base("llama")
    ids = random_ids(1, 12)
    cache = hold_as_slots(read(model, ids[:, :8]))
    with merging_attention(model):
        for length, mask in ((8, None), (8, 8), (3, None), (3, 3), (3, 9), (12, 21)):
            mask = None if mask is None else torch.ones(1, mask, dtype=torch.long)
            with pytest.raises(ValueError, match=r"the cache has read 8. Pass either the new tokens alone, .*:, :-1"):
                model.generate(ids[:, :length], attention_mask=mask, **as_cache(cache.fork()), **SETTINGS)
        with pytest.raises(ValueError, match="the cache has read 8"):
            model.generate(input_ids=ids[:, :8], **as_cache(cache.fork()), **SETTINGS)
        for option in ({"prompt_lookup_num_tokens": 2}, {"assistant_model": model}):
            with pytest.raises(ValueError, match=f"`{next(iter(option))}` must not be given with a cache"):
                model.generate(ids, **as_cache(cache.fork()), **option, **SETTINGS)
        # An empty cache reads all.
        found = model.generate(ids, **as_cache(MergingCache(model.config)), **SETTINGS)
    assert torch.equal(found, model.generate(ids, **SETTINGS))
    with merging_attention(model.model):
        assert "generate" not in model.__dict__


def test_streaming():
    class Streamer(BaseStreamer):
        def __init__(self):
            self.tokens = []

        def put(self, value):
            self.tokens += value.flatten().tolist()

        def end(self):
            self.tokens.append("end")

    model, streamer = tiny_base("llama"), Streamer()
    ids = random_ids(1, 12)
    cache = hold_as_slots(read(model, ids[:, :9]))
    with merging_attention(model):
        model.generate(
            ids[:, 9:], attention_mask=torch.ones_like(ids), **as_cache(cache), streamer=streamer, **SETTINGS
        )
    assert streamer.tokens == [*model.generate(ids, **SETTINGS)[0, 9:].tolist(), "end"]


@pytest.mark.parametrize("num_int8", [0, 4])
def test_offloading_changes_nothing(num_int8):
    model = tiny_base("llama")
    ids = random_ids(1, 12)
    cache = hold_as_slots(read(model, ids[:, :9]), int8=slice(2, 2 + num_int8))
    expected = logits_after(model, ids[:, 9:], cache.fork())
    for layer in cache.layers:
        layer.offload()
        layer.prefetch()
    assert torch.equal(logits_after(model, ids[:, 9:], cache), expected)


def test_rows_are_selected():
    model = tiny_base("llama")
    ids = random_ids(3, 10)
    cache = hold_as_slots(read(model, ids), int8=slice(2, 6))
    cache.layers[0].queries = torch.arange(3.0)[:, None, None, None]
    before = {name: getattr(cache.layers[0], name).clone() for name in MergingLayer.TENSORS}
    cache.batch_repeat_interleave(2)
    cache.reorder_cache(torch.tensor([5, 0, 1, 2, 3, 4]))
    cache.batch_select_indices(torch.tensor([0, 2, 5]))
    for name, tensor in before.items():
        assert torch.equal(getattr(cache.layers[0], name), tensor[[2, 0, 2]]), name


def test_int8_slots():
    model = tiny_base("llama")
    ids = random_ids(2, 16)
    exact, rounded = hold_as_slots(read(model, ids[:, :10])), read(model, ids[:, :10])
    hold_as_slots(rounded, int8=slice(2, 6))
    for layer, plain in zip(rounded.layers, exact.layers, strict=True):
        for found, expected in zip(layer.states(), plain.states(), strict=True):
            errors = (found - expected).abs()
            assert (errors[:, :, :2] == 0).all() and (errors[:, :, 6:] == 0).all()
            step = expected.abs().amax(dim=-1, keepdim=True) / 127
            assert (errors <= 0.501 * step).all() and errors[:, :, 2:6].amax(dim=(0, 1, 3)).min() > 0
        assert layer.int8_keys.dtype == torch.int8 and layer.keys.shape[2] == 6 and layer.num_slots == 10
    found, expected = (logits_after(model, ids[:, 10:], cache) for cache in (rounded, exact))
    assert 0 < (found - expected).abs().max() < 0.1
    assert rounded.layers[0].recent_length == 6 and rounded.get_seq_length() == 16


def test_zero_vectors_in_int8():
    layer = MergingLayer()
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        layer.replace(torch.zeros(1, 1, 2, 4, dtype=dtype), torch.zeros(1, 1, 2, 4, dtype=dtype), None, slice(0, 1))
        assert layer.states()[0].tolist() == torch.zeros(1, 1, 2, 4).tolist()


@pytest.mark.parametrize("residual_int8", [False, True])
def test_bytes_are_those_of_the_memory(residual_int8):
    model = tiny_base("llama")
    full = read(model, random_ids(2, 40))
    assert full.num_bytes == 2 * 2 * (2 * 2 * 40 * 8) * 4
    cache = read(model, random_ids(2, 40))
    for layer in cache.layers:
        part = torch.arange(10)
        layer.replace(
            layer.keys[:, :, part], layer.values[:, :, part], torch.zeros(2, 2, 10), slice(2, 2 + 4 * residual_int8)
        )
    storages = {}
    for layer in cache.layers:
        for name in MergingLayer.TENSORS:
            if (tensor := getattr(layer, name)) is not None:
                storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    assert cache.num_bytes == sum(storages.values())
    slot = 2 * 8 * 4
    expected = 10 * 4 + (6 * slot + 4 * (2 * 8 + 2 * 4) if residual_int8 else 10 * slot)
    assert cache.num_bytes == 2 * 2 * 2 * expected


@pytest.mark.parametrize("name", ["llama", "opt"])
def test_queries_are_observed(name):
    model = tiny_base(name)
    ids = random_ids(2, 12)
    cache = MergingCache(model.config)
    cache.observe(5)
    logits_after(model, ids, cache)
    attentions = tiny_base(name, "eager")(ids, output_attentions=True).attentions
    for layer, attention in zip(cache.layers, attentions, strict=True):
        queries = layer.queries
        keys = layer.keys.repeat_interleave(queries.shape[1] // layer.keys.shape[1], dim=1)
        scores = queries @ keys.transpose(2, 3)
        seen = torch.ones(5, 12, dtype=torch.bool).tril(7)
        assert_close(scores.masked_fill(~seen, -torch.inf).softmax(dim=-1), attention[:, :, -5:], **CLOSE)
    cache.observe(0)
    assert cache.layers[0].queries is None


def test_crop_and_reset():
    model = tiny_base("llama")
    ids = random_ids(1, 14)
    cache = hold_as_slots(read(model, ids[:, :8]))
    expected = logits_after(model, ids[:, 8:], cache)
    cache.crop(-4)
    assert cache.get_seq_length() == 10
    assert_close(logits_after(model, ids[:, 10:], cache), expected[:, 2:], **CLOSE)
    for count in (-7, 3):
        with pytest.raises(ValueError, match="`tokens_to_remove` must be between -6"):
            cache.crop(count)
    cache.reset()
    assert cache.num_bytes == 0 and cache.get_seq_length() == 0 and cache.num_slots == [0, 0]
    assert torch.equal(logits_after(model, ids, cache), model(ids).logits)


def hooks_of(model):
    return [hook for module in model.modules() for hook in module._forward_pre_hooks.values()]


@each_base
@each_attention
def test_nothing_stays_behind(name, attn_implementation):
    model = tiny_base(name, attn_implementation)
    before = {module: dict(module.__dict__) for module in model.modules()}
    with pytest.raises(RuntimeError, match="inside"), merging_attention(model):
        with merging_attention(model):
            assert len(hooks_of(model)) == 3  # of two layers, and of the model for what is read
        assert len(hooks_of(model)) == 3 and model.config._attn_implementation == f"merging_{attn_implementation}"
        raise RuntimeError("inside")
    assert model.config._attn_implementation == attn_implementation and not hooks_of(model)
    for module, attributes in before.items():
        assert module.__dict__.keys() == attributes.keys()
        assert all(module.__dict__[key] is value for key, value in attributes.items())


def test_slots_need_their_attention():
    model = tiny_base("llama")
    cache = hold_as_slots(read(model, random_ids(1, 8)))
    with pytest.raises(ValueError, match="with merging_attention"):
        model(random_ids(1, 3), **as_cache(cache))
    # Without slots it is a plain cache.
    cache = MergingCache(model.config)
    assert torch.equal(model(random_ids(1, 8), **as_cache(cache)).logits, model(random_ids(1, 8)).logits)


@pytest.mark.parametrize("inside", [False, True])
def test_saved_caches(inside, tmp_path):
    """Wherever it was saved, a compressed cache is read within the attention that weighs slots, and only there."""
    model, ids = tiny_base("llama"), random_ids(1, 11)
    cache = hold_as_slots(read(model, ids[:, :8]), int8=slice(2, 6))
    for layer in cache.layers:
        layer.log_mass += 1
    with merging_attention(model) if inside else nullcontext():
        torch.save(cache, tmp_path / "cache.pt")
        copied = copy.deepcopy(cache)
    loaded = torch.load(tmp_path / "cache.pt", weights_only=False)
    expected = logits_after(model, ids[:, 8:], cache)
    for other in (loaded, copied):
        assert torch.equal(logits_after(model, ids[:, 8:], other.fork()), expected)
        with pytest.raises(ValueError, match="with merging_attention"):
            model(ids[:, 8:], **as_cache(other))


def test_a_failing_switch_leaves_nothing(monkeypatch):
    model = tiny_base("llama")
    attention = model.model.layers[1].self_attn
    monkeypatch.setattr(attention, "register_forward_pre_hook", None)
    with pytest.raises(TypeError), merging_attention(model):
        pass
    assert model.config._attn_implementation == "sdpa" and not hooks_of(model)


def test_unsupported_bases():
    for implementation in ("flash_attention_2", "flex_attention"):
        model = tiny_base("llama")
        model.config._attn_implementation_internal = implementation
        with pytest.raises(ValueError, match=f"'eager' or 'sdpa' can add, got '{implementation}'"):
            with merging_attention(model):
                pass
        assert not hooks_of(model)
    model = tiny_base("mistral", sliding_window=16)
    with pytest.raises(ValueError, match="`sliding_window` must be None, got 16"), merging_attention(model):
        pass
    model = tiny_base("qwen2", use_sliding_window=True, sliding_window=8, max_window_layers=1)
    with pytest.raises(ValueError, match="`sliding_window` must be None, got 8"), merging_attention(model):
        pass
    model = tiny_base("gpt2", add_cross_attention=True)
    with pytest.raises(ValueError, match="`add_cross_attention` must be False"), merging_attention(model):
        pass
    model = tiny_base("llama")
    model.config.model_type = "bloom"
    with pytest.raises(ValueError, match="one of gpt2, llama, .* got 'bloom'"), merging_attention(model):
        pass


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@each_attention
def test_half_precision(dtype, attn_implementation):
    """Empty slots hide in every dtype, and rows of nothing but padding are no NaN."""
    model = tiny_base("llama", attn_implementation).to(dtype)
    ids = random_ids(2, 12)
    mask = torch.ones_like(ids)
    mask[1, :9] = 0
    positions = (mask.cumsum(dim=1) - 1).clamp_min(0)
    cache = read(model, ids[:, :8], attention_mask=mask[:, :8], position_ids=positions[:, :8])
    hold_as_slots(cache, mask[:, :8])
    found = logits_after(model, ids[:, 8:], cache, attention_mask=mask, position_ids=positions[:, 8:])
    assert found.isfinite().all()
    assert_close(found[1:, 1:], model(ids[1:, 9:]).logits, rtol=0.05, atol=0.05)


def test_all_bases_are_tested():
    from auto_compressor.activation_compressor.merging_cache import BASES as supported

    assert set(supported) == set(BASES)
    assert math.exp(EMPTY) == 0
