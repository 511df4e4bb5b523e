"""The byte language models: what every model must do, rows and causality, losses, and each option by itself."""

import os
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from hypothesis import given, settings
from hypothesis import strategies as st
from modeling_testing import (
    DOUBLE,
    EXACT,
    CausalLMTests,
    HubTests,
    gradients,
    pad_rows,
    random_ids,
    randomize_,
    run_on_two_processes,
)
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

from auto_compressor import (
    AdaptiveByteConfig,
    AdaptiveByteForCausalLM,
    ByteLMOutput,
    GRUByteConfig,
    GRUByteForCausalLM,
)
from auto_compressor.byte_lm.gru_block import GRUBlock
from auto_compressor.byte_lm.modeling_adaptive_byte import clamped_entropy, logger
from auto_compressor.byte_lm.patching import gather_patches


# Under these a random model has borders on every level, at different places in every row.
LEVELS = {
    1: {"num_levels": 1},
    2: {"num_levels": 2, "byte_entropy_threshold": 9.6},
    3: {"num_levels": 3, "byte_entropy_threshold": 9.6, "meta_uncertainty_threshold": 1.2},
    4: {"num_levels": 4, "byte_entropy_threshold": 9.6, "meta_uncertainty_threshold": [1.2, 0.9]},
}
every_model = pytest.mark.parametrize("name", [*LEVELS, "gru"])


def tiny_model(name: int | str, dtype=torch.float64, **fields):
    """An adaptive model with so many levels, or the recurrent one, with random weights."""
    if name == "gru":
        model = GRUByteForCausalLM(GRUByteConfig(hidden_size=16, num_blocks=3, **fields))
    else:
        model = AdaptiveByteForCausalLM(AdaptiveByteConfig(hidden_size=16, **LEVELS[name] | fields))
    return randomize_(model).to(dtype).eval()


class ByteLMTests(CausalLMTests):
    output_class = ByteLMOutput
    # There is no attention, and there are no layers to checkpoint.
    test_eager_equals_sdpa = test_gradient_checkpointing = None

    def make_model(self, attn_implementation="eager", dtype=torch.float32, **fields):
        return super().make_model(attn_implementation, dtype, **fields)

    def make_inputs(self, model):
        ids, mask = pad_rows([random_ids(1, 23), random_ids(1, 17, seed=1)], "left")
        return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


class AdaptiveTests(ByteLMTests):
    model_class = AdaptiveByteForCausalLM
    num_levels: int
    other_fields = {
        "border_error_threshold": 0.2,
        "entropy_floor": 1.0,
        "meta_uncertainty_threshold": 2,
        "add_encoder_states": True,
        "detach_meta_targets": True,
        "window_end_target": False,
        "carry_state": True,
    }
    bad_fields = [
        ("border_mode", "entropy"),
        ("hidden_size", 0),
        ("num_levels", 0),
        ("dropout", 1.0),
        ("meta_loss_weight", -1.0),
        ("entropy_reg_weight", float("inf")),
        ("meta_uncertainty_threshold", [1.0] * 7),
        ("target_ratios", [3.0] * 7),
    ]

    @property
    def config_fields(self):
        return LEVELS[self.num_levels] | {"hidden_size": 16, "entropy_floor": 3.0}

    def expected_shapes(self, model, inputs):
        logits = (2, 23, 257)
        return {"loss": (), "logits": logits, "encoder_logits": logits, "entropies": (2, 23)}


class TestOneLevel(AdaptiveTests):
    num_levels = 1


class TestTwoLevels(AdaptiveTests):
    num_levels = 2


class TestThreeLevels(AdaptiveTests, HubTests):
    num_levels = 3
    test_each_missing_key_is_initialised = None  # `TestTargetRatios` has the same modules, and more buffers


class TestFourLevels(AdaptiveTests):
    num_levels = 4
    test_each_missing_key_is_initialised = None


class TestTargetRatios(AdaptiveTests):
    num_levels = 3

    @property
    def config_fields(self):
        return super().config_fields | {"target_ratios": [3.0, 2.0]}


