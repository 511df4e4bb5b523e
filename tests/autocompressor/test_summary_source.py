"""What summary vectors are made of (`summary_source`, `summary_residual`) and how large they are (`summary_scale`)."""

import random

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from modeling_testing import (
    AUTOCOMPRESSORS,
    CLOSE,
    DOUBLE,
    EXACT,
    both_families,
    gradients,
    opt_and_llama,
    pad_rows,
    plain_path,
    random_ids,
    tiny_autocompressor,
    tiny_base,
    tiny_config,
    variable_autocompressor,
)
from peft import get_peft_model
from test_prefix_keys import random_call, run
from torch.testing import assert_close

from args import ModelArguments
from auto_compressor.autocompressor.family import lora_config
from auto_compressor.autocompressor.loading import load
from auto_compressor.autocompressor.summaries import last_tokens, window_means


SOURCES = {
    "means": {"summary_source": "means"},
    "both": {"summary_source": "both"},
    "residual": {"summary_residual": True},
    "residual means": {"summary_source": "means", "summary_residual": True},
}
sources = pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
scales = pytest.mark.parametrize("scale", ["normalized", "learned"])


def window_means_of_row(states: torch.Tensor, num_windows: int) -> torch.Tensor:
    """The definition for one row without padding, `(length, dim)` -> `(num_windows, dim)`, window by window."""
    length, means = len(states), torch.zeros(num_windows, states.shape[1], dtype=states.dtype)
    for window in range(num_windows):
        inside = [token for token in range(length) if token * num_windows // max(length, num_windows) == window]
        if inside:
            means[window] = states[inside].mean(dim=0)
    return means


def expected_vectors(model, ids: torch.LongTensor, num_windows: int) -> torch.Tensor:
    """Summary vectors of one segment, `(rows, num_windows, dim)`, from what the base model alone reads."""
    vectors = torch.zeros(len(ids), num_windows, model.embedding_dim, dtype=model.dtype)
    with torch.no_grad():
        if model.config.summary_source != "tokens":
            states = model(ids, use_cache=False).last_hidden_state
            vectors += torch.stack([window_means_of_row(row, num_windows) for row in states])
        if model.config.summary_source != "means":
            plain = tiny_autocompressor(model.config.base_model_type, model.dtype)
            plain.load_state_dict(model.state_dict(), strict=False)
            vectors += plain(ids, output_softprompt=True, max_summary_length=num_windows).softprompt
        if model.config.summary_residual:
            recent = model.get_input_embeddings()(ids[:, -num_windows:])
            vectors = recent + vectors @ model.summary_projection.weight.T
    return vectors


# Means over windows


def test_windows_are_equal_and_follow_one_another():
    states = torch.randn(2, 12, 3, dtype=torch.float64)
    means, sizes = window_means(states, torch.ones(1, 12, dtype=torch.long), 4)
    assert_close(means, states.unflatten(1, (4, 3)).mean(dim=2), **DOUBLE)
    assert sizes.tolist() == [[3, 3, 3, 3]]


@pytest.mark.parametrize("num_windows", [1, 3, 5, 8])
def test_windows_of_padded_rows_are_those_of_the_rows_alone(num_windows):
    lengths = [8, 7, 5, 2, 1, 0]
    rows = [torch.randn(length, 3, dtype=torch.float64) for length in lengths]
    for side in ("left", "right"):
        states, mask = torch.full((6, 8, 3), 99.0, dtype=torch.float64), torch.zeros(6, 8, dtype=torch.long)
        for index, row in enumerate(rows):
            where = slice(8 - len(row), 8) if side == "left" else slice(0, len(row))
            states[index, where], mask[index, where] = row, 1
        means, sizes = window_means(states, mask, num_windows)
        assert_close(means, torch.stack([window_means_of_row(row, num_windows) for row in rows]), **DOUBLE)
        assert sizes.sum(dim=1).tolist() == lengths
        assert all(row.max() - row[row > 0].min() <= 1 for row in sizes[:-1])
        # Rows with fewer tokens than windows leave the last ones empty.
        assert (sizes > 0).sum(dim=1).tolist() == [min(length, num_windows) for length in lengths]


@pytest.mark.parametrize("number", [1, 3, 8])
def test_last_tokens_of_padded_rows_are_those_of_the_rows_alone(number):
    embeds = torch.randn(4, 6, 3, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]])
    found = last_tokens(embeds, mask, number)
    for row, expected in enumerate([embeds[0], embeds[1, 2:], embeds[2, :2], embeds[3, :0]]):
        kept = expected[-number:]
        assert_close(found[row], torch.cat([kept, torch.zeros(number - len(kept), 3)]), **DOUBLE)


