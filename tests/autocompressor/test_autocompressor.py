"""AutoCompressors of every base: the tests of every family, segments, summary vectors, the cache, and bad input."""

import os
import pickle
import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from modeling_testing import (
    AUTOCOMPRESSORS,
    CLOSE,
    DOUBLE,
    EXACT,
    LLAMA_FIELDS,
    VARIABLE_FIELDS,
    AnyAutoCompressorTests,
    HubTests,
    all_autocompressors,
    both_families,
    gradients,
    pad_rows,
    plain_path,
    random_ids,
    random_softprompt,
    randomize_,
    recorded_attention,
    saved_for_backward,
    segmented_ids,
    select_row,
    tensors_of,
    tiny_autocompressor,
    tiny_base,
    tiny_config,
    variable_autocompressor,
)
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from torch.testing import assert_close
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    DynamicCache,
    StableLmConfig,
    StableLmForCausalLM,
    StaticCache,
)

from auto_compressor import AutoCompressorMixin, LlamaAutoCompressorModel, OPTAutoCompressorModel, SoftpromptCache
from auto_compressor.autocompressor import checks as input_checks
from auto_compressor.autocompressor.bases import load_autocompressor
from auto_compressor.autocompressor.configuration_autocompressor import AutoCompressorConfigMixin
from auto_compressor.autocompressor.segments import equal_segment_lengths, resolve_segment_lengths
from auto_compressor.cache_names import as_cache, cache_of


FIXTURES = Path(__file__).parents[1] / "fixtures" / "autocompressor" / "checkpoints"


class AutoCompressorTests(AnyAutoCompressorTests):
    other_fields = {"summary_length": 7, "accumulate_summary": False, "segment_gradient_checkpointing": True}
    bad_fields = [
        ("summary_length", -1),
        ("summary_length", 2.0),
        ("summary_length", "3"),
        ("accumulate_summary", "yes"),
        ("segment_gradient_checkpointing", 1),
        ("vocab_size", "60"),
    ]

    def settings(self, model, batch_size):
        unpadded = self.unpadded_settings(model, batch_size)
        return unpadded + [settings | {"segment_lengths": [4, 3, 4]} for settings in unpadded]

    def unpadded_settings(self, model, batch_size):
        softprompt = random_softprompt(model, batch_size, 4)
        mask = (torch.arange(4 * batch_size).reshape(batch_size, 4) % 3 > 0).long()
        return [
            {},
            {"output_softprompt": True},
            {"softprompt": softprompt},
            {"softprompt": softprompt, "softprompt_attention_mask": mask, "output_softprompt": True},
        ]


class TestOPT(HubTests, AutoCompressorTests):
    name = "opt"


class TestOPTProjected(AutoCompressorTests):
    name = "opt_projected"


class TestLlama(HubTests, AutoCompressorTests):
    name = "llama"


class TestLlamaGrouped(AutoCompressorTests):
    name = "llama_grouped"


class TestMistral(AutoCompressorTests):
    name = "mistral"


class TestQwen2(AutoCompressorTests):
    name = "qwen2"


class TestQwen3(AutoCompressorTests):
    name = "qwen3"


class TestGemma(HubTests, AutoCompressorTests):
    name = "gemma"


# Checkpoints of the base model, and published ones


@all_autocompressors
def test_from_plain_checkpoint(name, tmp_path):
    base = tiny_base(name)
    base.save_pretrained(tmp_path)
    model_class, ids = AUTOCOMPRESSORS[name][1], random_ids(2, 9)

    model = model_class.from_pretrained(tmp_path, summary_length=4)
    weights = model.state_dict()
    # As the text has it: Gemma's is scaled.
    eos_embedding = base.get_input_embeddings()(torch.tensor(model.config.eos_token_id))
    assert torch.equal(weights.pop("embed_summary.weight"), eos_embedding.expand(4, -1))
    assert_close(dict(weights), dict(base.state_dict()), **EXACT)
    assert torch.equal(model(ids).logits, base(ids).logits)

    plain = model_class.from_pretrained(tmp_path, summary_length=0)
    assert plain.embed_summary is None
    outputs = plain(ids, labels=ids)
    assert torch.equal(outputs.logits, base(ids).logits)
    assert_close(outputs.loss, base(ids, labels=ids).loss, **EXACT)
    assert outputs.softprompt.shape == (2, 0, eos_embedding.shape[0])
    mask = torch.ones_like(ids)
    mask[0, :3], mask[1, 4], mask[1, 7:] = 0, 0, 0
    # OPT gives padding its row 1, as here; Llama counts positions without the mask, unless it generates.
    counted = {} if name.startswith("opt") else {"position_ids": mask.cumsum(dim=1) * mask - 1}
    padded = plain(ids, attention_mask=mask).logits
    assert_close(padded, base(ids, attention_mask=mask, **counted).logits, **CLOSE)


@both_families
@pytest.mark.parametrize("eos_token_id", [7, [9, 2], None])
def test_summary_starts_as_eos(name, eos_token_id, tmp_path):
    _, model_class, _, _ = AUTOCOMPRESSORS[name]
    new = model_class(tiny_config(name, eos_token_id=eos_token_id))
    tiny_base(name, eos_token_id=eos_token_id).save_pretrained(tmp_path)
    for model in (new, model_class.from_pretrained(tmp_path)):
        summary, tokens = model.embed_summary.weight, model.get_input_embeddings().weight
        if eos_token_id is None:
            assert summary.isfinite().all() and summary.std() > 0
        else:
            row = eos_token_id if isinstance(eos_token_id, int) else eos_token_id[0]
            assert torch.equal(summary, tokens[row].expand_as(summary))
    assert new.get_input_embeddings().weight.requires_grad and new.embed_summary.weight.requires_grad


@pytest.mark.parametrize("folder", ["opt_b", "opt_padrow", "llama_b", "llama_rope"])
@pytest.mark.parametrize("load", [load_autocompressor, None])
def test_published_checkpoint(folder, load, tmp_path):
    path = FIXTURES / folder
    model_class = OPTAutoCompressorModel if folder.startswith("opt") else LlamaAutoCompressorModel
    model = (load or model_class.from_pretrained)(path)
    assert type(model) is model_class
    if (path / "pytorch_model.bin").exists():
        written = torch.load(path / "pytorch_model.bin", weights_only=True)
    else:
        written = load_file(path / "model.safetensors")
    weights = model.state_dict()
    for name, tensor in written.items():
        assert torch.equal(weights[name], tensor), name
    assert set(weights) - set(written) <= {"lm_head.weight"}

    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is model_class
    ids, kwargs = random_ids(2, 12), {"segment_lengths": 5, "output_softprompt": True}
    assert_close(tensors_of(loaded(ids, **kwargs)), tensors_of(model(ids, **kwargs)), **EXACT)


def test_bin_and_safetensors_are_equal(tmp_path):
    assert (FIXTURES / "opt_b" / "pytorch_model.bin").exists()
    shutil.copy(FIXTURES / "opt_b" / "config.json", tmp_path)
    written = torch.load(FIXTURES / "opt_b" / "pytorch_model.bin", weights_only=True)
    save_file({name: tensor.clone() for name, tensor in written.items()}, tmp_path / "model.safetensors")
    loaded = [OPTAutoCompressorModel.from_pretrained(path).state_dict() for path in (FIXTURES / "opt_b", tmp_path)]
    assert_close(dict(loaded[0]), dict(loaded[1]), **EXACT)


def test_config_of_another_model_is_refused(tmp_path):
    tiny_base("opt").save_pretrained(tmp_path / "opt")
    with pytest.raises(ValueError, match="opt.*llama"):
        LlamaAutoCompressorModel.from_pretrained(tmp_path / "opt")
    AutoConfig.for_model("gpt2").save_pretrained(tmp_path / "gpt2")
    with pytest.raises(ValueError, match="gpt2"):
        load_autocompressor(tmp_path / "gpt2")


# Other bases