class TestGRU(ByteLMTests, HubTests):
    model_class = GRUByteForCausalLM
    config_fields = {"hidden_size": 16, "num_blocks": 2, "num_padding_parameters": 5}
    other_fields = {"num_levels": 2, "window_end_target": False, "carry_state": True}
    bad_fields = [
        ("hidden_size", 0),
        ("num_levels", 0),
        ("num_blocks", 0),
        ("num_padding_parameters", -1),
        ("dropout", 1.0),
    ]
    without_gradient = "padding_parameters"

    def expected_shapes(self, model, inputs):
        return {"loss": (), "logits": (2, 23, 257)}


# Causality


@every_model
@settings(deadline=None, max_examples=20)
@given(position=st.integers(1, 29), seed=st.integers(0, 99))
@torch.no_grad()
def test_the_future_does_not_leak(name, position, seed):
    """Other bytes from a position on leave everything before it as it was, in one pass and in pieces."""
    model, ids = tiny_model(name), random_ids(2, 30)
    changed = torch.cat([ids[:, :position], random_ids(2, 30 - position, seed=seed)], dim=1)
    found, expected = model(changed), model(ids)
    assert_close(found.logits[:, :position], expected.logits[:, :position], **DOUBLE)
    for cut in {position // 2, max(position - 3, 1), position} - {0}:
        cache = model(ids[:, :cut], use_cache=True).cache
        piece = model(changed[:, cut:], cache=cache).logits[:, : position - cut]
        assert_close(piece, expected.logits[:, cut:position], **DOUBLE)


@torch.no_grad()
def test_teacher_forced_borders_leak():
    """The control of the test above."""
    model, ids = tiny_model(3, border_mode="teacher_forced", border_error_threshold=1.0), random_ids(2, 30)
    off = []
    for position in range(1, 30):
        changed = torch.cat([ids[:, :position], random_ids(2, 30 - position, seed=9)], dim=1)
        off.append((model(changed).logits - model(ids).logits)[:, :position].abs().max())
    assert torch.stack(off).max() > 0.01


def test_teacher_forced_borders_warn_once():
    model, ids, records = tiny_model(3, border_mode="teacher_forced"), random_ids(1, 5), []
    logger.warning_once.__func__.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logger, "handle", records.append)
        model(ids)
        model(ids)
    assert ["leaks the future" in record.getMessage() for record in records] == [True]


# Losses


def byte_loss(logits, ids, mask, end_target: bool, labels=None):
    """A loop over rows and positions."""
    labels, nats = ids if labels is None else labels, []
    for row in range(len(ids)):
        columns = mask[row].nonzero()[:, 0].tolist()
        targets = [labels[row, column] for column in columns[1:]]
        if end_target and labels[row, columns[-1]] != -100:
            targets.append(torch.tensor(256))
        for column, target in zip(columns, targets, strict=False):
            if target != -100:
                nats.append(F.cross_entropy(logits[row, column], target))
    return torch.stack(nats).mean()


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("end_target", [True, False])
@every_model
def test_byte_losses(name, side, end_target):
    """Every target weighs the same, padding and labels of -100 have none, and rows end with 256 only if so asked."""
    model = tiny_model(name, window_end_target=end_target)
    ids, mask = pad_rows([random_ids(1, length, seed=length) for length in (23, 9, 17)], side)
    labels = ids.clone()
    labels[0, 3:7] = -100  # in the middle of a row
    labels[2, mask[2].nonzero()[:, 0]] = labels[2].masked_fill(torch.arange(23) > 20, -100)[mask[2].bool()]
    labels[1, mask[1].nonzero()[-1]] = -100  # the last of a row: then its end is no target either
    outputs = model(ids, attention_mask=mask, labels=labels)
    assert_close(outputs.losses["byte_decoder"], byte_loss(outputs.logits, ids, mask, end_target, labels), **DOUBLE)
    if name != "gru":
        expected = byte_loss(outputs.encoder_logits, ids, mask, end_target, labels)
        assert_close(outputs.losses["byte_encoder"], expected, **DOUBLE)
    nothing = model(ids, attention_mask=mask, labels=torch.full_like(ids, -100)).losses["byte_decoder"]
    assert nothing == 0


