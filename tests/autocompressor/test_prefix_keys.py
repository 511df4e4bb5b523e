"""Keys of summary vectors, which later segments attend to: equal to reading all vectors again, and read once."""

import random
from contextlib import contextmanager
from unittest.mock import patch

import pytest
import torch
from modeling_testing import (
    DOUBLE,
    both_families,
    gradients,
    opt_and_llama,
    plain_path,
    random_ids,
    random_softprompt,
    segmented_ids,
    tensors_of,
    tiny_autocompressor,
    variable_autocompressor,
)
from torch.testing import assert_close
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, QuantizedLayer

from auto_compressor.autocompressor.segments import PrefixKeys
from auto_compressor.autocompressor.softprompt_cache import PrefixedLayer, SoftpromptCache


FIXED, VARIABLE = 3, 4  # vectors of a segment, in training
fixed_and_variable = pytest.mark.parametrize("variable", [False, True], ids=["fixed", "variable"])
bases = pytest.mark.parametrize("name", ["opt", "llama", "mistral", "gemma"])
ORDINARY = {"ordinary_summary_positions": True}
positions = pytest.mark.parametrize("fields", [{}, ORDINARY], ids=["", "ordinary"])


def make_model(name: str, variable: bool, dtype: torch.dtype = torch.float64, **fields):
    make = variable_autocompressor if variable else tiny_autocompressor
    return make(name, dtype, **fields)


def random_lengths(rng: random.Random, longest: int = 5) -> list[int]:
    return [rng.randint(2, longest) for _ in range(rng.randint(2, 4))]


def random_mask(rng: random.Random, rows: int, lengths: list[int]) -> torch.LongTensor | None:
    """No padding, or padding on a side of each row, which may take whole segments."""
    side = rng.choice([None, "left", "right"])
    if side is None:
        return None
    mask = torch.ones(rows, sum(lengths), dtype=torch.long)
    for row in range(1, rows):
        padding = rng.randint(1, sum(lengths) - 2)
        mask[row, slice(padding) if side == "left" else slice(-padding, None)] = 0
    return mask


def random_prefix(rng: random.Random, model, rows: int) -> dict[str, torch.Tensor]:
    """No softprompt, or one with all vectors, a mask or weights; of one row or of all."""
    kind, rows = rng.choice(["none", "all", "mask", "weights"]), rng.choice([1, rows])
    if kind == "none":
        return {}
    prefix = {"softprompt": random_softprompt(model, rows, 3).requires_grad_()}
    if kind == "mask":
        prefix["softprompt_attention_mask"] = torch.tensor([[1, 0, 1], [0, 1, 1], [0, 0, 0]])[:rows]
    if kind == "weights":
        weights = torch.tensor([[1.0, 0.3, 0.6], [0.2, 1, 1], [0.9, 0, 0.5]], dtype=model.dtype)[:rows]
        prefix["softprompt_attention_mask"] = weights.requires_grad_()
    return prefix


def random_call(model, variable: bool, seed: int, rows: int = 3) -> dict:
    rng = random.Random(seed)
    lengths = random_lengths(rng)
    ids = segmented_ids(rows, lengths, seed) if variable else random_ids(rows, sum(lengths), seed=seed)
    mask = random_mask(rng, rows, lengths)
    labels = ids if mask is None else ids.masked_fill(mask == 0, -100)
    call = {"input_ids": ids, "labels": labels, "segment_lengths": lengths, "output_softprompt": rng.random() < 0.5}
    return call | {"attention_mask": mask, "use_cache": False} | random_prefix(rng, model, rows)


def run(model, call: dict) -> tuple[dict, dict]:
    """What is seen of the outputs, and all gradients."""
    outputs = model(**call)
    # A weight on every vector that is seen: they reach the gradients of what made them.
    seen = outputs.softprompt_attention_mask > 0
    vectors = outputs.softprompt.masked_fill(~seen[..., None], 0)
    wave = torch.linspace(-1, 1, vectors[0].numel(), dtype=vectors.dtype).view_as(vectors[0])
    loss = outputs.loss + (vectors * wave).sum()
    given = [value for value in call.values() if isinstance(value, torch.Tensor) and value.requires_grad]
    for value in given:
        value.grad = None
    found = gradients(model, loss) | {f"given {index}": value.grad for index, value in enumerate(given)}
    tensors = tensors_of(outputs) | {"softprompt": vectors.detach()}
    if call["attention_mask"] is not None:
        hidden = call["attention_mask"][..., None] == 0
        tensors |= {key: tensors[key].masked_fill(hidden, 0) for key in ("logits", "last_hidden_state")}
    return tensors, found


def assert_equals_plain_path(model, call: dict):
    with plain_path():
        expected = run(model, call)
    assert_close(run(model, call), expected, **DOUBLE)


