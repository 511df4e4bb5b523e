"""Variable-length summaries in use: the tests of every family, generation, budgets, checkpoints, labels, bad input."""

import pytest
import torch
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st
from modeling_testing import (
    AUTOCOMPRESSORS,
    CLOSE,
    DOUBLE,
    EOC,
    EXACT,
    SUM,
    VARIABLE_FIELDS,
    AnyAutoCompressorTests,
    HubTests,
    all_autocompressors,
    both_families,
    gradients,
    opt_and_llama,
    pad_rows,
    random_ids,
    random_softprompt,
    segmented_ids,
    tensors_of,
    tiny_autocompressor,
    tiny_base,
    tiny_config,
    variable_autocompressor,
)
from torch.nn import functional as F
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, GenerationConfig

from auto_compressor.autocompressor.losses import shift_labels_left
from auto_compressor.autocompressor.segments import append_sum_tokens
from auto_compressor.cache_names import cache_of


NEW = 8
GREEDY = {"do_sample": False, "max_new_tokens": NEW}
BEAMS = {"do_sample": False, "max_new_tokens": NEW, "num_beams": 3}


class VariableLengthTests(AnyAutoCompressorTests):
    """The tests of every family on texts with `<sum>`; by a threshold of 1 all rows get as many vectors."""

    other_fields = {
        "sum_token_id": 7,
        "eoc_token_id": 8,
        "compression_max_len": 5,
        "compression_lambda": 0.25,
        "compression_alpha": 2.0,
        "truncate_bptt_segments": 3,
        "compress_stop_threshold": 0.7,
    }
    bad_fields = [
        ("sum_token_id", None),
        ("sum_token_id", -1),
        ("eoc_token_id", None),
        ("eoc_token_id", SUM),
        ("eoc_token_id", "4"),
        ("compression_max_len", -1),
        ("compression_max_len", 2.0),
        ("compression_lambda", -0.1),
        ("compression_lambda", float("nan")),
        ("compression_lambda", float("inf")),
        ("compression_alpha", -1),
        ("truncate_bptt_segments", 0),
        ("compress_stop_threshold", 0),
        ("compress_stop_threshold", 1.5),
        ("compress_stop_threshold", -0.5),
    ]

    @property
    def config_fields(self):
        return super().config_fields | VARIABLE_FIELDS | {"compress_stop_threshold": 1.0}

    def make_ids(self, batch_size, length, seed=0):
        return (
            segmented_ids(batch_size, [4, 3, 4], seed) if length == 11 else random_ids(batch_size, length, seed=seed)
        )

    def make_segments(self, batch_size, segment_lengths):
        return segmented_ids(batch_size, segment_lengths)

    def num_vectors(self, config):
        return config.compression_max_len

    def expected_shapes(self, model, inputs):
        return super().expected_shapes(model, inputs) | {"length_penalty": ()}

    def settings(self, model, batch_size):
        unpadded = self.unpadded_settings(model, batch_size)
        segments = {"segment_lengths": [4, 3, 4], "output_softprompt": True}
        return unpadded + [settings | segments for settings in unpadded]

    def unpadded_settings(self, model, batch_size):
        softprompt = random_softprompt(model, batch_size, 4)
        mask = (torch.arange(4 * batch_size).reshape(batch_size, 4) % 3 > 0).long()
        return [{}, {"softprompt": softprompt}, {"softprompt": softprompt, "softprompt_attention_mask": mask}]

    @pytest.mark.filterwarnings("ignore:.*gradient_checkpointing")
    def test_gradient_checkpointing(self):
        model = self.make_model().train()
        model.gradient_checkpointing_enable()
        with pytest.raises(ValueError, match="segment_gradient_checkpointing"):
            model(**self.make_inputs(model))


class TestOPT(VariableLengthTests):
    name = "opt"


class TestLlama(HubTests, VariableLengthTests):
    name = "llama"


# Generation


def generator(name, **fields):
    """No token ends the text or counts as padding."""
    model = variable_autocompressor(name, **fields)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, None
    return model