@pytest.mark.parametrize("variable", [False, True], ids=["fixed", "variable"])
@torch.no_grad()
def test_sliding_window(variable):
    """Softprompt, segment and summary fill a window to the last position; then none of it may slide out."""
    make = variable_autocompressor if variable else tiny_autocompressor
    narrow, wide = (make("mistral", torch.float64, sliding_window=None) for _ in range(2))
    narrow.config.sliding_window = 12
    narrow.config.compress_stop_threshold = wide.config.compress_stop_threshold = 1.0
    # 2 vectors, 6 or 7 tokens, and 4 or 3 vectors.
    length, softprompt = 6 if variable else 7, random_softprompt(wide, 2, 2)
    ids, call = segmented_ids(2, [length]), {"softprompt": softprompt, "output_softprompt": True}
    for use_cache in (False, True):
        actual, expected = (model(ids, use_cache=use_cache, **call) for model in (narrow, wide))
        assert_close(tensors_of(actual), tensors_of(expected), **DOUBLE)
    # The last token is not read.
    text, call = ids[:, :-1], {"softprompt": softprompt, "do_sample": False, "eos_token_id": None}
    call["max_new_tokens"] = 12 - 2 - text.shape[1] + 1
    assert torch.equal(narrow.generate(text, **call), wide.generate(text, **call))

    longer = segmented_ids(2, [length + 1])
    for too_long in (
        lambda: narrow(longer, softprompt=softprompt, output_softprompt=True),
        lambda: narrow(random_ids(2, 11), softprompt=softprompt),
        lambda: narrow(random_ids(2, 18), segment_lengths=[5, 13]),
        lambda: narrow.compress(random_ids(2, 13), segment_lengths=13),
        lambda: narrow.generate(text, **call | {"max_new_tokens": call["max_new_tokens"] + 1}),
    ):
        with pytest.raises(ValueError, match="sliding_window.*12"):
            too_long()
    assert narrow(random_ids(2, 10), softprompt=softprompt).logits.shape[1] == 10


class StableLmAutoCompressorConfig(AutoCompressorConfigMixin, StableLmConfig):
    model_type = "stablelm_autocompressor"
    base_model_type = "stablelm"


class StableLmAutoCompressorModel(AutoCompressorMixin, StableLmForCausalLM):
    config: StableLmAutoCompressorConfig