@contextmanager
def columns_read(model, columns: list[int]):
    """Appends how many columns each pass sends through the second layer of the base model."""
    layers = next(module for module in model.modules() if isinstance(module, torch.nn.ModuleList))
    hook = layers[1].register_forward_pre_hook(
        lambda module, args, kwargs: columns.append((args[0] if args else kwargs["hidden_states"]).shape[1]),
        with_kwargs=True,
    )
    try:
        yield
    finally:
        hook.remove()


def columns_of(model, call) -> list[int]:
    columns: list[int] = []
    with columns_read(model, columns):
        call()
    return columns


# Equal to the plain path


@bases
@fixed_and_variable
@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_outputs_and_gradients(name, variable, attn_implementation, training, without_float32):
    model = make_model(name, variable, attn_implementation=attn_implementation).train(training)
    for seed in range(6):
        assert_equals_plain_path(model, random_call(model, variable, seed))


@both_families
@pytest.mark.parametrize("truncate_bptt_segments", [1, 2, 3, 4])
def test_gradients_are_cut_as_on_the_plain_path(name, truncate_bptt_segments, without_float32):
    model = make_model(name, True, truncate_bptt_segments=truncate_bptt_segments).train()
    lengths = [3, 4, 2, 3, 4]
    call = {"input_ids": segmented_ids(2, lengths), "segment_lengths": lengths, "attention_mask": None}
    call |= {"labels": call["input_ids"], "output_softprompt": True}
    assert_equals_plain_path(model, call)
    assert_equals_plain_path(model, call | {"softprompt": random_softprompt(model, 2, 2).requires_grad_()})


@both_families
@fixed_and_variable
@positions
@pytest.mark.parametrize("truncate_bptt_segments", [1, 8])
def test_recomputed_segments(name, variable, truncate_bptt_segments, fields, without_float32):
    model = make_model(name, variable, truncate_bptt_segments=truncate_bptt_segments, **fields).train()
    for seed in range(4):
        call = random_call(model, variable, seed)
        model.config.segment_gradient_checkpointing = False
        with plain_path():
            expected = run(model, call)
        model.config.segment_gradient_checkpointing = True
        assert_close(run(model, call), expected, **DOUBLE)


@both_families
@fixed_and_variable
@positions
def test_substeps(name, variable, fields, without_float32):
    """Each begins with the detached vectors of the one before, whose keys are made in its first segment."""
    model, lengths = make_model(name, variable, **fields).train(), [3, 4, 3]
    make_ids = segmented_ids if variable else lambda rows, lengths, seed: random_ids(rows, sum(lengths), seed=seed)

    def substeps():
        carried, results = {}, []
        for seed in range(3):
            ids = make_ids(2, lengths, seed)
            call = {"input_ids": ids, "labels": ids, "segment_lengths": lengths, "output_softprompt": True}
            outputs = model(**call, **carried)
            results.append((tensors_of(outputs), gradients(model, outputs.loss)))
            carried = {"softprompt": outputs.softprompt.detach()}
            carried["softprompt_attention_mask"] = outputs.softprompt_attention_mask.detach()
        return results

    with plain_path():
        expected = substeps()
    assert_close(substeps(), expected, **DOUBLE)


@bases
@fixed_and_variable
@positions
@torch.no_grad()
def test_compress_and_generate(name, variable, fields, without_float32):
    model, ids = make_model(name, variable, **fields), random_ids(2, 13)
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    prefix = {"softprompt": random_softprompt(model, 2, 3), "attention_mask": mask}

    def use():
        compressed = model.compress(ids, segment_lengths=3, return_attention_mask=True, **prefix)
        options = {"max_new_tokens": 4, "output_logits": True, "return_dict_in_generate": True, "eos_token_id": None}
        generated = model.generate(ids, segment_lengths=3, num_beams=2, **options, **prefix)
        seen = compressed[1] > 0
        return compressed[0][seen], compressed[1], generated.sequences, torch.stack(generated.logits)

    with plain_path():
        expected = use()
    assert_close(use(), expected, **DOUBLE)


@bases
@fixed_and_variable
@positions
@pytest.mark.parametrize("with_config", [True, False])
@torch.no_grad()
def test_returned_cache(name, variable, with_config, fields, without_float32):
    """It holds the keys of softprompt and text, remembers the softprompt, and can be cropped, copied and continued."""
    model, lengths = make_model(name, variable, **fields), [3, 4, 5]
    ids = segmented_ids(2, lengths) if variable else random_ids(2, 12)

    def cached():
        cache = DynamicCache(config=model.config) if with_config else DynamicCache()
        model(ids, segment_lengths=lengths, softprompt=random_softprompt(model, 2, 2), cache=cache)
        cache.crop(-2)
        cache.reorder_cache(torch.tensor([1, 0]))
        facts = [cache.get_seq_length(), cache.text_length, cache.compressed_length, cache.softprompt_length]
        tensors = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
        return facts, tensors, cache.softprompt, cache.input_ids, model(ids[:, :2], cache=cache).logits

    with plain_path():
        expected = cached()
    found = cached()
    assert found[0] == expected[0]
    assert_close(found[1:], expected[1:], **DOUBLE)