@torch.no_grad()
def greedy_loop(model, ids, attention_mask=None, steps=NEW, **kwargs):
    """The definition of greedy generation: the whole text again at every step, without the control tokens."""
    mask = torch.ones_like(ids) if attention_mask is None else attention_mask
    for _ in range(steps):
        logits = model(ids, attention_mask=mask, use_cache=False, **kwargs).logits[:, -1:]
        logits[..., [SUM, EOC]] = -torch.inf
        ids = torch.cat([ids, logits.argmax(dim=-1)], dim=1)
        mask = F.pad(mask, (0, 1), value=1)
    return ids


def compressed_context(model):
    """Softprompt and mask of three contexts with different numbers of vectors."""
    softprompt, mask = model.compress(random_ids(16, 12, seed=4), segment_lengths=4, return_attention_mask=True)
    rows = mask.sum(dim=1).argsort(stable=True)[[0, 15, 8]]
    assert len(mask.sum(dim=1)[rows].unique()) > 1 and not mask.is_floating_point()
    return {"softprompt": softprompt[rows], "softprompt_attention_mask": mask[rows]}


def prompts():
    return pad_rows([random_ids(1, length, seed=length) for length in (9, 4, 6)], "left")


@all_autocompressors
@pytest.mark.parametrize("how", [GREEDY, BEAMS], ids=["greedy", "beams"])
def test_generate_after_different_numbers_of_vectors(name, how):
    model = generator(name)
    kwargs, (ids, mask) = compressed_context(model), prompts()
    sequences = model.generate(ids, attention_mask=mask, **kwargs, **how)
    if how is GREEDY:
        assert torch.equal(sequences, greedy_loop(model, ids, mask, **kwargs))
    assert torch.equal(model.generate(ids, attention_mask=mask, use_cache=False, **kwargs, **how), sequences)
    for index in range(3):
        row = ids[index : index + 1, mask[index].bool()]
        kept = kwargs["softprompt"][index : index + 1, kwargs["softprompt_attention_mask"][index].bool()]
        alone = model.generate(row, softprompt=kept, **how)
        assert torch.equal(alone[0, row.shape[1] :], sequences[index, 9:])
    assert not torch.equal(model.generate(ids, attention_mask=mask, **how), sequences)


@both_families
def test_sampling(name):
    model = generator(name)
    kwargs, (ids, mask) = compressed_context(model), prompts()
    sequences = []
    for seed, use_cache in [(3, True), (3, False), (4, True)]:
        torch.manual_seed(seed)
        how = {"do_sample": True, "max_new_tokens": 12, "temperature": 1.3, "use_cache": use_cache}
        sequences.append(model.generate(ids, attention_mask=mask, **kwargs, **how))
    assert torch.equal(sequences[0], sequences[1])
    assert not torch.equal(sequences[0], sequences[2])


@opt_and_llama
@pytest.mark.parametrize("accumulate_summary", [True, False])
@pytest.mark.parametrize("max_summary_length", [None, 2])
def test_generate_with_segments(name, accumulate_summary, max_summary_length):
    model, ids = generator(name, accumulate_summary=accumulate_summary), random_ids(3, 12)
    for given in ({}, compressed_context(model)):
        budget = {} if max_summary_length is None else {"max_summary_length": max_summary_length}
        softprompt, mask = model.compress(
            ids[:, :8], segment_lengths=[5, 3], return_attention_mask=True, **given, **budget
        )
        after = {"softprompt": softprompt, "softprompt_attention_mask": mask}
        for how in (GREEDY, BEAMS):
            expected = model.generate(ids[:, 8:], **after, **how)
            for use_cache in (True, False):
                cached = {"use_cache": use_cache}
                actual = model.generate(ids, segment_lengths=[5, 3, 4], **cached, **given, **budget, **how)
                assert torch.equal(actual[:, :8], ids[:, :8])
                assert torch.equal(actual[:, 8:], expected)