# The vectors of a segment


@opt_and_llama
@pytest.mark.parametrize("source", ["tokens", "means", "both"])
@torch.no_grad()
def test_a_new_model_reads_the_last_tokens_of_a_segment(name, source, tmp_path):
    tiny_base(name).save_pretrained(tmp_path)
    fields = {"summary_length": 3, "summary_source": source, "summary_scale": "learned", "summary_residual": True}
    model, ids = load(AUTOCOMPRESSORS[name][1], str(tmp_path), **fields), random_ids(2, 12)
    recent = model.get_input_embeddings()(torch.cat([ids[:, 3:6], ids[:, 9:]], dim=1))
    assert_close(model.compress(ids, segment_lengths=6), recent, **EXACT)
    recent = model.get_input_embeddings()(ids[:, -2:])
    assert_close(model.compress(ids, segment_lengths=12, max_summary_length=2), recent, **EXACT)


@sources
@opt_and_llama
def test_vectors_of_a_segment(name, source):
    model, ids = tiny_autocompressor(name, torch.float64, **source), random_ids(2, 11)
    if name in ("opt", "llama"):
        assert_close(model(ids, output_softprompt=True).softprompt, expected_vectors(model, ids, 3), **DOUBLE)
        few = model(ids, output_softprompt=True, max_summary_length=2).softprompt
        assert_close(few, expected_vectors(model, ids, 2), **DOUBLE)
    compressed = model.compress(ids, segment_lengths=[6, 5])
    first = model(ids[:, :6], output_softprompt=True).softprompt
    second = model(ids[:, 6:], output_softprompt=True, softprompt=first).softprompt
    assert_close(compressed, second, **DOUBLE)
    assert compressed.shape == (2, 6, model.embedding_dim)


@both_families
def test_means_read_no_summary_embeddings(name):
    model = tiny_autocompressor(name, summary_source="means")
    assert model.embed_summary is None
    assert tiny_autocompressor(name, summary_source="both").embed_summary.num_embeddings == 3


@both_families
def test_a_segment_shorter_than_the_windows_has_a_mean_for_each_token(name):
    model, ids = tiny_autocompressor(name, torch.float64, summary_source="means"), random_ids(2, 2)
    outputs = model(ids, output_softprompt=True)
    assert_close(outputs.softprompt, outputs.last_hidden_state, **DOUBLE)
    both = tiny_autocompressor(name, torch.float64, summary_source="both")
    assert both(ids, output_softprompt=True).softprompt.shape[1] == 3


@sources
@pytest.mark.parametrize("name", AUTOCOMPRESSORS)
@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_padded_rows_are_compressed_as_alone(name, side, source):
    model = tiny_autocompressor(name, torch.float64, **source, summary_scale="learned")
    rows = [random_ids(1, length, seed=length) for length in (10, 6, 2)]
    ids, mask = pad_rows(rows, side)
    text = random_ids(3, 4)
    vectors, kept = model.compress(ids, mask, segment_lengths=[5, 5], return_attention_mask=True)
    logits = model(text, softprompt=vectors, softprompt_attention_mask=kept, use_cache=False).logits
    for row in range(3):
        # A segment is where the padding is too: the row's own segments are its parts within [5, 5].
        parts = [int(part.sum()) for part in mask[row].split(5) if part.any()]
        alone = model.compress(rows[row], segment_lengths=parts)
        assert_close(vectors[row][kept[row].bool()], alone[0], **DOUBLE)
        expected = model(text[row : row + 1], softprompt=alone, use_cache=False).logits
        assert_close(logits[row : row + 1], expected, **DOUBLE)