@both_families
@fixed_and_variable
@torch.no_grad()
def test_hidden_states(name, variable, without_float32):
    model = make_model(name, variable)
    call = {"input_ids": segmented_ids(2, [3, 4, 3]), "segment_lengths": [3, 4, 3], "output_hidden_states": True}
    with plain_path():
        expected = model(**call).hidden_states
    assert_close(model(**call).hidden_states, expected, **DOUBLE)


class RoundedLayer(QuantizedLayer):
    """Holds keys in steps of 1/4; what a pass writes is seen by the pass itself as it was."""

    def __init__(self):
        super().__init__(nbits=4, residual_length=0)

    def _quantize(self, tensor, axis):
        return (tensor * 4).round()

    def _dequantize(self, tensor):
        return tensor / 4


@both_families
@torch.no_grad()
def test_quantised_cache(name, without_float32):
    """Its segment is read with all vectors, whose keys would else be rounded before they are seen."""
    model, ids = make_model(name, False), random_ids(2, 9)

    def cached():
        cache = DynamicCache()
        cache.layers = [RoundedLayer() for _ in range(model.config.num_hidden_layers)]
        return model(ids, segment_lengths=3, cache=cache).logits

    with plain_path():
        expected = cached()
    assert_close(cached(), expected, **DOUBLE)
    assert SoftpromptCache.from_cache(None).is_quantized is False


# Read once


def expected_columns(lengths: list[int], vectors: int, num_softprompt: int, embeddings: int) -> list[int]:
    """Every segment is read with the vectors of the one before and, if fixed, the summary embeddings."""
    unread = [num_softprompt] + [vectors] * (len(lengths) - 1)
    return [before + length + embeddings for before, length in zip(unread, lengths, strict=True)]


@opt_and_llama
@pytest.mark.parametrize("checkpointing", [False, True])
def test_vectors_are_read_once(name, checkpointing):
    lengths = [4, 5, 3, 4, 5]
    model = make_model(name, False, torch.float32, segment_gradient_checkpointing=checkpointing).train()
    ids, softprompt = random_ids(2, sum(lengths)), random_softprompt(model, 2, 2)
    call = {"segment_lengths": lengths, "softprompt": softprompt}
    expected = expected_columns(lengths, FIXED, 2, FIXED)
    assert columns_of(model, lambda: model(ids, output_softprompt=True, **call)) == expected
    assert columns_of(model, lambda: model.compress(ids, **call)) == expected
    expected[-1] -= FIXED  # of the last segment no vectors are asked
    assert columns_of(model, lambda: model(ids, labels=ids, **call).loss.backward())[: len(lengths)] == expected
    generated = columns_of(model, lambda: model.eval().generate(ids, max_new_tokens=3, eos_token_id=None, **call))
    assert generated == [*expected, 1, 1]


@both_families
def test_variable_vectors_are_read_once_where_no_gradient_is_cut(name):
    lengths = [4, 5, 3, 4]
    ids = segmented_ids(2, lengths)
    expected = expected_columns(lengths, VARIABLE, 0, 0)

    def passes(model):
        return [columns for columns in columns_of(model, lambda: model(ids, segment_lengths=lengths)) if columns > 1]

    assert passes(make_model(name, True, truncate_bptt_segments=4).train()) == expected
    with torch.no_grad():
        assert passes(make_model(name, True, truncate_bptt_segments=1).train()) == expected


@both_families
@pytest.mark.parametrize("truncate_bptt_segments", [1, 2])
def test_vectors_behind_a_cut_are_read_once_more(name, truncate_bptt_segments):
    """Those with a gradient are read in every segment, so many as the cut leaves, and once more without it."""
    lengths = [4] * 7
    model = make_model(name, True, truncate_bptt_segments=truncate_bptt_segments).train()
    read = columns_of(model, lambda: model(segmented_ids(2, lengths), segment_lengths=lengths))
    segments = [columns - 4 for columns in read if columns > 1]
    assert segments == [VARIABLE * min(index, truncate_bptt_segments + 1) for index in range(7)]