@both_families
def test_padded_prompt_with_segments(name):
    model = generator(name)
    rows = [random_ids(1, length, seed=length) for length in (12, 7, 3)]
    ids, mask = pad_rows(rows, "left")
    sequences = model.generate(ids, attention_mask=mask, segment_lengths=4, **GREEDY)
    for index, row in enumerate(rows):
        length = row.shape[1]
        lengths = [length % 4] * (length % 4 > 0) + [4] * (length // 4)
        alone = model.generate(row, segment_lengths=lengths, **GREEDY)
        assert torch.equal(sequences[index, 12:], alone[0, length:])


@both_families
def test_continuation(name):
    """The cache counts text without `<sum>`, as `generate` does."""
    model, ids = generator(name), random_ids(2, 12)
    call = {"segment_lengths": [5, 3, 4]}
    expected = model.generate(ids, **call, **GREEDY)
    first = model.generate(ids, return_dict_in_generate=True, **call, **GREEDY | {"max_new_tokens": 3})
    assert cache_of(first).get_seq_length() == 14
    second = model.generate(first.sequences, cache=cache_of(first), **GREEDY | {"max_new_tokens": 5})
    assert torch.equal(second, expected)


@both_families
@pytest.mark.parametrize("segment_lengths", [None, [4, 5]], ids=str)
def test_assisted(name, segment_lengths):
    model, ids = generator(name), random_ids(1, 3).repeat(1, 3)
    call = {"segment_lengths": segment_lengths, "do_sample": False, "max_new_tokens": 12}
    expected = model.generate(ids, **call)
    assert torch.equal(model.generate(ids, prompt_lookup_num_tokens=3, **call), expected)
    assistant = tiny_base(name, seed=1).to(torch.float64)
    assert torch.equal(model.generate(ids, assistant_model=assistant, **call), expected)


@both_families
def test_control_tokens_are_never_generated(name):
    model, ids = generator(name), random_ids(3, 9)
    favourite = int(model.generate(ids, **GREEDY)[0, 9])
    with torch.no_grad():
        # OPT's head is its embedding; the hidden state makes one of the two the most probable.
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())
        direction = torch.randn(model.lm_head.in_features, dtype=torch.float64)
        model.lm_head.weight[SUM], model.lm_head.weight[EOC] = 1e3 * direction, -1e3 * direction
    assert torch.isin(model(ids).logits.argmax(dim=-1), torch.tensor([SUM, EOC])).all()
    config = GenerationConfig(max_new_tokens=NEW, suppress_tokens=[favourite], do_sample=False)
    calls = {
        "plain": ({}, []),
        "suppress_tokens": ({"suppress_tokens": [favourite]}, [favourite]),
        "no suppress_tokens": ({"suppress_tokens": None}, []),
        "generation_config": ({"generation_config": config}, [favourite]),
        "beams": ({"num_beams": 3}, []),
        "sampled": ({"do_sample": True}, []),
        "segments": ({"segment_lengths": 4}, []),
    }
    for case, (kwargs, suppressed) in calls.items():
        how = {} if "generation_config" in kwargs else GREEDY
        new = model.generate(ids, **how | kwargs)[:, 9:]
        assert new.shape == (3, NEW), case
        assert not torch.isin(new, torch.tensor([SUM, EOC, *suppressed])).any(), case
    positional = model.generate(ids, config)[:, 9:]
    assert not torch.isin(positional, torch.tensor([SUM, EOC, favourite])).any()
    assert positional.shape == (3, NEW)
    # The caller's config stays as it was.
    assert config.suppress_tokens == [favourite] and model.generation_config.suppress_tokens is None


@opt_and_llama
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@torch.no_grad()
def test_compression_leaves_the_cache(name, training):
    """The steps' keys are taken out again, and a cached text is summarised as a whole one."""
    model, ids = variable_autocompressor(name).train(training), segmented_ids(3, [4, 5, 3])
    whole, call = {"use_cache": False}, {"output_softprompt": True}
    first = model(ids[:, :9], segment_lengths=[4, 5], use_cache=True, **call)
    # `<sum>` of the first segment is no text.
    assert cache_of(first).get_seq_length() == 8
    expected = model(ids[:, :9], segment_lengths=[4, 5], **whole, **call)
    assert_close(first.softprompt, expected.softprompt, **DOUBLE)
    second = model(ids[:, 9:], cache=cache_of(first), **call)
    expected = model(ids, segment_lengths=[4, 8], **whole, **call)
    assert_close(second.logits, expected.logits[:, 9:], **DOUBLE)
    assert_close(second.softprompt, expected.softprompt, **DOUBLE)
    assert_close(second.softprompt_attention_mask, expected.softprompt_attention_mask, **DOUBLE)