def meta_losses(model, outputs, ids, end_target: bool):
    """Of the levels above 0, by a loop over rows and units, from their states."""
    meta, uncertainty = [], []
    for level in range(1, model.config.num_levels):
        counts = outputs.border_masks[level - 1].sum(dim=1)
        inputs = gather_patches(outputs.hidden_states[level - 1], outputs.border_masks[level - 1])
        states, module = outputs.hidden_states[level], model.levels[level]
        errors, misjudged = [], []
        for row in range(len(ids)):
            units = [*inputs[row, : counts[row]], module.end_state]
            for index in range(counts[row] if end_target or ids[row, -1] == 256 else counts[row] - 1):
                errors.append((module.predictor(states[row, index]) - units[index + 1]).square().mean())
                expected = F.softplus(module.uncertainty_head(states[row, index]))[0]
                misjudged.append((expected - errors[-1].detach()).square())
        meta.append(torch.stack(errors).mean())
        uncertainty.append(torch.stack(misjudged).mean())
    return torch.stack(meta).mean(), torch.stack(uncertainty).mean()


@pytest.mark.parametrize("end_target", [True, False])
@pytest.mark.parametrize("num_levels", [2, 3, 4])
def test_losses_of_the_levels_above(num_levels, end_target):
    model = tiny_model(num_levels, window_end_target=end_target, entropy_floor=4.8)
    rows = [random_ids(1, length, seed=length) for length in (40, 25, 33)]
    rows[1][0, -1] = 256
    ids, mask = pad_rows(rows, "left")
    outputs = model(ids, attention_mask=mask, labels=ids, output_hidden_states=True)
    losses = outputs.losses
    # From here on rows in which level 0 stands in front, like the others.
    front, _ = pad_rows(rows, "right")
    in_front = model(front, attention_mask=mask.flip(1), output_hidden_states=True)
    meta, uncertainty = meta_losses(model, in_front, ids, end_target)
    assert_close(losses["meta"], meta, **DOUBLE)
    assert_close(losses["uncertainty"], uncertainty, **DOUBLE)
    below_floor = (4.8 - outputs.entropies[mask.bool()]).clamp(min=0)
    assert 0 < (below_floor > 0).sum() < mask.sum()
    assert_close(losses["entropy_reg"], below_floor.square().mean(), **DOUBLE)


def test_loss_is_the_weighted_sum():
    weights = {
        "encoder_loss": 2.0,
        "decoder_loss": 3.0,
        "meta_loss": 5.0,
        "uncertainty_loss": 7.0,
        "entropy_reg": 11.0,
    }
    model = tiny_model(3, entropy_floor=5.0, **{f"{name}_weight": weight for name, weight in weights.items()})
    ids = random_ids(2, 30)
    outputs = model(ids, labels=ids)
    terms = ("byte_encoder", "byte_decoder", "meta", "uncertainty", "entropy_reg")
    expected = sum(weight * outputs.losses[term] for weight, term in zip(weights.values(), terms, strict=True))
    assert all(outputs.losses[term] > 0 for term in terms)
    assert_close(outputs.loss, expected, **DOUBLE)


def test_uncertainty_does_not_change_what_it_predicts():
    model, ids = tiny_model(2), random_ids(2, 30)
    found = gradients(model, model(ids, labels=ids).losses["uncertainty"])
    assert found["levels.1.uncertainty_head.weight"].abs().max() > 0
    assert found["levels.1.predictor.weight"].abs().max() == 0 == found["levels.1.end_state"].abs().max()