@both_families
@fixed_and_variable
def test_keys_of_text_are_not_kept(name, variable):
    """The keys that segments hand on are as many as the vectors, and share no memory with others."""
    model, lengths, kept = make_model(name, variable), [4, 5, 4, 3], []
    followed_by = PrefixKeys.followed_by

    def recorded(*args):
        kept.append(followed_by(*args))
        return kept[-1]

    with torch.no_grad(), patch.object(PrefixKeys, "followed_by", recorded):
        summaries = model(segmented_ids(2, lengths), segment_lengths=lengths).summaries
    widths = [summary.vectors.shape[1] for summary in summaries]
    # Nobody comes after the last segment.
    assert [keys.length for keys in kept] == [0, widths[0], sum(widths[:2]), sum(widths[:2])]
    tensors = [tensor for keys in kept for part in keys.parts for layer in part for tensor in layer]
    assert tensors and all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in tensors)


# The plain path stays


DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
LONG = {"rope_type": "longrope", "rope_theta": 10000.0, "factor": 2.0, "original_max_position_embeddings": 32}
LONG |= {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
PLAIN = {
    "layerdrop": ("opt", {"layerdrop": 1e-9}, {}),
    "dynamic rope": ("llama", {"rope_parameters": DYNAMIC}, {}),
    "longrope": ("llama", {"rope_parameters": LONG}, {}),
    "attentions": ("llama", {"attn_implementation": "eager"}, {"output_attentions": True}),
    "attentions by default": ("llama", {"attn_implementation": "eager", "output_attentions": True}, {}),
    "attention to what follows": ("llama", {"is_causal": False}, {}),
}


@pytest.mark.parametrize("case", PLAIN)
def test_where_keys_differ_all_vectors_are_read(case):
    name, fields, options = PLAIN[case]
    model, ids = tiny_autocompressor(name, **fields).train(), random_ids(2, 12)
    assert columns_of(model, lambda: model(ids, segment_lengths=4, **options)) == [7, 10, 10]


def test_dropout_is_drawn_once_for_a_vector():
    """Later segments share it, as a plain model's tokens share that of their context; recomputing draws the same."""
    model, ids = tiny_autocompressor("opt", torch.float64, dropout=0.3).train(), random_ids(2, 12)
    assert columns_of(model, lambda: model(ids, segment_lengths=4)) == [7, 10, 7]
    found = []
    for recomputes in (False, True):
        model.config.segment_gradient_checkpointing = recomputes
        torch.manual_seed(0)
        found.append(run(model, {"input_ids": ids, "labels": ids, "attention_mask": None, "segment_lengths": 4}))
    assert_close(*found, **DOUBLE)


def test_skipped_layers_in_evaluation():
    model, ids = tiny_autocompressor("opt", layerdrop=0.5), random_ids(2, 12)
    assert columns_of(model, lambda: model(ids, segment_lengths=4)) == [7, 10, 7]


@both_families
def test_replaced_vectors(name, without_float32):
    model = make_model(name, False, accumulate_summary=False).train()
    ids = random_ids(2, 12)
    assert columns_of(model, lambda: model(ids, segment_lengths=4)) == [7, 10, 7]
    assert_equals_plain_path(model, random_call(model, False, 1))


@both_families
def test_shape_of_attentions(name):
    """A row for every vector, text token and summary embedding."""
    model, ids = tiny_autocompressor(name, attn_implementation="eager"), random_ids(2, 12)
    attentions = model(ids, segment_lengths=4, output_attentions=True).attentions
    assert [segment[0].shape[-2:] for segment in attentions] == [(7, 7), (10, 10), (10, 10)]


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing")
@both_families
def test_layer_checkpointing(name, without_float32):
    """It drops caches; with it, segments are recomputed or not."""
    model = make_model(name, False).train()
    call = random_call(model, False, 1)
    with plain_path():
        expected = run(model, call)
    model.gradient_checkpointing_enable()
    assert_close(run(model, call), expected, **DOUBLE)
    model.config.segment_gradient_checkpointing = True
    assert_close(run(model, call), expected, **DOUBLE)


def test_the_layer_of_a_segment_joins_keys_once():
    """It is as long, before and after the first keys are written, as a layer that was given all of them in turn."""
    parts = [(torch.randn(2, 3, length, 4), torch.randn(2, 3, length, 4)) for length in (5, 2, 7, 1)]
    layer, plain = PrefixedLayer(*zip(*parts[:2], strict=True)), DynamicLayer()
    for part in parts[:2]:
        plain.update(*part)
    for part in parts[2:]:
        assert layer.get_mask_sizes(3) == plain.get_mask_sizes(3)
        for found, expected in zip(layer.update(*part), plain.update(*part), strict=True):
            assert torch.equal(found, expected)
    assert all(found is expected for found, expected in zip(layer.first, parts[2], strict=True))