# Budgets


@opt_and_llama
@pytest.mark.parametrize("accumulate_summary", [True, False])
@torch.no_grad()
def test_fixed_budget_equals_a_shorter_summary(name, accumulate_summary):
    model = tiny_autocompressor(name, torch.float64, accumulate_summary=accumulate_summary)
    ids, softprompt = random_ids(2, 12), random_softprompt(model, 2, 2)
    call = {"segment_lengths": [5, 3, 4], "softprompt": softprompt, "output_softprompt": True}
    full = model(ids[:, :5], softprompt=softprompt, output_softprompt=True).softprompt
    for budget in (1, 2, 3, 7):
        length = min(budget, 3)
        shorter = tiny_autocompressor(
            name, torch.float64, summary_length=length, accumulate_summary=accumulate_summary
        )
        weights = model.state_dict()
        weights["embed_summary.weight"] = weights["embed_summary.weight"][:length]
        shorter.load_state_dict(weights)
        actual = model(ids, max_summary_length=budget, labels=ids, **call)
        assert_close(tensors_of(actual), tensors_of(shorter(ids, labels=ids, **call)), **EXACT)
        assert torch.equal(
            model.compress(ids, segment_lengths=[5, 3, 4], softprompt=softprompt, max_summary_length=budget),
            actual.softprompt,
        )
        # Summary vectors see those before them only.
        first = model(ids[:, :5], softprompt=softprompt, output_softprompt=True, max_summary_length=budget).softprompt
        assert_close(first, full[:, : first.shape[1]], **DOUBLE)
        tokens = [
            m.generate(ids, segment_lengths=[5, 3, 4], **k, **GREEDY)
            for m, k in ((model, {"max_summary_length": budget}), (shorter, {}))
        ]
        assert torch.equal(*tokens)
    none = model(ids, max_summary_length=0, **call)
    assert torch.equal(none.softprompt, softprompt) and none.summaries == ()
    pieces = [model(piece, softprompt=softprompt).logits for piece in ids.split([5, 3, 4], dim=1)]
    assert_close(none.logits, torch.cat(pieces, dim=1), **DOUBLE)


@all_autocompressors
@torch.no_grad()
def test_variable_budget(name):
    model, ids = variable_autocompressor(name), segmented_ids(8, [5])
    full = model(ids, output_softprompt=True)
    numbers = full.softprompt_attention_mask.sum(dim=1)
    for budget in (1, 2, 3, 9):
        fewer = model(ids, output_softprompt=True, max_summary_length=budget)
        assert torch.equal(fewer.softprompt_attention_mask.sum(dim=1), numbers.clamp(max=budget))
        kept = fewer.softprompt_attention_mask.bool()
        assert_close(fewer.softprompt[kept], full.softprompt[:, :budget][kept], **DOUBLE)
        text = model.compress(ids[:, :-1], max_summary_length=budget, return_attention_mask=True)
        assert_close(text, (fewer.softprompt, fewer.softprompt_attention_mask), **DOUBLE)
    steps = [
        model.train()(ids, output_softprompt=True, **budget).summaries[0].weights
        for budget in ({}, {"max_summary_length": 2})
    ]
    assert_close(steps[0][:, :2], steps[1], **EXACT)
    nothing = model.eval()(ids, output_softprompt=True, max_summary_length=0)
    assert nothing.softprompt.shape[1] == 0 and nothing.length_penalty is None
    assert model.compress(ids, max_summary_length=0).shape[1] == 0