@pytest.mark.parametrize("variable", [False, True], ids=["fixed", "variable"])
@torch.no_grad()
def test_another_base_in_a_few_lines(variable, tmp_path):
    fields = LLAMA_FIELDS | {"hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}
    fields |= VARIABLE_FIELDS if variable else {}
    model = randomize_(StableLmAutoCompressorModel(StableLmAutoCompressorConfig(**fields))).double().eval()
    model.generation_config.eos_token_id = None
    ids, lengths = segmented_ids(2, [4, 3, 4]), [4, 3, 4]
    expected = model(ids, segment_lengths=lengths, output_softprompt=True, use_cache=False)
    assert expected.softprompt.shape[1] > 0
    first = model(ids[:, :9], segment_lengths=[4, 3, 2], use_cache=True)
    second = model(ids[:, 9:], cache=first.cache, output_softprompt=True)
    assert_close(torch.cat([first.logits, second.logits], dim=1), expected.logits, **DOUBLE)
    assert_close(second.softprompt, expected.softprompt, **DOUBLE)
    text = random_ids(2, 11)
    softprompt, mask = model.compress(text[:, :7], segment_lengths=[4, 3], return_attention_mask=True)
    how = {"max_new_tokens": 6, "do_sample": False}
    tokens = [model.generate(text, segment_lengths=lengths, use_cache=cached, **how) for cached in (True, False)]
    tokens.append(model.generate(text[:, 7:], softprompt=softprompt, softprompt_attention_mask=mask, **how))
    assert torch.equal(*tokens[:2]) and torch.equal(tokens[0][:, 7:], tokens[2])
    model.save_pretrained(tmp_path)
    loaded = StableLmAutoCompressorModel.from_pretrained(tmp_path)
    again = loaded(ids, segment_lengths=lengths, output_softprompt=True, use_cache=False)
    assert_close(tensors_of(again), tensors_of(expected), **DOUBLE)


# Training


@pytest.mark.parametrize("name", ["opt", "opt_projected"])
def test_opt_position_rows_with_gradient(name):
    model = tiny_autocompressor(name).train()
    ids = random_ids(2, 11)
    mask = torch.ones_like(ids)
    mask[1, :2] = 0
    loss = model(
        ids, attention_mask=mask, labels=ids, segment_lengths=[6, 5], softprompt=random_softprompt(model, 2, 2)
    ).loss
    rows = gradients(model, loss)["model.decoder.embed_positions.weight"].abs().amax(dim=1)
    # Row 1 is read by padding, softprompt and summaries; text reads rows 2 to 7.
    assert (rows[2:8] > 1e-5).all()
    assert (rows[:2] == 0).all() and (rows[8:] == 0).all()


def test_opt_padding_row():
    model = OPTAutoCompressorModel(tiny_config("opt"))
    table = model.model.decoder.embed_positions.weight
    assert (table[1] == 0).all() and (table[2:].abs().amax(dim=1) > 0).all()
    model = tiny_autocompressor("opt")
    ids, softprompt = random_ids(1, 6), random_softprompt(model, 1, 2)
    before = model(ids, softprompt=softprompt).logits
    with torch.no_grad():
        model.model.decoder.embed_positions.weight[1].mul_(-2)
    assert not torch.allclose(model(ids, softprompt=softprompt).logits, before, atol=1e-2)
    assert torch.equal(model(ids).logits, tiny_autocompressor("opt")(ids).logits)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing")
@all_autocompressors
@pytest.mark.parametrize("layers_too", [False, True])
def test_segment_gradient_checkpointing(name, layers_too):
    dropout = {"dropout": 0.2} if name.startswith("opt") else {"attention_dropout": 0.2}
    model = tiny_autocompressor(name, **dropout).train()
    inputs = {"input_ids": random_ids(2, 16), "segment_lengths": [4, 4, 4, 4], "output_softprompt": True}
    inputs |= {"labels": inputs["input_ids"], "softprompt": random_softprompt(model, 2, 2)}
    results, saved = [], {False: [], True: []}
    for checkpointing in (False, True):
        model.config.segment_gradient_checkpointing = checkpointing
        if checkpointing and layers_too:
            model.gradient_checkpointing_enable()
        torch.manual_seed(3)
        # Layers that are recomputed leave no keys: vectors are read again, with dropout of their own.
        path = plain_path() if layers_too else nullcontext()
        with path, saved_for_backward(saved[checkpointing]):
            outputs = model(**inputs)
        results.append((tensors_of(outputs), gradients(model, outputs.loss)))
    assert_close(results[0], results[1], **CLOSE)
    assert sum(saved[True]) < 0.6 * sum(saved[False])
    assert len(saved[True]) < 0.6 * len(saved[False])


@both_families
def test_segment_checkpointing_off_in_evaluation(name):
    model = tiny_autocompressor(name, segment_gradient_checkpointing=True)
    plain = tiny_autocompressor(name)
    ids = random_ids(2, 8)
    with saved_for_backward(first := []):
        model(ids, segment_lengths=4)
    with saved_for_backward(second := []):
        plain(ids, segment_lengths=4)
    assert first == second


@all_autocompressors
def test_gradient_reaches_softprompt_and_first_segment(name):
    """Through the summary vectors alone: a loss on the last segment trains on the text of the first."""
    model = tiny_autocompressor(name).train()
    ids = random_ids(1, 9)
    labels = ids.clone()
    labels[:, :6] = -100
    embeds = model.get_input_embeddings()(ids).detach().requires_grad_()
    softprompt = random_softprompt(model, 1, 2).requires_grad_()
    model(inputs_embeds=embeds, labels=labels, softprompt=softprompt, segment_lengths=[3, 3, 3]).loss.backward()
    assert (embeds.grad[0, :8].abs().amax(dim=1) > 1e-6).all()
    assert (softprompt.grad[0].abs().amax(dim=1) > 1e-6).all()


# Loss


@both_families
def test_loss_options(name):
    model = tiny_autocompressor(name).train()
    ids, segments = random_ids(2, 10), {"segment_lengths": [4, 6]}
    labels = ids.clone()
    labels[0, :4], labels[1, 7] = -100, -100
    outputs = model(ids, labels=labels, **segments)
    assert outputs.loss.shape == ()
    direct = F.cross_entropy(outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    assert_close(outputs.loss, direct, **CLOSE)
    expected = gradients(model, direct)

    targets = int((labels[:, 1:] != -100).sum())
    shifted = F.pad(labels[:, 1:], (0, 1), value=-100)
    same = [
        model(ids, labels=labels, skip_logits=True, **segments),
        model(ids, labels=labels, logits_to_keep=1, **segments),
        model(ids, shift_labels=shifted, **segments),
        model(ids, shift_labels=shifted, skip_logits=True, **segments),
        model(ids, labels=labels, num_items_in_batch=targets, **segments),
        model(ids, labels=labels, num_items_in_batch=torch.tensor(targets), **segments),
    ]
    assert same[0].logits is None and same[3].logits is None
    assert same[1].logits.shape[1] == 1
    for other in same:
        assert_close(other.loss, direct, **CLOSE)
        assert_close(gradients(model, other.loss), expected, **CLOSE)
    half = model(ids, labels=labels, num_items_in_batch=2 * targets, skip_logits=True, **segments)
    assert_close(half.loss, direct / 2, **CLOSE)


@both_families
@pytest.mark.parametrize("skip_logits", [False, True])
def test_loss_without_targets_is_zero(name, skip_logits):
    model, ids = tiny_autocompressor(name).train(), random_ids(2, 8)
    for length in (8, 1):
        text = ids[:, :length]
        # One token has no next one, whatever its label.
        labels = torch.full_like(text, -100) if length > 1 else text
        loss = model(text, labels=labels, skip_logits=skip_logits).loss
        assert loss == 0
        assert all((gradient == 0).all() for gradient in gradients(model, loss).values())


def test_trainer_counts_the_targets():
    assert tiny_autocompressor("opt").loss_type == "ForCausalLM" == tiny_autocompressor("llama").loss_type


# Segments


@pytest.mark.parametrize(
    "given, length, expected",
    [
        (None, 5, [5]),
        (4, 8, [4, 4]),
        (4, 9, [4, 4, 1]),
        (9, 4, [4]),
        ([1, 2], 3, [1, 2]),
        ((1, 2), 3, [1, 2]),
    ],
)
def test_resolve_segment_lengths(given, length, expected):
    assert resolve_segment_lengths(given, length) == expected


def test_equal_segment_lengths():
    for length in range(1, 40):
        for longest in range(1, 12):
            lengths = equal_segment_lengths(length, longest)
            assert sum(lengths) == length
            assert 1 <= min(lengths) and max(lengths) <= longest
            assert max(lengths) - min(lengths) <= 1
            assert (len(lengths) - 1) * longest < length


@both_families
def test_forms_of_segment_lengths(name):
    model, ids = tiny_autocompressor(name), random_ids(2, 10)
    outputs = {
        key: tensors_of(model(ids, segment_lengths=lengths))
        for key, lengths in {"int": 4, "list": [4, 4, 2], "one": [10], "long": 12, "none": None}.items()
    }
    assert_close(outputs["int"], outputs["list"], **EXACT)
    assert_close(outputs["one"], outputs["none"], **EXACT)
    assert_close(outputs["long"], outputs["none"], **EXACT)
    assert outputs["int"]["softprompt"].shape[1] == 6 and outputs["none"]["softprompt"].shape[1] == 0


def naive_segments(base, embed_summary, ids, segment_lengths, softprompt, accumulate, summarize_last):
    """The paper's figure, on a plain base model: logits of the text, and the softprompt after the last segment."""
    logits = []
    for index, segment in enumerate(ids.split(segment_lengths, dim=1)):
        length, num_softprompt = segment.shape[1], softprompt.shape[1]
        summarize = summarize_last or index < len(segment_lengths) - 1
        summary = embed_summary.expand(ids.shape[0], -1, -1)[:, : embed_summary.shape[0] * summarize]
        embeds = torch.cat([softprompt, base.get_input_embeddings()(segment), summary], dim=1)
        if base.config.model_type == "opt":
            positions = [-1] * num_softprompt + list(range(length)) + [-1] * summary.shape[1]
        else:
            positions = list(range(embeds.shape[1]))
        positions = torch.tensor(positions).expand(ids.shape[0], -1)
        states = base.model(
            inputs_embeds=embeds, position_ids=positions, attention_mask=torch.ones_like(positions), use_cache=False
        ).last_hidden_state
        logits.append(base.lm_head(states[:, num_softprompt : num_softprompt + length]))
        new = states[:, num_softprompt + length :]
        if summarize:
            softprompt = torch.cat([softprompt, new], dim=1) if accumulate else new
    return torch.cat(logits, dim=1), softprompt


@all_autocompressors
@pytest.mark.parametrize("accumulate_summary", [True, False])
@pytest.mark.parametrize("given", [0, 2])
def test_segments_equal_a_loop_over_the_base_model(name, accumulate_summary, given):
    model = tiny_autocompressor(name, accumulate_summary=accumulate_summary).train()
    base = tiny_base(name).train()
    weights = model.state_dict()
    embed_summary = weights.pop("embed_summary.weight").clone().requires_grad_()
    base.load_state_dict(weights)
    ids, lengths = random_ids(2, 12), [5, 3, 4]
    softprompt = random_softprompt(model, 2, given)

    outputs = model(
        ids, labels=ids, segment_lengths=lengths, softprompt=softprompt if given else None, output_softprompt=True
    )
    logits, expected_softprompt = naive_segments(
        base, embed_summary, ids, lengths, softprompt, accumulate_summary, summarize_last=True
    )
    assert_close(outputs.logits, logits, **CLOSE)
    assert_close(outputs.softprompt, expected_softprompt, **CLOSE)
    assert outputs.softprompt.shape[1] == (given + 9 if accumulate_summary else 3)

    expected = gradients(base, F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()))
    expected["embed_summary.weight"] = embed_summary.grad
    actual = gradients(model, outputs.loss)
    if name.startswith("opt"):
        # The padding row, which the plain base trains.
        expected["model.decoder.embed_positions.weight"][1] = 0
    assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@all_autocompressors
@pytest.mark.parametrize("accumulate_summary", [True, False])
def test_segments_equal_separate_calls(name, accumulate_summary):
    model = tiny_autocompressor(name, accumulate_summary=accumulate_summary).train()
    ids, softprompt = random_ids(2, 12), None
    outputs = model(ids, labels=ids, segment_lengths=[5, 3, 4], output_softprompt=True)
    logits = []
    for segment in ids.split([5, 3, 4], dim=1):
        piece = model(segment, softprompt=softprompt, output_softprompt=True)
        softprompt = piece.softprompt
        logits.append(piece.logits)
    logits = torch.cat(logits, dim=1)
    assert_close(outputs.logits, logits, **CLOSE)
    assert_close(outputs.softprompt, softprompt, **CLOSE)
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert_close(gradients(model, outputs.loss), gradients(model, loss), **CLOSE)


@both_families
@torch.no_grad()
def test_accumulate_or_replace(name):
    model, ids = tiny_autocompressor(name), random_ids(1, 6)
    given = random_softprompt(model, 1, 2)
    # A call that makes no summary vectors returns those that it was given.
    assert torch.equal(model(ids, softprompt=given).softprompt, given)
    accumulated = model(ids, softprompt=given, output_softprompt=True).softprompt
    assert torch.equal(accumulated[:, :2], given)
    # The field may be changed after loading.
    model.config.accumulate_summary = False
    assert torch.equal(model(ids, softprompt=given).softprompt, given)
    assert torch.equal(model(ids, softprompt=given, output_softprompt=True).softprompt, accumulated[:, 2:])


@all_autocompressors
@torch.no_grad()
def test_text_sees_only_earlier_summaries(name):
    model, other, ids = tiny_autocompressor(name), tiny_autocompressor(name), random_ids(2, 12)
    other.embed_summary.weight.mul_(-2)
    lengths = [5, 3, 4]
    first, second = (m(ids, segment_lengths=lengths, output_softprompt=True) for m in (model, other))
    assert torch.equal(first.logits[:, :5], second.logits[:, :5])
    assert not torch.isclose(first.logits[:, 5:], second.logits[:, 5:], atol=1e-4).all(dim=2).any()
    # Asking for the summary of the last segment does not change its text.
    assert_close(model(ids, segment_lengths=lengths).logits, first.logits, **CLOSE)
    # With the earlier summaries held fixed, the text of a later segment does not see its own.
    kwargs = {"softprompt": random_softprompt(model, 2, 3), "output_softprompt": True}
    assert torch.equal(model(ids, **kwargs).logits, other(ids, **kwargs).logits)


@all_autocompressors
@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_padding_within_segments(name, side):
    """Each row has its own lengths of the two segments; no segment is padding only."""
    model = tiny_autocompressor(name, torch.float64)
    segments = [[random_ids(1, n, seed=10 * i + n) for i, n in enumerate(row)] for row in ([5, 6], [2, 6], [5, 1])]
    padded = [pad_rows(list(column), side) for column in zip(*segments, strict=True)]
    ids, mask = (torch.cat(pieces, dim=1) for pieces in zip(*padded, strict=True))
    kwargs = {"softprompt": random_softprompt(model, 3, 2), "output_softprompt": True}
    batched = model(ids, attention_mask=mask, segment_lengths=[5, 6], **kwargs)
    compressed = model.compress(ids, attention_mask=mask, segment_lengths=[5, 6], softprompt=kwargs["softprompt"])
    for index, row in enumerate(segments):
        alone = model(
            torch.cat(row, dim=1), segment_lengths=[piece.shape[1] for piece in row], **select_row(kwargs, index)
        )
        assert_close(batched.logits[index, mask[index].bool()], alone.logits[0], **DOUBLE)
        assert_close(batched.softprompt[index], alone.softprompt[0], **DOUBLE)
        assert_close(compressed[index], alone.softprompt[0], **DOUBLE)


@all_autocompressors
def test_autocast(name):
    model, ids = tiny_autocompressor(name, accumulate_summary=False).train(), random_ids(2, 9)
    call = {"labels": ids, "segment_lengths": [4, 5], "output_softprompt": True}
    expected = model(ids, **call)
    for segment_gradient_checkpointing in (False, True):
        model.config.segment_gradient_checkpointing = segment_gradient_checkpointing
        with torch.autocast("cpu", torch.bfloat16):
            outputs = model(ids, **call)
        assert_close(outputs.loss, expected.loss, rtol=0.1, atol=0.1)
        assert outputs.loss.dtype == outputs.softprompt.dtype == torch.float32
        assert all(gradient.isfinite().all() for gradient in gradients(model, outputs.loss).values())


@both_families
@torch.no_grad()
def test_dtypes_of_masks(name):
    model, ids = tiny_autocompressor(name), random_ids(2, 6)
    mask, softprompt_mask = torch.tensor([[1] * 6, [0, 0, 1, 1, 1, 1]]), torch.tensor([[1, 1], [0, 1]])
    kwargs = {"softprompt": random_softprompt(model, 2, 2), "segment_lengths": [3, 3]}
    expected = model(ids, attention_mask=mask, softprompt_attention_mask=softprompt_mask, **kwargs).logits
    for dtype in (torch.bool, torch.float32, torch.int32):
        masks = {"attention_mask": mask.to(dtype), "softprompt_attention_mask": softprompt_mask.to(dtype)}
        assert torch.equal(model(ids, **masks, **kwargs).logits, expected)


@both_families
@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
def test_segment_of_padding_only_is_finite(name, attn_implementation):
    model = tiny_autocompressor(name, attn_implementation=attn_implementation).train()
    ids, mask = random_ids(2, 9), torch.ones(2, 9, dtype=torch.long)
    mask[1, :5] = 0
    labels = ids.masked_fill(mask == 0, -100)
    outputs = model(ids, attention_mask=mask, labels=labels, segment_lengths=[4, 5], output_softprompt=True)
    assert all(tensor.isfinite().all() for tensor in tensors_of(outputs).values())
    assert all(gradient.isfinite().all() for gradient in gradients(model, outputs.loss).values())


@all_autocompressors
@torch.no_grad()
def test_masked_vectors_equal_absent_ones(name):
    model = tiny_autocompressor(name, torch.float64)
    ids, softprompt = random_ids(3, 9), random_softprompt(model, 3, 5)
    mask = torch.tensor([[1, 0, 1, 1, 0], [0, 0, 1, 0, 0], [0, 0, 0, 0, 0]])
    kwargs = {"segment_lengths": [4, 5], "output_softprompt": True}
    batched = model(ids, softprompt=softprompt, softprompt_attention_mask=mask, **kwargs)
    assert torch.equal(batched.softprompt_attention_mask, F.pad(mask, (0, 6), value=1))
    for index in range(3):
        kept = softprompt[index : index + 1, mask[index].bool()]
        alone = model(ids[index : index + 1], softprompt=kept, **kwargs)
        assert_close(batched.logits[index], alone.logits[0], **DOUBLE)
        assert_close(batched.softprompt[index, 5:], alone.softprompt[0, kept.shape[1] :], **DOUBLE)
    nothing = model(ids[2:], **kwargs)
    assert_close(batched.logits[2:], nothing.logits, **DOUBLE)
    assert_close(
        model.compress(ids, softprompt=softprompt, softprompt_attention_mask=mask, segment_lengths=[4, 5]),
        batched.softprompt,
        **DOUBLE,
    )


@both_families
@torch.no_grad()
def test_one_softprompt_for_the_batch(name):
    model, ids = tiny_autocompressor(name), random_ids(3, 6)
    softprompt, mask = random_softprompt(model, 1, 4), torch.tensor([[1, 0, 1, 1]])
    one = model(ids, softprompt=softprompt, softprompt_attention_mask=mask, output_softprompt=True)
    many = model(
        ids,
        softprompt=softprompt.expand(3, -1, -1),
        softprompt_attention_mask=mask.expand(3, -1),
        output_softprompt=True,
    )
    assert_close(tensors_of(one), tensors_of(many), **EXACT)
    # Vectors in another floating dtype are converted.
    assert_close(model(ids, softprompt=softprompt.double()).logits, model(ids, softprompt=softprompt).logits, **EXACT)


@all_autocompressors
@torch.no_grad()
def test_compress(name):
    model, ids = tiny_autocompressor(name), random_ids(2, 12)
    lengths = [5, 3, 4]
    compressed = model.compress(ids, segment_lengths=lengths)
    assert_close(compressed, model(ids, segment_lengths=lengths, output_softprompt=True).softprompt, **EXACT)
    piecewise = None
    for segment in ids.split(lengths, dim=1):
        piecewise = model.compress(segment, softprompt=piecewise)
    assert_close(piecewise, compressed, **CLOSE)
    embeds = model.get_input_embeddings()(ids)
    assert torch.equal(model.compress(inputs_embeds=embeds, segment_lengths=lengths), compressed)
    assert torch.equal(model.compress(ids, segment_lengths=5), model.compress(ids, segment_lengths=[5, 5, 2]))
    with torch.enable_grad():
        assert not model.compress(ids).requires_grad


@both_families
@torch.no_grad()
def test_compress_cuts_long_texts_itself(name):
    model, ids = tiny_autocompressor(name), random_ids(1, 101)
    longest = {"opt": 40, "llama": 32}[name]
    lengths = {"opt": [34, 34, 33], "llama": [26, 25, 25, 25]}[name]
    assert lengths == equal_segment_lengths(101, longest)
    assert torch.equal(model.compress(ids), model.compress(ids, segment_lengths=lengths))
    for length in (1, longest):
        assert model.compress(ids[:, :length]).shape[1] == 3
    assert model.compress(ids[:, : longest + 1]).shape[1] == 6


def test_compress_holds_no_logits(monkeypatch):
    model = tiny_autocompressor("opt")
    monkeypatch.setattr(model, "lm_head", None)
    assert model.compress(random_ids(1, 8), segment_lengths=4).shape == (1, 6, 24)


# Other arguments of forward


@all_autocompressors
@torch.no_grad()
def test_inputs_embeds_equal_input_ids(name):
    model, ids = tiny_autocompressor(name), random_ids(2, 9)
    embeds = model.get_input_embeddings()(ids)
    kwargs = {"segment_lengths": [4, 5], "output_softprompt": True, "softprompt": random_softprompt(model, 2, 2)}
    assert_close(tensors_of(model(inputs_embeds=embeds, **kwargs)), tensors_of(model(ids, **kwargs)), **EXACT)


@all_autocompressors
@torch.no_grad()
def test_position_ids(name):
    model, ids = tiny_autocompressor(name), random_ids(2, 9)
    softprompt = random_softprompt(model, 2, 2)
    mask = torch.ones_like(ids)
    mask[1, :2] = 0
    whole, restarting = torch.arange(9).expand(2, -1), torch.tensor([0, 1, 2, 3, 0, 1, 2, 3, 4]).expand(2, -1)
    padded = restarting.clone()
    padded[1, :4] = torch.tensor([-1, -1, 0, 1])
    for position_ids, kwargs in [
        (whole, {}),
        (whole[:1], {}),
        (whole, {"softprompt": softprompt, "output_softprompt": True}),
        (restarting, {"segment_lengths": [4, 5], "softprompt": softprompt}),
        (padded, {"segment_lengths": [4, 5], "softprompt": softprompt, "attention_mask": mask}),
    ]:
        expected, actual = model(ids, **kwargs), model(ids, position_ids=position_ids, **kwargs)
        where = kwargs.get("attention_mask", torch.ones_like(ids)).bool()
        assert_close(actual.logits[where], expected.logits[where], **CLOSE)
        assert_close(actual.softprompt, expected.softprompt, **CLOSE)
    # They are not ignored, and a gap in them is no border between documents.
    jumping = torch.tensor([0, 1, 2, 3, 7, 8, 9, 10, 11]).expand(2, -1)
    outputs = model(ids, position_ids=jumping, use_cache=False)
    assert not outputs.logits[:, 4:].isclose(model(ids).logits[:, 4:], atol=1e-3).all(dim=2).any()
    changed = ids.clone()
    changed[:, 0] = 1
    others = model(changed, position_ids=jumping, use_cache=False)
    assert not outputs.logits[:, 4:].isclose(others.logits[:, 4:], atol=1e-4).all(dim=2).any()


@all_autocompressors
@torch.no_grad()
def test_hidden_states_and_attentions(name):
    model = tiny_autocompressor(name, attn_implementation="eager")
    heads, hidden_size = model.config.num_attention_heads, model.config.hidden_size
    softprompt, ids = random_softprompt(model, 2, 2), random_ids(2, 9)
    kwargs = {"softprompt": softprompt, "output_hidden_states": True, "output_attentions": True}

    one = model(ids, output_softprompt=True, **kwargs)
    assert [tuple(layer.shape) for layer in one.hidden_states[:-1]] == [(2, 9, hidden_size)] * 2
    assert len(one.hidden_states) == 3 and one.hidden_states[-1].shape[:2] == (2, 9)
    assert [tuple(layer.shape) for layer in one.attentions] == [(2, heads, 14, 14)] * 2
    several = model(ids, segment_lengths=[4, 5], **kwargs)
    assert [tuple(layer.shape) for layer in several.hidden_states[:-1]] == [(2, 9, hidden_size)] * 2
    assert [[tuple(layer.shape) for layer in segment] for segment in several.attentions] == [
        [(2, heads, 9, 9)] * 2,
        [(2, heads, 10, 10)] * 2,
    ]
    # The last hidden states are those that the head reads; the first are the text's, without the softprompt's.
    for outputs in (one, several):
        if outputs.hidden_states[-1].shape[2] == model.lm_head.in_features:
            assert_close(model.lm_head(outputs.hidden_states[-1]), outputs.logits, **EXACT)
        for segment in outputs.attentions if outputs is several else [outputs.attentions]:
            assert all((layer.triu(1) == 0).all() for layer in segment)
    if not name.startswith("opt"):
        assert torch.equal(one.hidden_states[0], model.get_input_embeddings()(ids))
        assert torch.equal(several.hidden_states[0], model.get_input_embeddings()(ids))
    assert model(ids).hidden_states is None and model(ids).attentions is None


@both_families
@torch.no_grad()
def test_logits_to_keep(name):
    model, ids = tiny_autocompressor(name), random_ids(2, 9)
    kwargs = {"segment_lengths": [4, 5], "output_softprompt": True}
    expected = model(ids, **kwargs).logits
    assert torch.equal(model(ids, logits_to_keep=0, **kwargs).logits, expected)
    for kept in (1, 7, 9):
        assert_close(model(ids, logits_to_keep=kept, **kwargs).logits, expected[:, -kept:], **CLOSE)
    where = torch.tensor([1, 4, 8])
    assert_close(model(ids, logits_to_keep=where, **kwargs).logits, expected[:, where], **CLOSE)


@both_families
def test_skip_logits_never_makes_them(name, monkeypatch):
    """Not even a cached call makes more logits at a time than `MAX_LOGITS_IN_MEMORY`."""
    monkeypatch.setattr("auto_compressor.autocompressor.losses.MAX_LOGITS_IN_MEMORY", 3 * 60)
    model, ids, sizes = tiny_autocompressor(name).train(), random_ids(2, 8), []
    model.lm_head.register_forward_hook(lambda module, args, output: sizes.append(output.numel()))
    model(ids, labels=ids, skip_logits=True, segment_lengths=4).loss.backward()
    assert sizes and max(sizes) <= 3 * 60
    sizes.clear()
    assert model(ids, skip_logits=True).logits is None and not sizes


# Attention


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing")
@pytest.mark.parametrize("name", ["opt", "opt_projected"])
@torch.no_grad()
def test_opt_attention_never_sees_positions(name):
    """Flash attention would take the -1 of summary vectors for the border of packed documents."""
    with recorded_attention(calls := []):
        model = tiny_autocompressor(name, attn_implementation="recorded")
        expected, ids = tiny_autocompressor(name), random_ids(2, 9)
        kwargs = {"segment_lengths": [4, 5], "output_softprompt": True, "softprompt": random_softprompt(model, 2, 2)}
        assert_close(tensors_of(model(ids, **kwargs)), tensors_of(expected(ids, **kwargs)), **EXACT)
        cache = model(ids, use_cache=True, **kwargs).cache
        model(ids[:, :2], cache=cache)
        model.gradient_checkpointing_enable()
        with torch.enable_grad():
            model.train()(ids, labels=ids, **kwargs).loss.backward()
    # Two layers; two segments in three passes and one continuation; the backward pass computes the last two again.
    assert len(calls) == 2 * (2 + 2 + 1 + 2 + 2)
    assert all(call.get("position_ids") is None for call in calls)


@torch.no_grad()
def test_llama_attention_sees_consecutive_positions():
    """Without padding, flash attention drops the mask and looks for packed documents in the positions."""
    with recorded_attention(calls := []):
        model, ids = tiny_autocompressor("llama", attn_implementation="recorded"), random_ids(1, 9)
        kwargs = {"segment_lengths": [4, 5], "output_softprompt": True, "softprompt": random_softprompt(model, 1, 2)}
        cache = model(ids, use_cache=True, **kwargs).cache
        model(ids[:, :2], cache=cache)
    given = [call["position_ids"] for call in calls if call.get("position_ids") is not None]
    assert len(calls) == 6
    assert all((positions.diff(dim=1) == 1).all() for positions in given)


@both_families
def test_resize_position_embeddings(name, tmp_path):
    model = tiny_autocompressor(name)
    length = model.config.max_position_embeddings
    ids = random_ids(1, 12)
    expected = model(ids).logits
    if name == "opt":
        old = model.model.decoder.embed_positions.weight.detach().clone()
        with pytest.raises(ValueError, match="max_position_embeddings"):
            model(random_ids(1, length + 1))
    model.resize_position_embeddings(2 * length + 5)
    assert model.config.max_position_embeddings == 2 * length + 5
    assert torch.equal(model(ids).logits, expected)
    if name == "opt":
        table = model.model.decoder.embed_positions.weight
        assert torch.equal(table, torch.cat([old, old[2:], old[2:7]]))
        long = random_ids(1, 2 * length + 5)
        loss = model(long, labels=long, softprompt=random_softprompt(model, 1, 2)).loss
        rows = gradients(model, loss)["model.decoder.embed_positions.weight"].abs().amax(dim=1)
        assert (rows[:2] == 0).all() and (rows[2:-1] > 0).all()
    model.save_pretrained(tmp_path)
    assert torch.equal(type(model).from_pretrained(tmp_path)(ids).logits, expected)
    model.resize_position_embeddings(12)
    assert torch.equal(model(ids).logits, expected)


# Cache


def cache_tensors(cache) -> list[torch.Tensor]:
    return [tensor.clone() for layer in cache.layers for tensor in (layer.keys, layer.values)]


CACHE_SETTINGS = pytest.mark.parametrize("given", [None, "softprompt", "masked"])


def softprompt_arguments(model, given, batch_size=2):
    if given is None:
        return {}
    mask = torch.tensor([[1, 0, 1], [1, 1, 0], [0, 1, 1]])[:batch_size]
    arguments = {"softprompt": random_softprompt(model, batch_size, 3), "softprompt_attention_mask": mask}
    return arguments if given == "masked" else {"softprompt": arguments["softprompt"]}


@all_autocompressors
@CACHE_SETTINGS
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@torch.no_grad()
def test_cached_after_segments(name, given, padded):
    model, ids = tiny_autocompressor(name, torch.float64), random_ids(2, 14)
    mask = torch.ones_like(ids)
    if padded:
        mask[0, :2], mask[1, 4:6] = 0, 0
    kwargs = softprompt_arguments(model, given)
    expected = model(
        ids, attention_mask=mask, segment_lengths=[5, 9], output_softprompt=True, use_cache=False, **kwargs
    )

    outputs = model(ids[:, :8], attention_mask=mask[:, :8], segment_lengths=[5, 3], use_cache=True, **kwargs)
    logits, cache = [outputs.logits], outputs.cache
    assert isinstance(cache, SoftpromptCache)
    assert cache.get_seq_length() == 8
    for start, end in [(8, 9), (9, 10), (10, 14)]:
        # The cache knows its softprompt: a continuation passes none, or the same one again.
        again = kwargs if start == 9 else {}
        outputs = model(
            ids[:, start:end],
            attention_mask=mask[:, :end],
            cache=cache,
            output_softprompt=end == 14,
            **again,
        )
        logits.append(outputs.logits)
        cache = outputs.cache
        assert cache.get_seq_length() == end
        assert cache.get_query_offset() == cache.softprompt_length + end - 5
    assert_close(torch.cat(logits, dim=1)[mask.bool()], expected.logits[mask.bool()], **DOUBLE)
    assert_close(outputs.softprompt, expected.softprompt, **DOUBLE)


@all_autocompressors
@CACHE_SETTINGS
@pytest.mark.parametrize("accumulate_summary", [True, False])
@torch.no_grad()
def test_summary_of_a_cached_text_leaves_the_cache(name, given, accumulate_summary):
    model = tiny_autocompressor(name, torch.float64, accumulate_summary=accumulate_summary)
    ids, kwargs = random_ids(2, 9), softprompt_arguments(model, given)
    cache = model(ids[:, :4], use_cache=True, output_softprompt=True, **kwargs).cache
    assert cache.get_seq_length() == 4
    summary = model(ids[:, 4:7], cache=cache, output_softprompt=True).softprompt
    assert_close(summary, model(ids[:, :7], output_softprompt=True, **kwargs).softprompt, **DOUBLE)
    assert cache.get_seq_length() == 7
    step = model(ids[:, 7:], cache=cache)
    assert_close(step.logits, model(ids, **kwargs).logits[:, 7:], **DOUBLE)


@both_families
@torch.no_grad()
def test_cache_rows_carry_the_softprompt(name):
    model, ids = tiny_autocompressor(name, torch.float64), random_ids(3, 7)
    per_row, shared = (softprompt_arguments(model, "masked", batch_size) for batch_size in (3, 1))

    def continued(change, rows, given):
        cache = model(ids[:, :5], use_cache=True, **given).cache
        change(cache)
        given = {key: value.expand(3, *value.shape[1:])[rows] for key, value in given.items()}
        assert torch.equal(cache.softprompt, given["softprompt"])
        outputs = model(ids[rows, 5:], cache=cache, output_softprompt=True)
        expected = model(ids[rows], output_softprompt=True, **given)
        assert_close(outputs.logits, expected.logits[:, 5:], **DOUBLE)
        assert_close(outputs.softprompt, expected.softprompt, **DOUBLE)

    for given in (per_row, shared):
        continued(lambda cache: cache.reorder_cache(torch.tensor([2, 0, 0])), [2, 0, 0], given)
        continued(lambda cache: cache.batch_repeat_interleave(2), [0, 0, 1, 1, 2, 2], given)
        continued(lambda cache: cache.batch_select_indices(torch.tensor([1])), [1], given)


@both_families
@torch.no_grad()
def test_cache_reset(name):
    model, ids = tiny_autocompressor(name), random_ids(1, 6)
    cache = model(ids, softprompt=random_softprompt(model, 1, 3), segment_lengths=4, use_cache=True).cache
    cache.reset()
    assert cache.softprompt is None and cache.compressed_length == 0


@both_families
@pytest.mark.parametrize("with_config", [True, False])
@torch.no_grad()
def test_plain_cache_is_filled(name, with_config):
    model, base, ids = tiny_autocompressor(name), tiny_base(name), random_ids(2, 8)
    cache = DynamicCache(config=model.config) if with_config else DynamicCache()
    expected = model(ids, use_cache=True)
    first = model(ids[:, :5], cache=cache)
    assert cache.get_seq_length() == 5
    assert_close(model(ids[:, 5:], cache=cache).logits, expected.logits[:, 5:], **CLOSE)
    assert cache.get_seq_length() == 8
    assert_close(cache_tensors(cache), cache_tensors(expected.cache), **CLOSE)
    assert_close(cache_tensors(first.cache), cache_tensors(cache), **EXACT)
    # One that the plain base model filled is continued, and the other way round.
    base.load_state_dict({key: value for key, value in model.state_dict().items() if key != "embed_summary.weight"})
    cache = cache_of(base(ids[:, :5], use_cache=True))
    assert_close(model(ids[:, 5:], cache=cache).logits, expected.logits[:, 5:], **CLOSE)
    cache = DynamicCache()
    model(ids[:, :5], cache=cache)
    assert_close(base(ids[:, 5:], **as_cache(cache)).logits, expected.logits[:, 5:], **CLOSE)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing")
@both_families
def test_no_cache_under_gradient_checkpointing(name):
    """transformers drops the cache there: an empty one must not be returned, a filled one not be lost."""
    model, ids = tiny_autocompressor(name).train(), random_ids(2, 6)
    cache = filled_cache(model)
    model.gradient_checkpointing_enable()
    outputs = model(ids, labels=ids, use_cache=True, output_softprompt=True)
    assert outputs.cache is None
    with pytest.raises(ValueError, match="cache"):
        model(ids, cache=cache)
    assert isinstance(model.eval()(ids, cache=cache).cache, SoftpromptCache)


@both_families
def test_use_cache(name):
    model, ids = tiny_autocompressor(name), random_ids(1, 4)
    assert model(ids, use_cache=False).cache is None
    assert isinstance(model(ids).cache, SoftpromptCache)
    model.config.use_cache = False
    assert model(ids).cache is None


# Bad input


def static_cache(model):
    return StaticCache(config=model.config, max_cache_len=16)


def filled_cache(model):
    return model(random_ids(2, 5), use_cache=True).cache


IDS = random_ids(2, 6)
BAD_CALLS = {
    "lengths do not sum": ("segment_lengths", lambda m: m(IDS, segment_lengths=[3, 4])),
    "a length of 0": ("segment_lengths", lambda m: m(IDS, segment_lengths=[6, 0])),
    "a negative length": ("segment_lengths", lambda m: m(IDS, segment_lengths=[7, -1])),
    "a float length": ("segment_lengths", lambda m: m(IDS, segment_lengths=[3.0, 3.0])),
    "a bool length": ("segment_lengths", lambda m: m(IDS, segment_lengths=[True, 5])),
    "no length": ("segment_lengths", lambda m: m(IDS, segment_lengths=[])),
    "int 0": ("segment_lengths", lambda m: m(IDS, segment_lengths=0)),
    "int -2": ("segment_lengths", lambda m: m(IDS, segment_lengths=-2)),
    "a bool": ("segment_lengths", lambda m: m(IDS, segment_lengths=True)),
    "a float": ("segment_lengths", lambda m: m(IDS, segment_lengths=3.0)),
    "a string": ("segment_lengths", lambda m: m(IDS, segment_lengths="33")),
    "compress: lengths do not sum": ("segment_lengths", lambda m: m.compress(IDS, segment_lengths=[3, 4])),
    "generate: lengths do not sum": ("segment_lengths", lambda m: m.generate(IDS, segment_lengths=[3, 4])),
    "segments with a filled cache": (
        "segment_lengths",
        lambda m: m(IDS, segment_lengths=3, cache=filled_cache(m)),
    ),
    "softprompt: width": ("softprompt", lambda m: m(IDS, softprompt=torch.zeros(2, 3, 5))),
    "softprompt: dtype": ("softprompt", lambda m: m(IDS, softprompt=random_softprompt(m, 2, 3).long())),
    "softprompt: batch": ("softprompt", lambda m: m(IDS, softprompt=random_softprompt(m, 3, 3))),
    "softprompt: dimensions": ("softprompt", lambda m: m(IDS, softprompt=random_softprompt(m, 2, 3)[0])),
    "softprompt: compress": ("softprompt", lambda m: m.compress(IDS, softprompt=torch.zeros(2, 3, 5))),
    "softprompt: generate": (
        "softprompt",
        lambda m: m.generate(IDS, softprompt=torch.zeros(2, 3, 5), max_new_tokens=2),
    ),
    "softprompt: generate, batch": (
        "softprompt",
        lambda m: m.generate(IDS, softprompt=random_softprompt(m, 3, 3), max_new_tokens=2),
    ),
    "softprompt mask: length": (
        "softprompt_attention_mask",
        lambda m: m(IDS, softprompt=random_softprompt(m, 2, 3), softprompt_attention_mask=torch.ones(2, 4)),
    ),
    "softprompt mask: batch": (
        "softprompt_attention_mask",
        lambda m: m(IDS, softprompt=random_softprompt(m, 2, 3), softprompt_attention_mask=torch.ones(3, 3)),
    ),
    "softprompt mask: dimensions": (
        "softprompt_attention_mask",
        lambda m: m(IDS, softprompt=random_softprompt(m, 2, 3), softprompt_attention_mask=torch.ones(3)),
    ),
    "softprompt mask alone": (
        "softprompt_attention_mask",
        lambda m: m(IDS, softprompt_attention_mask=torch.ones(2, 3)),
    ),
    "mask too short": ("attention_mask", lambda m: m(IDS, attention_mask=torch.ones(2, 5))),
    "mask too long": ("attention_mask", lambda m: m(IDS, attention_mask=torch.ones(2, 7))),
    "mask of another batch": ("attention_mask", lambda m: m(IDS, attention_mask=torch.ones(1, 6))),
    "mask of one dimension": ("attention_mask", lambda m: m(IDS, attention_mask=torch.ones(6))),
    "mask of four dimensions": ("attention_mask", lambda m: m(IDS, attention_mask=torch.ones(2, 1, 6, 6))),
    "mask with the softprompt": (
        "attention_mask",
        lambda m: m(IDS, softprompt=random_softprompt(m, 2, 3), attention_mask=torch.ones(2, 9)),
    ),
    "mask of the new text only": (
        "attention_mask",
        lambda m: m(IDS, cache=filled_cache(m), attention_mask=torch.ones(2, 6)),
    ),
    "compress: mask": ("attention_mask", lambda m: m.compress(IDS, attention_mask=torch.ones(2, 5))),
    "empty text": ("input_ids", lambda m: m(IDS[:, :0])),
    "empty batch": ("input_ids", lambda m: m(IDS[:0])),
    "one dimension": ("input_ids", lambda m: m(IDS[0])),
    "float ids": ("input_ids", lambda m: m(IDS.float())),
    "bool ids": ("input_ids", lambda m: m(IDS.bool())),
    "empty embeddings": ("inputs_embeds", lambda m: m(inputs_embeds=random_softprompt(m, 2, 0))),
    "no text": ("input_ids.*inputs_embeds", lambda m: m()),
    "two texts": ("input_ids.*inputs_embeds", lambda m: m(IDS, inputs_embeds=random_softprompt(m, 2, 6))),
    "compress: no text": ("input_ids.*inputs_embeds", lambda m: m.compress()),
    "embeddings: width": ("inputs_embeds", lambda m: m(inputs_embeds=torch.zeros(2, 6, 5))),
    "embeddings: dtype": ("inputs_embeds", lambda m: m(inputs_embeds=random_softprompt(m, 2, 6).long())),
    "labels too short": ("labels", lambda m: m(IDS, labels=IDS[:, :5])),
    "labels of another batch": ("labels", lambda m: m(IDS, labels=IDS[:1])),
    "labels of one dimension": ("labels", lambda m: m(IDS, labels=IDS[0])),
    "shift_labels": ("labels", lambda m: m(IDS, shift_labels=IDS[:, :5])),
    "labels, no logits": ("labels", lambda m: m(IDS, labels=IDS[:, :5], skip_logits=True)),
    "position_ids": ("position_ids", lambda m: m(IDS, position_ids=torch.arange(5)[None])),
    "compress: a first segment of padding": (
        "attention_mask",
        lambda m: m.compress(IDS, attention_mask=(torch.arange(6) > 3).long().expand(2, -1), segment_lengths=3),
    ),
    "generate: segments of a continued text": (
        "segment_lengths",
        lambda m: m.generate(IDS, cache=filled_cache(m), segment_lengths=3, max_new_tokens=2),
    ),
    "static cache": ("cache", lambda m: m(IDS, cache=static_cache(m))),
    "tuple cache": ("cache", lambda m: m(IDS, cache=((torch.zeros(1), torch.zeros(1)),))),
    "static cache in generate": (
        "cache|cache_implementation",
        lambda m: m.generate(IDS, cache_implementation="static", max_new_tokens=2),
    ),
}


@both_families
@pytest.mark.parametrize("accumulate_summary", [True, False])
@torch.no_grad()
def test_segments_of_padding_in_front_are_as_absent(name, accumulate_summary):
    """Rows that are shorter than the last segments: their summaries of padding alone are made, and masked."""
    model = tiny_autocompressor(name, dtype=torch.float64, accumulate_summary=accumulate_summary)
    rows = [random_ids(1, length, seed=length) for length in (12, 7, 3)]
    ids, mask = pad_rows(rows, "left")
    padded = model(ids, attention_mask=mask, segment_lengths=4, output_softprompt=True)
    for index, row in enumerate(rows):
        length = row.shape[1]
        segment_lengths = [length % 4] * (length % 4 > 0) + [4] * (length // 4)
        alone = model(row, segment_lengths=segment_lengths, output_softprompt=True)
        assert_close(padded.logits[index, -length:], alone.logits[0], **DOUBLE)
        seen = padded.softprompt_attention_mask[index].bool()
        assert_close(padded.softprompt[index, seen], alone.softprompt[0], **DOUBLE)
    generated = model.generate(ids, attention_mask=mask, segment_lengths=4, max_new_tokens=4, do_sample=False)
    single = model.generate(rows[2], max_new_tokens=4, do_sample=False)
    assert torch.equal(generated[2, 12:], single[0, 3:])


@both_families
@pytest.mark.parametrize("case", BAD_CALLS)
def test_bad_input(name, case):
    argument, call = BAD_CALLS[case]
    with pytest.raises(ValueError, match=argument):
        call(tiny_autocompressor(name))


def test_text_longer_than_the_positions():
    opt, llama = tiny_autocompressor("opt"), tiny_autocompressor("llama")
    ids = random_ids(1, 70)
    softprompt = random_softprompt(opt, 1, 9)
    for call in (
        lambda: opt(ids),
        lambda: opt(ids, segment_lengths=[29, 41]),
        lambda: opt.compress(ids, segment_lengths=[29, 41]),
        lambda: opt(ids[:, :2], cache=opt(ids[:, :39], use_cache=True).cache),
        lambda: opt.generate(ids[:, :38], max_new_tokens=5, do_sample=False, eos_token_id=None),
    ):
        with pytest.raises(ValueError, match="max_position_embeddings"):
            call()
    # Softprompt and summaries take no positions of OPT's table.
    outputs = opt(ids, segment_lengths=[40, 30], softprompt=softprompt, output_softprompt=True)
    assert outputs.logits.shape[1] == 70
    assert llama(ids).logits.shape[1] == 70


@both_families
def test_model_without_summaries(name):
    model, ids = tiny_autocompressor(name, summary_length=0), random_ids(2, 8)
    with pytest.raises(ValueError, match="summary_length"):
        model.compress(ids)
    # Segments are read apart from each other, and a softprompt goes through.
    outputs = model(ids, segment_lengths=[5, 3], output_softprompt=True)
    assert_close(outputs.logits, torch.cat([model(ids[:, :5]).logits, model(ids[:, 5:]).logits], dim=1), **CLOSE)
    assert outputs.softprompt.shape[1] == 0
    softprompt = random_softprompt(model, 2, 3)
    assert torch.equal(model(ids, softprompt=softprompt, output_softprompt=True).softprompt, softprompt)


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def truncated(path, share):
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


@pytest.mark.parametrize("load", [load_autocompressor, OPTAutoCompressorModel.from_pretrained])
@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize(
    "damage", ["truncated", "header", "empty", "garbage", "html", "missing", "malicious", "sizes"]
)
def test_damaged_checkpoint(load, file, damage, tmp_path):
    folder, executed = tmp_path / "checkpoint", tmp_path / "executed"
    model = tiny_autocompressor("opt")
    model.save_pretrained(folder)
    path = folder / file
    if file == "pytorch_model.bin":
        (folder / "model.safetensors").unlink()
        torch.save(dict(model.state_dict()), path)
    if damage in ("truncated", "header"):
        truncated(path, 0.5 if damage == "truncated" else 0.001)
    elif damage == "missing":
        path.unlink()
    elif damage == "malicious":
        path.write_bytes(pickle.dumps({"weight": Malicious(executed)}, protocol=2))
    elif damage == "sizes":
        tiny_autocompressor("opt", vocab_size=70).config.save_pretrained(folder)
    else:
        path.write_bytes({"empty": b"", "garbage": b"\x07" * 999, "html": b"<html>404</html>" * 9}[damage])
    with pytest.raises(OSError, match="checkpoint"):
        load(folder)
    assert not executed.exists()


def test_missing_checkpoint_names_what_needs_no_hub(tmp_path):
    with pytest.raises(OSError, match="nowhere.*tiny"):
        load_autocompressor(str(tmp_path / "nowhere"))
    (tmp_path / "config.json").write_text("{ not json")
    with pytest.raises(OSError, match="config"):
        OPTAutoCompressorModel.from_pretrained(tmp_path)


def test_randomised_weights_are_asymmetric():
    """The tests above rest on it: no two parameters and no two rows are equal, not even norms."""
    model = randomize_(OPTAutoCompressorModel(tiny_config("opt")))
    for parameter in model.parameters():
        assert parameter.std() > 0.1
        assert parameter.unique(dim=0).shape == parameter.shape


@pytest.mark.parametrize("accumulate_summary", [True, False])
@pytest.mark.parametrize("kind", ["fixed", "variable"])
@all_autocompressors
@torch.no_grad()
def test_rows_padded_on_the_right(name, kind, accumulate_summary):
    """Segments of padding alone, behind a row's end or in front of it, leave the row's softprompt as it is."""
    make = tiny_autocompressor if kind == "fixed" else variable_autocompressor
    model = make(name, dtype=torch.float64, accumulate_summary=accumulate_summary)
    rows = [random_ids(1, length, seed=length) for length in (16, 7, 4)]
    given, given_mask = random_softprompt(model, 3, 2), torch.tensor([[1, 1], [0, 1], [1, 0]])
    for side in ("right", "left"):
        ids, mask = pad_rows(rows, side)
        ids = ids.masked_fill(mask == 0, 7)
        for start in ({}, {"softprompt": given, "softprompt_attention_mask": given_mask}):
            found = model.compress(ids, attention_mask=mask, segment_lengths=4, return_attention_mask=True, **start)
            for index, row in enumerate(rows):
                # Segments are counted from the right end in a row that is padded on the left.
                lengths = 4 if side == "right" else [n for n in (row.shape[1] % 4, *[4] * (row.shape[1] // 4)) if n]
                alone, alone_mask = model.compress(
                    row, segment_lengths=lengths, return_attention_mask=True, **select_row(start, index)
                )
                expected = alone[0, alone_mask[0].bool()]
                assert_close(found[0][index, found[1][index].bool()], expected, **CLOSE)


@pytest.mark.parametrize("accumulate_summary", [True, False])
@all_autocompressors
@torch.no_grad()
def test_chained_calls_of_rows_padded_on_the_right(name, accumulate_summary):
    """The second call has no text for a row: its softprompt and mask stay those after the first."""
    model = tiny_autocompressor(name, torch.float64, accumulate_summary=accumulate_summary)
    ids, mask = pad_rows([random_ids(1, 12), random_ids(1, 5, seed=5)], "right")
    whole = model(ids, attention_mask=mask, segment_lengths=6, output_softprompt=True)
    first = model(ids[:, :6], attention_mask=mask[:, :6], output_softprompt=True)
    second = model(
        ids[:, 6:],
        attention_mask=mask[:, 6:],
        output_softprompt=True,
        softprompt=first.softprompt,
        softprompt_attention_mask=first.softprompt_attention_mask,
    )
    assert_close(second.softprompt, whole.softprompt, **CLOSE)
    kept = second.softprompt_attention_mask[1].bool()
    assert torch.equal(second.softprompt_attention_mask, whole.softprompt_attention_mask)
    assert_close(second.softprompt[1, kept], first.softprompt[1], **EXACT)
    alone = model(ids[1:, :5], output_softprompt=True).softprompt[0]
    assert_close(first.softprompt[1], alone, **CLOSE)


@torch.no_grad()
def test_more_positions_than_the_base_has(monkeypatch):
    """One warning with the numbers, and none where they fit, rescale or are not counted."""
    model, said = tiny_autocompressor("llama"), []
    monkeypatch.setattr(input_checks.logger, "warning", said.append)
    monkeypatch.setattr(input_checks, "WARNED_LIMITS", set())
    limit, num_summary = model.config.max_position_embeddings, model.config.summary_length
    ids = random_ids(1, limit + 10)
    model(ids[:, :limit])
    model.compress(ids[:, : limit - num_summary], segment_lengths=limit - num_summary)
    model.compress(ids)  # segments that fit by themselves
    tiny_autocompressor("llama", summary_length=limit)(ids[:, :5], softprompt=random_softprompt(model, 1, 3))
    assert said == []
    for num_vectors in (limit, limit + 3):
        model(ids[:, :5], softprompt=random_softprompt(model, 1, num_vectors), output_softprompt=True)
    (message,) = said
    total = limit + 5 + num_summary
    assert f"{limit} summary vectors, 5 text tokens" in message and f"{total} positions" in message
    assert f"`max_position_embeddings` = {limit}" in message


@all_autocompressors
def test_gguf(name, tmp_path):
    model_class = AUTOCOMPRESSORS[name][1]
    with pytest.raises(ValueError, match="`gguf_file` must be None, got 'a.gguf': convert it first"):
        model_class.from_pretrained(tmp_path, gguf_file="a.gguf")
