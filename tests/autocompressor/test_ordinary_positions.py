"""Summary vectors with ordinary positions (`ordinary_summary_positions`): the rule, padding, the cache, the table."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from modeling_testing import (
    DOUBLE,
    EXACT,
    both_families,
    random_ids,
    random_softprompt,
    tiny_autocompressor,
    tiny_config,
)
from test_autocompressor import AutoCompressorTests
from test_prefix_keys import ORDINARY, assert_equals_plain_path, make_model, random_call
from test_variable_length_use import VariableLengthTests
from torch.testing import assert_close


# What it changes: base, and whether the number of vectors is variable.
CHANGED = [("opt", False), ("opt_projected", False), ("opt", True), ("llama", True), ("gemma", True)]
changed = pytest.mark.parametrize("name, variable", CHANGED)


class Ordinary:
    """The tests of every family, with ordinary positions."""

    @property
    def config_fields(self):
        return super().config_fields | ORDINARY


class TestOPT(Ordinary, AutoCompressorTests):
    name = "opt"


class TestVariableOPT(Ordinary, VariableLengthTests):
    name = "opt"


class TestVariableLlama(Ordinary, VariableLengthTests):
    name = "llama"


@changed
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_keys_of_earlier_segments(name, variable, training, without_float32):
    """Random lengths, padding, masks and weights: as if all vectors were read in every segment."""
    model = make_model(name, variable, **ORDINARY).train(training)
    for seed in range(6):
        assert_equals_plain_path(model, random_call(model, variable, seed))


def text_with_vectors(model, softprompt: torch.Tensor, ids: torch.LongTensor) -> torch.Tensor:
    """What stands in the columns of a segment, `(rows, softprompt + text + summary, dim)`."""
    summary = model.embed_summary.weight.expand(len(ids), -1, -1)
    return torch.cat([softprompt, model.get_input_embeddings()(ids), summary], dim=1)


@pytest.mark.parametrize("name", ["opt", "opt_projected"])
@torch.no_grad()
def test_opt_counts_every_column(name):
    """One pass of the base model over softprompt, text and summary embeddings, with positions of its own."""
    model = tiny_autocompressor(name, torch.float64, **ORDINARY)
    ids, softprompt = random_ids(2, 7), random_softprompt(model, 2, 4)
    states = model.model(inputs_embeds=text_with_vectors(model, softprompt, ids), use_cache=False).last_hidden_state
    outputs = model(ids, softprompt=softprompt, output_softprompt=True)
    assert_close(outputs.last_hidden_state, states[:, 4:11], **DOUBLE)
    assert_close(outputs.softprompt[:, 4:], states[:, 11:], **DOUBLE)
    other = tiny_autocompressor(name, torch.float64)(ids, softprompt=softprompt)
    assert not other.logits.isclose(outputs.logits, atol=1e-3).all()


@torch.no_grad()
def test_nothing_changes_where_positions_are_ordinary_anyway():
    ids = random_ids(2, 12)
    found = [tiny_autocompressor("llama", **fields)(ids, segment_lengths=4) for fields in ({}, ORDINARY)]
    assert_close(found[0].logits, found[1].logits, **EXACT)


@pytest.mark.parametrize("variable", [False, True])
@torch.no_grad()
def test_masked_vectors_equal_absent_ones(variable):
    model = make_model("opt", variable, **ORDINARY)
    ids, softprompt = random_ids(3, 9), random_softprompt(model, 3, 5)
    mask = torch.tensor([[1, 0, 1, 1, 0], [0, 0, 1, 0, 0], [0, 0, 0, 0, 0]])
    options = {"max_new_tokens": 3, "eos_token_id": None, "output_logits": True, "return_dict_in_generate": True}
    batched = model.generate(ids, softprompt=softprompt, softprompt_attention_mask=mask, **options)
    for index in range(3):
        kept = softprompt[index : index + 1, mask[index].bool()]
        alone = model.generate(ids[index : index + 1], softprompt=kept, **options)
        assert_close(torch.stack(batched.logits)[:, index], torch.stack(alone.logits)[:, 0], **DOUBLE)


def test_opt_table_must_hold_everything():
    model = tiny_autocompressor("opt", **ORDINARY)  # 40 positions, 3 vectors
    ids, softprompt = random_ids(1, 40), random_softprompt(model, 1, 9)
    assert model(ids[:, :28], softprompt=softprompt, output_softprompt=True).softprompt.shape[1] == 12
    for got, call in {
        "0 [+] 40 [+] 3": lambda: model(ids, output_softprompt=True),
        "9 [+] 32 [+] 0": lambda: model(ids[:, :32], softprompt=softprompt),
        "9 [+] 29 [+] 3": lambda: model.compress(ids[:, :29], softprompt=softprompt, segment_lengths=29),
        "3 [+] 38 [+] 0": lambda: model.generate(
            ids[:, :37], softprompt=softprompt[:, :3], max_new_tokens=3, eos_token_id=None
        ),
    }.items():
        with pytest.raises(ValueError, match=f"`max_position_embeddings` = 40 positions, got {got}; cut"):
            call()
    # By default half of the positions are left to the vectors.
    assert model.default_segment_lengths(40) == [20, 20]
    assert tiny_autocompressor("opt").default_segment_lengths(40) == [40]


@both_families
def test_bad_value(name):
    with pytest.raises((ValueError, StrictDataclassError), match="ordinary_summary_positions"):
        tiny_config(name, ordinary_summary_positions="yes")