@both_families
@pytest.mark.parametrize("budget", [-1, 1.0, True, "2"], ids=str)
def test_bad_budgets(name, budget):
    ids = random_ids(1, 8)
    for model in (tiny_autocompressor(name), variable_autocompressor(name)):
        for call in (
            lambda **kwargs: model(ids, **kwargs),  # noqa: B023
            lambda **kwargs: model.compress(ids, **kwargs),  # noqa: B023
            lambda **kwargs: model.generate(ids, segment_lengths=4, **GREEDY, **kwargs),  # noqa: B023
        ):
            with pytest.raises(ValueError, match="max_summary_length"):
                call(max_summary_length=budget)


# Checkpoints


@all_autocompressors
def test_from_plain_checkpoint(name, tmp_path):
    base = tiny_base(name)
    base.save_pretrained(tmp_path)
    model = AUTOCOMPRESSORS[name][1].from_pretrained(tmp_path, sum_token_id=60, eoc_token_id=61)
    assert model.config.variable_length and model.embed_summary is None
    weights, ids = model.state_dict(), random_ids(2, 9)
    assert weights.pop("stop_head.weight").std() > 0
    # Until it is trained, about as many vectors as not go on to the end.
    assert_close(weights.pop("stop_head.bias"), -torch.tensor([8.0]).log())
    assert_close(dict(weights), dict(base.state_dict()), **EXACT)
    assert torch.equal(model(ids).logits, base(ids).logits)
    with pytest.raises(ValueError, match="resize_token_embeddings"):
        model.compress(ids)
    ending = F.pad(ids, (0, 1), value=60)
    with pytest.raises(ValueError, match="resize_token_embeddings"):
        model(ending, output_softprompt=True)
    model.resize_token_embeddings(62)
    assert_close(model(ids).logits[..., :60], base(ids).logits, **CLOSE)
    outputs = model(ending, labels=ending, output_softprompt=True)
    assert outputs.loss.isfinite() and 1 <= outputs.softprompt.shape[1] <= 8
    tokens = model.generate(ids, segment_lengths=4, **GREEDY)
    assert not torch.isin(tokens, torch.tensor([60, 61])).any()

    model.save_pretrained(tmp_path / "saved")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert loaded.config.variable_length and loaded.config.vocab_size == 62
    assert_close(tensors_of(loaded(ending, labels=ending, output_softprompt=True)), tensors_of(outputs), **EXACT)


@both_families
def test_from_fixed_checkpoint(name, tmp_path):
    """A fixed-length AutoCompressor goes on as one of variable length; its summary embeddings are left out."""
    fixed, ids = tiny_autocompressor(name), segmented_ids(2, [4, 5])
    fixed.save_pretrained(tmp_path)
    model = type(fixed).from_pretrained(tmp_path, sum_token_id=SUM, eoc_token_id=EOC)
    assert model.embed_summary is None and model.stop_head.weight.isfinite().all()
    assert torch.equal(model(ids).logits, fixed(ids).logits)
    # Without any steps the control tokens are tokens as others.
    same = type(fixed).from_pretrained(tmp_path, sum_token_id=SUM, eoc_token_id=EOC, compression_max_len=0)
    assert same.stop_head is None
    call = {"segment_lengths": [4, 5], "output_softprompt": True, "labels": ids}
    assert_close(tensors_of(same(ids, **call)), tensors_of(fixed(ids, **call)), **EXACT)


# Labels


def test_labels_pass_over_control_tokens():
    labels = torch.tensor([[11, 12, SUM, 13, 14, SUM], [11, SUM, 12, 13, EOC, 14]])
    skipped = (labels == SUM) | (labels == EOC)
    expected = [[12, 13, -100, 14, -100, -100], [12, -100, 13, 14, -100, -100]]
    assert shift_labels_left(labels, skipped).tolist() == expected