@sources
@both_families
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_keys_of_the_vectors_are_made_once(name, source, training, without_float32):
    model = tiny_autocompressor(name, torch.float64, **source, summary_scale="learned").train(training)
    for seed in range(6):
        call = random_call(model, False, seed)
        with plain_path():
            expected = run(model, call)
        assert_close(run(model, call), expected, **DOUBLE)


@sources
@both_families
def test_gradients_reach_what_made_the_means(name, source):
    model = tiny_autocompressor(name, torch.float64, **source, summary_scale="learned").train()
    ids = random_ids(2, 9)
    labels = ids.clone()
    labels[:, :5] = -100
    found = gradients(model, model(ids, labels=labels, segment_lengths=[4, 5], use_cache=False).loss)
    embeddings = next(name for name in found if name.endswith("embed_tokens.weight"))
    only_first = [token for token in ids[:, :4].flatten().tolist() if not (ids[:, 4:] == token).any()]
    assert found[embeddings][only_first].abs().sum(dim=1).min() > 0
    assert found["summary_norm.weight"].abs().min() > 0


@sources
@both_families
@torch.no_grad()
def test_vectors_do_not_see_later_segments(name, source):
    model, ids = tiny_autocompressor(name, **source), random_ids(1, 12)
    changed = ids.clone()
    changed[:, 6:] = random_ids(1, 6, seed=1)
    first, other = (model.compress(tokens, segment_lengths=6) for tokens in (ids, changed))
    assert_close(first[:, :3], other[:, :3], **CLOSE)
    assert (first[:, 3:] - other[:, 3:]).abs().max() > 0.01


@sources
@both_families
@torch.no_grad()
def test_rmt_and_generation(name, source):
    model, ids = tiny_autocompressor(name, **source), random_ids(2, 12)
    options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    for accumulate in (True, False):
        model.config.accumulate_summary = accumulate
        compressed = model.compress(ids[:, :8], segment_lengths=4)
        assert compressed.shape[1] == (6 if accumulate else 3)
        whole = model.generate(ids, segment_lengths=[4, 4, 4], **options)
        parts = model.generate(ids[:, 8:], softprompt=compressed, **options)
        assert whole[:, 12:].tolist() == parts[:, 4:].tolist()


# Their size


@scales
@opt_and_llama
@torch.no_grad()
def test_a_new_model_makes_vectors_as_large_as_embeddings(name, scale, tmp_path):
    tiny_base(name).save_pretrained(tmp_path)
    _, model_class, *_ = AUTOCOMPRESSORS[name]
    model = model_class.from_pretrained(tmp_path, summary_length=3, summary_scale=scale)
    expected = model.get_input_embeddings().weight.square().mean().sqrt()
    vectors = model.compress(random_ids(2, 12), segment_lengths=6)
    assert_close(vectors.square().mean(dim=-1).sqrt(), expected.expand(2, 6), rtol=1e-3, atol=0)
    assert [name for name, _ in model.summary_norm.named_parameters()] == ["weight"] * (scale == "learned")


def test_embeddings_of_gemma_are_scaled_after_the_look_up():
    model = AUTOCOMPRESSORS["gemma"][1](tiny_config("gemma", summary_scale="learned"))
    embedded = model.get_input_embeddings()(torch.arange(60)).square().mean().sqrt()
    assert_close(model.summary_norm.weight[0], embedded, rtol=1e-3, atol=0)


