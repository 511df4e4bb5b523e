"""The cache of states: any way to cut a text gives the logits of the whole, and `generate` works on it."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from modeling_testing import DOUBLE, EXACT, pad_rows, random_ids
from test_adaptive_byte import every_model, tiny_model
from torch.testing import assert_close
from transformers import DynamicCache, TextStreamer

from auto_compressor import ByteTokenizer, RecurrentCache


@torch.no_grad()
def read_in_pieces(model, ids, lengths, mask=None):
    """Logits of all pieces, and the cache behind the last one; the mask of a piece covers what came before it."""
    cache, logits, seen = None, [], 0
    for piece in ids.split(lengths, dim=1):
        seen += piece.shape[1]
        given = {} if mask is None else {"attention_mask": mask[:, :seen]}
        outputs = model(piece, cache=cache, use_cache=True, **given)
        cache = outputs.cache
        assert cache.get_seq_length() == seen
        logits.append(outputs.logits)
    return torch.cat(logits, dim=1), cache


def assert_same_states(found: RecurrentCache, expected: RecurrentCache):
    assert_close([layer.states for layer in found.layers], [layer.states for layer in expected.layers], **DOUBLE)


def cuts(length: int):
    """Lengths of pieces that make up `length`."""
    return st.sets(st.integers(1, length - 1)).map(
        lambda places: [b - a for a, b in zip([0, *sorted(places)], [*sorted(places), length], strict=True)]
    )


@pytest.mark.parametrize("num_levels", [2, 3, 4])
@torch.no_grad()
def test_every_level_fires(num_levels):
    """Else the tests below would show little: patches of several units, different rows, and single steps that reach
    the top."""
    borders = tiny_model(num_levels)(random_ids(3, 40)).border_masks
    assert len(borders) == num_levels - 1
    for mask in borders:
        counts = mask.sum(dim=1)
        assert (counts > 3).all() and (counts < mask.shape[1] - 1).all()
        assert not torch.equal(mask[0], mask[1]) and not torch.equal(mask[1], mask[2])


@every_model
@torch.no_grad()
def test_single_steps_equal_the_whole(name):
    model, ids = tiny_model(name), random_ids(3, 40)
    expected = model(ids, use_cache=True)
    logits, cache = read_in_pieces(model, ids, [1] * 40)
    assert_close(logits, expected.logits, **DOUBLE)
    assert_same_states(cache, expected.cache)


@every_model
@settings(deadline=None, max_examples=15)
@given(pieces=cuts(40), starts=st.lists(st.integers(0, 39), min_size=3, max_size=3))
@torch.no_grad()
def test_pieces_equal_the_whole(name, pieces, starts):
    """With padding on the left, so that rows begin in different pieces."""
    model, ids = tiny_model(name), random_ids(3, 40)
    mask = (torch.arange(40) >= torch.tensor(starts)[:, None]).long()
    expected = model(ids, attention_mask=mask, use_cache=True)
    logits, cache = read_in_pieces(model, ids, pieces, mask)
    assert_close(logits[mask.bool()], expected.logits[mask.bool()], **DOUBLE)
    assert_same_states(cache, expected.cache)


@every_model
@settings(deadline=None, max_examples=15)
@given(mask=st.lists(st.lists(st.booleans(), min_size=20, max_size=20), min_size=2, max_size=2))
@torch.no_grad()
def test_padding_anywhere(name, mask):
    """Rows with any columns left out are the rows of the others."""
    model, ids, mask = tiny_model(name), random_ids(2, 20), torch.tensor(mask)
    outputs = model(ids, attention_mask=mask, use_cache=True)
    for row in range(2):
        kept = ids[row : row + 1, mask[row]]
        if kept.numel():
            alone = model(kept, use_cache=True)
            assert_close(outputs.logits[row, mask[row]], alone.logits[0], **DOUBLE)
            picked = copy.deepcopy(outputs.cache)
            picked.batch_select_indices(torch.tensor([row]))
            assert_same_states(picked, alone.cache)


@every_model
@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_padding_of_a_new_piece(name, side):
    """A mask of the shape of the new tokens is enough; a row without any stays where it is."""
    model = tiny_model(name)
    first = random_ids(3, 9)
    pieces = [random_ids(1, length, seed=length) for length in (6, 3)]
    ids, mask = pad_rows([*pieces, random_ids(1, 1)], side)
    mask[2] = 0
    cache = model(first, use_cache=True).cache
    before = copy.deepcopy(cache)
    outputs = model(ids, attention_mask=mask, cache=cache, use_cache=True)
    for row, piece in enumerate(pieces):
        expected = model(torch.cat([first[row : row + 1], piece], dim=1)).logits[0, 9:]
        assert_close(outputs.logits[row, mask[row].bool()], expected, **DOUBLE)
    for found in (before, outputs.cache):
        found.batch_select_indices(torch.tensor([2]))
    assert_same_states(outputs.cache, before)


@pytest.mark.parametrize("num_levels", [2, 3, 4])
@torch.no_grad()
def test_a_level_steps_only_where_the_one_below_fires(num_levels):
    model, ids = tiny_model(num_levels), random_ids(1, 40)
    borders = model(ids).border_masks
    calls = [0] * num_levels
    for index, level in enumerate(model.levels):
        level.encoder.register_forward_hook(lambda *_, index=index: calls.__setitem__(index, calls[index] + 1))
    read_in_pieces(model, ids, [1] * 40)
    assert calls == [40, *(int(mask.sum()) for mask in borders)]


@every_model
@torch.no_grad()
def test_rows_of_a_cache(name):
    """`reorder_cache`, `batch_repeat_interleave` and `batch_select_indices` move every state with its row."""
    model, ids, new = tiny_model(name), random_ids(3, 20), random_ids(1, 5, seed=7)
    moves = {
        "reorder_cache": (torch.tensor([2, 0, 0]), [2, 0, 0]),
        "batch_select_indices": (torch.tensor([1]), [1]),
        "batch_repeat_interleave": (2, [0, 0, 1, 1, 2, 2]),
    }
    for method, (argument, rows) in moves.items():
        cache = model(ids, use_cache=True).cache
        getattr(cache, method)(argument)
        logits = model(new.expand(len(rows), -1), cache=cache).logits
        expected = model(torch.cat([ids[rows], new.expand(len(rows), -1)], dim=1)).logits[:, 20:]
        assert_close(logits, expected, **DOUBLE)


@every_model
@torch.no_grad()
def test_reset(name):
    model, ids = tiny_model(name), random_ids(2, 12)
    cache = model(ids, use_cache=True).cache
    cache.reset()
    assert cache.get_seq_length() == 0 and cache.batch_size is None
    assert_close(model(ids, cache=cache).logits, model(ids).logits, **DOUBLE)


@every_model
def test_gradients_end_where_a_window_begins(name):
    """A window that goes on from the one before has the logits of one long window, and the gradients of its own."""
    model, ids = tiny_model(name).train(), random_ids(2, 40)
    first = model(ids[:, :20], use_cache=True)
    assert not any(state.requires_grad for layer in first.cache.layers for state in layer.states.values())
    second = model(ids[:, 20:], labels=ids[:, 20:], cache=first.cache)
    assert_close(second.logits, model(ids).logits[:, 20:], **DOUBLE)
    second.loss.backward()
    assert first.logits.grad_fn is not None
    assert all(
        parameter.grad is not None for name, parameter in model.named_parameters() if name != "padding_parameters"
    )


@every_model
@torch.no_grad()
def test_bad_calls(name):
    model, ids = tiny_model(name), random_ids(2, 6)
    cache = model(ids, use_cache=True).cache
    bad = [
        ("input_ids", {"input_ids": ids.float()}),
        ("input_ids", {"input_ids": ids[0]}),
        ("input_ids", {"input_ids": ids[:, :0]}),
        ("attention_mask", {"input_ids": ids, "attention_mask": torch.ones(2, 7)}),
        ("input_ids", {"input_ids": ids > 0}),
        ("labels", {"input_ids": ids, "labels": ids[:, 1:]}),
        ("labels", {"input_ids": ids, "labels": ids.float()}),
        ("cache", {"input_ids": ids[:1], "cache": cache}),
        ("cache", {"input_ids": ids, "cache": RecurrentCache(9)}),
        ("cache", {"input_ids": ids, "cache": DynamicCache()}),
    ]
    for argument, call in bad:
        with pytest.raises(ValueError, match=f"`{argument}`"):
            model(**call)
    assert cache.get_seq_length() == 6  # as it was
    with pytest.raises(IndexError):
        model(ids + 257)
    mask = torch.tensor([[0, 1, 1, 1, 1, 1]] * 2)
    model(ids.masked_fill(mask == 0, 999), attention_mask=mask)  # padding may be any id
    expected = model(ids, labels=ids)
    for dtype in (torch.uint8, torch.int32):
        assert_close(model(ids.to(dtype), labels=ids.to(dtype)).loss, expected.loss, **EXACT)


GREEDY = {"do_sample": False}
STRATEGIES = {
    "greedy": GREEDY,
    "sampling": {"do_sample": True, "temperature": 0.7},
    "top_k": {"do_sample": True, "top_k": 5},
    "top_p": {"do_sample": True, "top_p": 0.6},
    "beams": {"do_sample": False, "num_beams": 4},
    "beam_sampling": {"do_sample": True, "num_beams": 3, "num_return_sequences": 3},
}


@pytest.mark.parametrize("strategy", STRATEGIES)
@every_model
def test_generation_with_and_without_a_cache(name, strategy):
    model = tiny_model(name)
    ids, mask = pad_rows([random_ids(1, 7), random_ids(1, 4, seed=1)], "left")
    found = []
    for use_cache in (True, False):
        torch.manual_seed(0)
        settings = STRATEGIES[strategy] | {"use_cache": use_cache, "max_new_tokens": 20}
        found.append(model.generate(ids, attention_mask=mask, **settings))
    assert torch.equal(*found)
    assert found[0].shape[1] > 12


def test_beams_use_the_order():
    """Without moving the states with the beams, the tokens would be others."""
    model, ids = tiny_model(3), random_ids(2, 7)
    settings = {"num_beams": 4, "max_new_tokens": 20, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    expected = model.generate(ids, **settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RecurrentCache, "reorder_cache", lambda cache, beam_idx: None)
        assert not torch.equal(model.generate(ids, **settings), expected)


@every_model
def test_prompts_of_different_lengths(name):
    model = tiny_model(name)
    rows = [random_ids(1, length, seed=length) for length in (9, 5, 1)]
    ids, mask = pad_rows(rows, "left")
    ids = ids.masked_fill(mask == 0, 257)  # the padding of the tokenizer has no embedding
    batched = model.generate(ids, attention_mask=mask, max_new_tokens=25, **GREEDY)
    for row, prompt in enumerate(rows):
        alone = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=25, **GREEDY)
        assert batched[row, 9:].tolist() == alone[0, prompt.shape[1] :].tolist()


@every_model
def test_generation_stops_at_the_end_of_a_text(name):
    """Rows that have ended are padded, and others go on as if alone."""
    model = tiny_model(name)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        model.lm_head.weight[256] = torch.randn(16, generator=generator, dtype=torch.float64) * 4
    prompts = random_ids(12, 6)
    batched = model.generate(prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=30, **GREEDY)[:, 6:]
    ends = [row.tolist().index(256) for row in batched if 256 in row]
    assert ends and min(ends) < batched.shape[1] - 1  # some ended, others went on
    for prompt, row in zip(prompts.split(1), batched.tolist(), strict=True):
        alone = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=30, **GREEDY)[0, 6:]
        alone = alone.tolist()
        assert row[: len(alone)] == alone and set(row[len(alone) :]) <= {256}
        assert len(alone) == 30 or alone[-1] == 256


def test_streaming(capsys):
    model, tokenizer = tiny_model(3), ByteTokenizer()
    prompt = tokenizer("In the beginning ", add_special_tokens=False, return_tensors="pt")
    ids = model.generate(**prompt, max_new_tokens=20, streamer=TextStreamer(tokenizer), **GREEDY)
    assert capsys.readouterr().out.strip() == tokenizer.decode(ids[0]).strip()


def test_teacher_forced_borders_have_no_cache():
    model, ids = tiny_model(3, border_mode="teacher_forced"), random_ids(2, 6)
    assert model(ids).cache is None
    for bad in ({"use_cache": True}, {"cache": RecurrentCache(3)}):
        with pytest.raises(ValueError, match="teacher_forced"):
            model(ids, **bad)
    for use_cache in (True, False):
        with pytest.raises(ValueError, match="teacher_forced"):
            model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=2, use_cache=use_cache)


@torch.no_grad()
def cache_of_text(model, ids, mask=None):
    return model(ids, attention_mask=mask, use_cache=True).cache


@every_model
@pytest.mark.parametrize("num_beams", [1, 3])
def test_a_cache_and_the_whole_text(name, num_beams):
    """Left-padded: the tokens after a cache are those without one; rows of the cache follow the beams."""
    model, how = tiny_model(name), GREEDY | {"max_new_tokens": 12, "num_beams": num_beams}
    ids, mask = pad_rows([random_ids(1, 12), random_ids(1, 9, seed=1)], "left")
    expected = model.generate(ids, attention_mask=mask, **how)
    for seen in (1, 8, 11):
        cache = cache_of_text(model, ids[:, :seen], mask[:, :seen])
        assert torch.equal(model.generate(ids, attention_mask=mask, cache=cache, **how), expected)
        cache = cache_of_text(model, ids[:, :seen], mask[:, :seen])
        alone = model.generate(ids[:, seen:], attention_mask=mask, cache=cache, **how)
        assert torch.equal(alone, expected[:, seen:])


@every_model
def test_prompts_that_do_not_fit_a_cache(name):
    model, ids, how = tiny_model(name), random_ids(2, 10), GREEDY | {"max_new_tokens": 4}
    bad = [(ids, "a token more than the 10"), (ids[:, :4], "must begin with the 10"), (ids[:1].repeat(3, 2), "3 rows")]
    bad += [(random_ids(2, 12, seed=3), r"must begin with the 10 tokens .* `attention_mask`")]
    for prompt, message in bad:
        with pytest.raises(ValueError, match=message):
            model.generate(prompt, cache=cache_of_text(model, ids), **how)


@every_model
def test_hash_of_a_text(name):
    """It tells texts apart that differ in one token, their order or zeros in front, and keeps its size."""
    model, ids = tiny_model(name), random_ids(1, 9)
    others = [ids.flip(1), torch.cat([ids[:, :-1], ids[:, -1:] ^ 1], dim=1), torch.nn.functional.pad(ids, (1, 0))]
    hashes = [cache_of_text(model, text).layers[0].states["text"] for text in (ids, *others)]
    assert len({int(number) for number in hashes}) == 4 and all(number.shape == (1,) for number in hashes)


@every_model
def test_prompts_that_are_padded_on_the_right_are_refused(name):
    model, ids = tiny_model(name), random_ids(2, 9)
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    with pytest.raises(ValueError, match=r"rows \[1\] end with padding: pad on the left"):
        model.generate(ids, attention_mask=mask, max_new_tokens=2)