@both_families
def test_control_tokens_are_no_labels(name):
    model, ids = variable_autocompressor(name).train(), segmented_ids(2, [4, 3, 4])
    call = {"segment_lengths": [4, 3, 4]}
    outputs = model(ids, labels=ids, **call)
    logits = outputs.logits - outputs.logits.logsumexp(dim=-1, keepdim=True)
    text = [0, 1, 2, 4, 5, 7, 8, 9]
    chosen = [-logits[:, here].gather(1, ids[:, there, None]) for here, there in zip(text, text[1:], strict=False)]
    expected = torch.cat(chosen).mean() + outputs.length_penalty
    assert_close(outputs.loss.double(), expected, **CLOSE)
    found = gradients(model, outputs.loss)
    hidden = ids.masked_fill(ids == SUM, -100)
    eoc = ids.masked_fill(ids == SUM, EOC)
    shifted = torch.full_like(ids, -100)
    shifted[:, text[:-1]] = ids[:, text[1:]]
    controlled = torch.where(shifted == -100, torch.tensor([SUM, EOC] * 5 + [SUM]), shifted)
    for given in (
        {"labels": hidden},
        {"labels": eoc},
        {"labels": ids, "skip_logits": True},
        {"shift_labels": shifted},
        {"shift_labels": controlled},
        {"labels": ids, "num_items_in_batch": torch.tensor(14)},
    ):
        other = model(ids, **given, **call)
        assert_close(other.loss, outputs.loss, **CLOSE)
        assert_close(gradients(model, other.loss), found, **CLOSE)


@both_families
def test_appended_sum_equals_a_loop_over_segments(name):
    """A text and its labels, cut, ended with `<sum>` and predicted whole, against one call per segment."""
    model, ids = variable_autocompressor(name), random_ids(2, 11)
    labels, mask = ids.clone(), torch.ones_like(ids)
    mask[1, :2], labels[1, :2], labels[0, 6] = 0, -100, -100
    inputs, lengths = append_sum_tokens(
        {"input_ids": ids, "attention_mask": mask, "labels": labels}, [4, 3, 4], SUM, include_last=False
    )
    assert lengths == [5, 4, 4]
    outputs = model(**inputs, segment_lengths=lengths)
    logits, given = [], {}
    for index, (piece, piece_mask) in enumerate(zip(ids.split([4, 3, 4], 1), mask.split([4, 3, 4], 1), strict=True)):
        logits.append(model(piece, attention_mask=piece_mask, **given).logits)
        if index < 2:
            softprompt, softprompt_mask = model.compress(
                piece, attention_mask=piece_mask, segment_lengths=[piece.shape[1]], return_attention_mask=True, **given
            )
            given = {"softprompt": softprompt, "softprompt_attention_mask": softprompt_mask}
    logits = torch.cat(logits, dim=1)
    expected = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    assert_close((outputs.loss - outputs.length_penalty).double(), expected, **CLOSE)


@settings(max_examples=60, deadline=None)
@drawn(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=5),
    batch_size=st.integers(1, 3),
    include_last=st.booleans(),
    seed=st.integers(0, 10**6),
    data=st.data(),
)
def test_append_sum_tokens(lengths, batch_size, include_last, seed, data):
    size = (batch_size, sum(lengths))
    inputs = {"input_ids": random_ids(*size, seed=seed)}
    for field in data.draw(st.sets(st.sampled_from(["attention_mask", "labels", "shift_labels"]))):
        ones = torch.randint(2, size, generator=torch.Generator().manual_seed(seed))
        inputs[field] = ones if field == "attention_mask" else inputs["input_ids"].masked_fill(ones == 0, -100)
    outputs, new_lengths = append_sum_tokens(inputs, lengths, SUM, include_last)
    assert outputs.keys() == inputs.keys()
    ended = [include_last or index < len(lengths) - 1 for index in range(len(lengths))]
    assert new_lengths == [length + end for length, end in zip(lengths, ended, strict=True)]
    ends = torch.tensor(new_lengths).cumsum(0)[torch.tensor(ended)] - 1
    text = torch.ones(sum(new_lengths), dtype=torch.bool).index_fill(0, ends, False)
    for field, tensor in outputs.items():
        assert torch.equal(tensor[:, text], inputs[field]) and tensor.dtype == inputs[field].dtype
        if field == "input_ids":
            assert (tensor[:, ends] == SUM).all()
        elif field != "attention_mask":
            assert (tensor[:, ends] == -100).all()
        else:
            segments = [piece.any(dim=1) for piece in inputs[field].split(lengths, dim=1)]
            assert torch.equal(tensor[:, ends].bool(), torch.stack(segments, dim=1)[:, ended])