@pytest.mark.parametrize("num_levels", [2, 3])
def test_a_window_without_a_border_trains_every_parameter(num_levels):
    """Else DDP would wait; its gradients are 0, and so is what has no target."""
    model = tiny_model(num_levels, byte_entropy_threshold=1e9, window_end_target=False).train()
    ids = random_ids(2, 20)
    cache = model(ids[:, :10], use_cache=True).cache
    outputs = model(ids[:, 10:], labels=ids[:, 10:], cache=cache)
    assert not outputs.border_masks[0].any() and outputs.losses["meta"] == 0 == outputs.losses["uncertainty"]
    outputs.loss.backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())
    with torch.no_grad():
        evaluated = model.eval()(ids[:, 10:], labels=ids[:, 10:], cache=cache, output_hidden_states=True)
    assert evaluated.losses["meta"] == 0 and evaluated.loss.isfinite()
    assert [mask.shape for mask in evaluated.border_masks] == [(2, 10), (2, 0)][: num_levels - 1]
    assert [states.shape[1] for states in evaluated.hidden_states] == [10, 0, 0][:num_levels]


def test_gradients_of_two_processes_equal_those_of_one(tmp_path):
    """With rows of all lengths, so that processes have different numbers of bytes and patches."""
    run_on_two_processes(__file__, tmp_path)
    for name in (3, "gru"):
        expected = train_in_float64(name)
        for rank in (0, 1):
            assert_close(torch.load(tmp_path / f"{name}-{rank}.pt"), expected, **DOUBLE)