@torch.no_grad()
def test_the_direction_stays():
    plain, scaled = (tiny_autocompressor("llama", torch.float64, summary_scale=scale) for scale in (None, "learned"))
    scaled.load_state_dict(plain.state_dict(), strict=False)
    scaled.summary_norm.weight.fill_(0.5)
    ids = random_ids(2, 6)
    vectors, rescaled = (model(ids, output_softprompt=True).softprompt for model in (plain, scaled))
    assert_close(rescaled, 0.5 * torch.nn.functional.rms_norm(vectors, (24,), eps=1e-6), **DOUBLE)


@scales
@torch.no_grad()
def test_vectors_of_variable_number_are_scaled(scale):
    model = variable_autocompressor("llama", summary_scale=scale)
    model.summary_norm.weight.fill_(0.5)
    vectors, mask = model.compress(random_ids(3, 12), segment_lengths=6, return_attention_mask=True)
    sizes = vectors.square().mean(dim=-1).sqrt()[mask.bool()]
    assert_close(sizes, torch.full_like(sizes, 0.5), rtol=1e-3, atol=0)


@scales
@sources
@opt_and_llama
@torch.no_grad()
def test_saved_and_loaded(name, source, scale, tmp_path):
    model = tiny_autocompressor(name, **source, summary_scale=scale)
    model.save_pretrained(tmp_path)
    loaded = load(type(model), str(tmp_path))
    assert {field: getattr(loaded.config, field) for field in source} == source
    assert loaded.config.summary_scale == scale
    assert [name for name, _ in loaded.summary_norm.named_parameters()] == ["weight"] * (scale == "learned")
    ids = random_ids(2, 8)
    assert_close(loaded.compress(ids, segment_lengths=4), model.compress(ids, segment_lengths=4), **EXACT)


@both_families
def test_lora_trains_and_saves_a_learned_scale_only(name):
    for scale, learned in ((None, []), ("normalized", []), ("learned", ["summary_norm"])):
        model = tiny_autocompressor(name, summary_source="means", summary_scale=scale)
        adapted = get_peft_model(model, lora_config(model, ModelArguments(lora=True)))
        assert (adapted.peft_config["default"].modules_to_save or []) == learned
        trained = [path for path, parameter in adapted.named_parameters() if parameter.requires_grad]
        assert any("summary_norm" in path for path in trained) == bool(learned)


@both_families
def test_lora_trains_and_saves_the_projection_in_full(name):
    model = tiny_autocompressor(name, summary_source="means", summary_residual=True)
    for targets in (["q_proj"], ["all-linear"]):
        model_args = ModelArguments(lora=True, lora_target_modules=targets)
        adapted = get_peft_model(model, lora_config(model, model_args))
        trained = {path for path, parameter in adapted.named_parameters() if parameter.requires_grad}
        own = {path.split("summary_projection")[1] for path in trained if "summary_projection" in path}
        assert own == {".modules_to_save.default.weight"}
        model = adapted.unload()


# Bad input


@pytest.mark.parametrize("fields", [{"summary_source": "mean"}, {"summary_scale": "none"}])
def test_unknown_fields(fields):
    with pytest.raises((ValueError, StrictDataclassError), match=next(iter(fields))):
        tiny_config("llama", **fields)


def test_a_variable_number_is_made_of_no_means():
    with pytest.raises((ValueError, StrictDataclassError), match="`summary_source` must be 'tokens'"):
        variable_autocompressor("llama", summary_source="means")


def test_a_variable_number_is_no_difference():
    with pytest.raises((ValueError, StrictDataclassError), match="`summary_residual` must be False"):
        variable_autocompressor("llama", summary_residual=True)


@sources
def test_a_segment_that_began_in_a_cache_cannot_be_summarised(source):
    model, ids = tiny_autocompressor("llama", **source), random_ids(1, 8)
    cache = model(ids[:, :5], use_cache=True).cache
    with pytest.raises(ValueError, match="`output_softprompt` must be False where `cache` holds text"):
        model(ids[:, 5:], cache=cache, output_softprompt=True)
    random.seed(0)
    assert model(ids[:, 5:], cache=cache).logits.shape[1] == 3