# Bad input


IDS = segmented_ids(2, [3, 3])
BAD_CALLS = {
    "embeddings for compression": (
        "input_ids.*inputs_embeds",
        lambda m: m(inputs_embeds=m.get_input_embeddings()(IDS), output_softprompt=True),
    ),
    "embeddings for segments": (
        "input_ids.*inputs_embeds",
        lambda m: m(inputs_embeds=m.get_input_embeddings()(IDS), segment_lengths=3),
    ),
    "embeddings: compress": ("inputs_embeds", lambda m: m.compress(inputs_embeds=m.get_input_embeddings()(IDS))),
    "embeddings: generate": (
        "inputs_embeds",
        lambda m: m.generate(inputs_embeds=m.get_input_embeddings()(IDS), segment_lengths=3, **GREEDY),
    ),
    "different lengths without the mask": (
        "return_attention_mask",
        lambda m: m.compress(random_ids(16, 12, seed=4), segment_lengths=4),
    ),
    "compress in training": ("model.eval", lambda m: m.train().compress(random_ids(1, 12))),
    "weights of another shape": (
        "softprompt_attention_mask",
        lambda m: m(IDS, softprompt=random_softprompt(m, 2, 3), softprompt_attention_mask=torch.rand(2, 4)),
    ),
}


@both_families
@pytest.mark.parametrize("case", BAD_CALLS)
def test_bad_input(name, case):
    argument, call = BAD_CALLS[case]
    with pytest.raises(ValueError, match=argument):
        call(variable_autocompressor(name))


@both_families
def test_bad_configs(name):
    with pytest.raises(ValueError, match="summary_length.*compression_max_len"):
        tiny_config(name, summary_length=0, compression_max_len=0)
    with pytest.raises(ValueError, match="sum_token_id.*eoc_token_id"):
        tiny_config(name, sum_token_id=3)
    with pytest.raises(ValueError, match="sum_token_id.*eoc_token_id"):
        tiny_config(name, sum_token_id=3, eoc_token_id=3)
    assert not tiny_config(name).variable_length
    assert not tiny_config(name, sum_token_id=3, eoc_token_id=4, compression_max_len=0).variable_length
    assert tiny_config(name, sum_token_id=3, eoc_token_id=4, summary_length=0).variable_length


@both_families
@pytest.mark.parametrize("attn_implementation", ["flash_attention_2", "flex_attention"])
def test_weights_need_an_attention_with_a_bias(name, attn_implementation):
    model = variable_autocompressor(name)
    model.config._attn_implementation = attn_implementation
    weights = {"softprompt": random_softprompt(model, 2, 3), "softprompt_attention_mask": torch.rand(2, 3)}
    with pytest.raises(ValueError, match=attn_implementation):
        model(IDS, **weights)


def test_text_longer_than_the_positions():
    """`<sum>` takes one of OPT's positions."""
    model = variable_autocompressor("opt")
    assert model.compress(random_ids(1, 39), segment_lengths=39).shape[1] > 0
    assert model.compress(random_ids(1, 100)).shape[1] > 0
    with pytest.raises(ValueError, match="max_position_embeddings"):
        model.compress(random_ids(1, 40), segment_lengths=40)
    with pytest.raises(ValueError, match="max_position_embeddings"):
        model.generate(random_ids(1, 45), segment_lengths=[40, 5], **GREEDY)


@opt_and_llama
def test_segments_without_sum_are_counted_as_text(name):
    """Where no `<sum>` stands at the end of a segment, nothing is taken off: a mask over all the text goes on."""
    model, ids = variable_autocompressor(name).eval(), random_ids(2, 18)
    outputs = model(ids, segment_lengths=[6, 12], use_cache=True)
    assert outputs.cache.get_seq_length() == 18 and outputs.softprompt.shape[1] == 0
    more = torch.ones(2, 20, dtype=torch.long)
    assert model(random_ids(2, 2), attention_mask=more, cache=outputs.cache).logits.shape[1] == 2