def train_in_float64(name, rank: int = 0, num_processes: int = 1) -> dict[str, torch.Tensor]:
    """The state after a few steps of windows that go on from each other, each process on its share of the rows."""
    fields = {} if name == "gru" else {"target_ratios": [4.0, 2.0]}
    model = tiny_model(name, window_end_target=False, **fields).train()
    parallel = DistributedDataParallel(model) if num_processes > 1 else model
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    share, cache = slice(rank * 4 // num_processes, (rank + 1) * 4 // num_processes), None
    for step, width in enumerate([40, 1, 20, 2]):
        ids = random_ids(4, width, seed=step)
        mask = torch.arange(width) < torch.tensor([40, 25, 33, 9])[:, None]
        given = {"cache": cache, "use_cache": True, "attention_mask": mask[share].long()}
        outputs = parallel(ids[share], labels=ids[share], **given)
        cache = outputs.cache
        outputs.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.state_dict()


# Options: each changes what it says, and nothing else


def test_add_encoder_states():
    model, other = tiny_model(3), tiny_model(3, add_encoder_states=True)
    ids = random_ids(2, 30)
    outputs, found = model(ids, output_hidden_states=True), other(ids)
    added = F.linear(outputs.hidden_states[0], model.lm_head.weight)
    assert_close(found.logits, outputs.logits + added, **DOUBLE)
    assert_close(found.encoder_logits, outputs.encoder_logits, **EXACT)
    assert other.num_parameters() == model.num_parameters()


def test_detach_meta_targets():
    """The same values; without the gradient that the targets get from the errors."""
    ids, first = random_ids(1, 30), "levels.0.encoder.layers.0.weight_ih_l0"
    found = {}
    for detached in (False, True):
        model = tiny_model(2, detach_meta_targets=detached)
        outputs = model(ids, labels=ids, output_hidden_states=True)
        targets = gather_patches(outputs.hidden_states[0], outputs.border_masks[0])[:, 1:]
        targets = torch.cat([targets.detach() if detached else targets, model.levels[1].end_state[None, None]], dim=1)
        by_hand = (model.levels[1].predictor(outputs.hidden_states[1]) - targets).square().mean()
        assert_close(outputs.losses["meta"], by_hand, **DOUBLE)
        expected = gradients(model, by_hand)
        found[detached] = gradients(model, model(ids, labels=ids).losses["meta"])
        assert_close(found[detached], expected, **DOUBLE)
    assert_close(found[True]["levels.1.end_state"], found[False]["levels.1.end_state"], **DOUBLE)
    assert (found[True][first] - found[False][first]).abs().max() > 1e-3


def test_target_ratios():
    """From far off, the ratios come within a tenth of what is aimed at, and stay where they are in evaluation."""
    ratios = [6.0, 3.0]
    model = tiny_model(3, torch.float32, target_ratios=ratios, byte_entropy_threshold=2.0).train()
    start = tiny_model(3, torch.float32, byte_entropy_threshold=2.0)
    ids = random_ids(8, 200)
    assert_close(model.eval()(ids).logits, start(ids).logits, **EXACT)
    model.train()
    with torch.no_grad():
        for step in range(60):
            model(random_ids(8, 200, seed=step))
    thresholds = [level.border_threshold.clone() for level in model.levels[:-1]]
    lower, upper = model.eval()(ids).border_masks
    found = [ids.numel() / lower.sum(), lower.sum() / upper.sum()]
    for ratio, aim in zip(found, ratios, strict=True):
        assert abs(ratio / aim - 1) < 0.1
    assert [level.border_threshold for level in model.levels[:-1]] == thresholds


def test_target_ratios_where_nothing_fires():
    """Thresholds of levels without units stay, and none becomes infinite."""
    model = tiny_model(3, target_ratios=[1e9, 2.0], byte_entropy_threshold=1e5).train()
    ids, cache, upper = random_ids(2, 300), None, []
    with torch.no_grad():
        for window in ids.split(2, dim=1):
            cache = model(window, cache=cache, use_cache=True).cache
            upper.append(float(model.levels[1].border_threshold))
    assert model.levels[0].border_threshold == 1e6
    assert set(upper) == {upper[0]} and upper[0] > 0


@pytest.mark.parametrize("name", [3, "gru"])
def test_carry_state_is_for_the_trainer(name):
    ids = random_ids(2, 20)
    assert_close(tiny_model(name, carry_state=True)(ids).logits, tiny_model(name)(ids).logits, **EXACT)


def test_a_threshold_for_every_level():
    ids = random_ids(2, 60)
    same = tiny_model(4, meta_uncertainty_threshold=[1.2, 1.2])(ids)
    expected = tiny_model(4, meta_uncertainty_threshold=1.2)(ids)
    assert_close(same.logits, expected.logits, **EXACT)
    other = tiny_model(4, meta_uncertainty_threshold=[1.2, 0.2])(ids)
    assert_close(other.border_masks[:2], expected.border_masks[:2], **EXACT)
    assert other.border_masks[2].sum() > expected.border_masks[2].sum()


# Parts


@pytest.mark.parametrize("length", [1, 9])
def test_gru_block_is_a_gru_of_two_layers(length):
    block, gru = GRUBlock(6, dropout=0.5).double(), nn.GRU(6, 6, num_layers=2, batch_first=True, dropout=0.5).double()
    for index, layer in enumerate(block.layers):
        for name, parameter in layer.named_parameters():
            parameter.data = getattr(gru, name.replace("l0", f"l{index}")).data
    inputs, state = torch.randn(3, length, 6).double(), torch.randn(3, 2, 6).double()
    for training in (False, True):
        torch.manual_seed(1)
        outputs, after = block.train(training)(inputs, state)
        torch.manual_seed(1)
        expected, expected_after = gru.train(training)(inputs, state.transpose(0, 1).contiguous())
        assert_close(outputs, expected, **DOUBLE)
        assert_close(after, expected_after.transpose(0, 1), **DOUBLE)


@pytest.mark.parametrize("name", [3, "gru"])
def test_initial_weights(name):
    fields = {"hidden_size": 64}
    model = (
        GRUByteForCausalLM(GRUByteConfig(**fields))
        if name == "gru"
        else AdaptiveByteForCausalLM(AdaptiveByteConfig(**fields))
    )
    for parameter_name, parameter in model.named_parameters():
        if "embed_tokens" in parameter_name:
            assert abs(parameter.std() - 1) < 0.02
        elif "end_state" in parameter_name:
            assert 0.01 < parameter.std() < 0.03
        elif "padding" in parameter_name:
            assert parameter.numel() and not parameter.any()
        else:
            # Uniform within +-1/8: the standard deviation is the bound over the root of 3.
            assert parameter.abs().max() <= 1 / 8
            assert parameter.numel() == 1 or abs(parameter.std() * 8 * 3**0.5 - 1) < 0.25


def test_rare_bytes_count_as_published():
    """Logarithms end at that of 1e-8, which shows in float64 only."""
    rare = torch.tensor(-25.0, dtype=torch.float64).sigmoid()
    expected = -(1 - rare) * torch.log1p(-rare) + rare * 8 * torch.tensor(10.0, dtype=torch.float64).log()
    assert_close(clamped_entropy(torch.tensor([0.0, -25.0], dtype=torch.float64)), expected, rtol=1e-4, atol=0)


def test_entropies_are_float32():
    """In bfloat16, and under autocast."""
    ids = random_ids(2, 30)
    model = tiny_model(3, torch.bfloat16)
    outputs = model(ids, labels=ids)
    assert outputs.logits.dtype == torch.bfloat16 and outputs.entropies.dtype == torch.float32
    assert {loss.dtype for loss in outputs.losses.values()} == {outputs.loss.dtype} == {torch.float32}
    assert_close(outputs.entropies, clamped_entropy(outputs.encoder_logits.float()), **EXACT)
    model = tiny_model(3, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(ids, labels=ids)
    assert outputs.logits.dtype == torch.bfloat16 and outputs.entropies.dtype == torch.float32
    assert {loss.dtype for loss in outputs.losses.values()} == {outputs.loss.dtype} == {torch.float32}
    assert_close(outputs.loss, model(ids, labels=ids).loss, rtol=0.05, atol=0.05)
    outputs.loss.backward()


def test_entropies_and_borders_stand_in_the_columns_of_the_input():
    model = tiny_model(3)
    ids, mask = pad_rows([random_ids(1, 30), random_ids(1, 12, seed=1)], "left")
    outputs = model(ids, attention_mask=mask)
    alone = model(ids[1:, 18:])
    assert_close(outputs.entropies[1, 18:], alone.entropies[0], **DOUBLE)
    assert not outputs.entropies[1, :18].any() and not outputs.border_masks[0][1, :18].any()
    assert torch.equal(outputs.border_masks[0][1, 18:], alone.border_masks[0][0])
    assert outputs.border_masks[0][1, 18]


@every_model
def test_hidden_states(name):
    """Those of bytes in the columns of the input, those of patches in front, with zeros elsewhere."""
    model = tiny_model(name)
    ids, mask = pad_rows([random_ids(1, 30), random_ids(1, 12, seed=1)], "left")
    assert model(ids).hidden_states is None
    states = model(ids, attention_mask=mask, output_hidden_states=True).hidden_states
    alone = model(ids[1:, 18:], output_hidden_states=True).hidden_states
    assert len(states) == len(alone) == (4 if name == "gru" else name)
    for level, (found, expected) in enumerate(zip(states, alone, strict=True)):
        start = 18 if name == "gru" or level == 0 else 0
        present = slice(start, start + expected.shape[1])
        assert_close(found[1, present], expected[0], **DOUBLE)
        assert found[1].any(dim=1).sum() == expected.shape[1]


@every_model
@torch.no_grad()
def test_logits_to_keep(name):
    model, ids = tiny_model(name), random_ids(2, 12)
    whole = model(ids)
    for keep, columns in ((1, [11]), (4, [8, 9, 10, 11]), (torch.tensor([2, 5]), [2, 5])):
        outputs = model(ids, logits_to_keep=keep)
        assert torch.equal(outputs.logits, whole.logits[:, columns])
        if name != "gru":
            assert torch.equal(outputs.encoder_logits, whole.encoder_logits[:, columns])


def test_config_states_what_is_wrong():
    for fields, rule in (
        ({"num_levels": 4, "meta_uncertainty_threshold": [1.0]}, "each of the 2 levels"),
        ({"target_ratios": [3.0, 0.5]}, "1 or more"),
        ({"target_ratios": [3.0, 2.0], "border_mode": "teacher_forced"}, "uncertainty"),
        ({"target_ratios": [3.0, 2.0], "byte_entropy_threshold": 0.0}, "above 0"),
    ):
        with pytest.raises((ValueError, StrictDataclassError), match=rule):
            AdaptiveByteConfig(**fields)


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    for model_name in (3, "gru"):
        state = train_in_float64(model_name, int(os.environ["RANK"]), 2)
        torch.save(state, Path(sys.argv[1]) / f"{model_name}-{os.environ['RANK']}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
