"""The byte language models against the published numbers of `fixtures/adaptive_byte` (README.md there)."""

import json
from pathlib import Path

import pytest
import torch
from modeling_testing import EXACT, gradients
from safetensors.torch import load_file
from torch.testing import assert_close

from auto_compressor import AdaptiveByteConfig, AdaptiveByteForCausalLM, GRUByteConfig, GRUByteForCausalLM
from auto_compressor.byte_lm.byte_rows import following_units, next_token_targets
from auto_compressor.byte_lm.modeling_adaptive_byte import (
    ByteLevel,
    LevelReading,
    MetaLevel,
    clamped_entropy,
    entropy_penalties,
)
from auto_compressor.byte_lm.patching import broadcast_patches, gather_patches
from auto_compressor.byte_lm.published import FORMATS
from auto_compressor.hierarchical_autoencoder.patching import (
    cumulative_borders,
    length_mask,
    patch_ids_from_borders,
    threshold_borders,
)


FOLDER = Path(__file__).parents[1] / "fixtures" / "adaptive_byte"
CASES = json.loads((FOLDER / "cases.json").read_text())["cases"]
TENSORS = load_file(FOLDER / "tensors.safetensors")
CLOSE = {"atol": 2e-5, "rtol": 1e-4}
RELATIVE = {"atol": 0, "rtol": 1e-3}
SAME_FIELDS = ("vocab_size", "hidden_size", "num_levels", "border_mode", "dropout")
SAME_FIELDS += ("byte_entropy_threshold", "meta_uncertainty_threshold", "entropy_floor", "entropy_reg_weight")
SAME_FIELDS += ("encoder_loss_weight", "decoder_loss_weight", "meta_loss_weight", "uncertainty_loss_weight")


def cases(*kinds: str):
    found = [case for case in CASES if case["kind"] in kinds]
    return pytest.mark.parametrize("case", found, ids=lambda case: case["name"])


def tensors(names: dict[str, str]) -> dict[str, torch.Tensor]:
    """Tensors by item; integers as int64."""
    found = {item: TENSORS[name] for item, name in names.items()}
    return {item: tensor.long() if tensor.dtype == torch.int32 else tensor for item, tensor in found.items()}


def published_config(family: str, published: dict):
    if family == "gru_byte":
        return GRUByteConfig(**{field: published[field] for field in ("vocab_size", "hidden_size", "num_levels")})
    fields = {field: published[field] for field in SAME_FIELDS}
    return AdaptiveByteConfig(**fields, border_error_threshold=published["threshold"])


def published_model(case: dict):
    family = "gru_byte" if case["kind"] == "model_baseline" else "adaptive_byte"
    model_class = GRUByteForCausalLM if family == "gru_byte" else AdaptiveByteForCausalLM
    model = model_class(published_config(family, case["config"]))
    state = tensors(case["state_dict"])
    model.load_state_dict({FORMATS[family].own_name(name): tensor for name, tensor in state.items()})
    return model.eval()


def assert_same_spans(borders: torch.Tensor, mask: torch.Tensor, expected: dict[str, torch.Tensor]):
    """Border positions, numbers of patches, and the patch of every unit."""
    counts = borders.sum(dim=1)
    assert_close(counts, expected["parent_lengths"], **EXACT)
    positions = torch.arange(borders.shape[1]).expand_as(borders)[..., None]
    found = gather_patches(positions, borders)[..., 0]
    assert_close(found, expected["parent_positions"][:, : found.shape[1]], **EXACT)
    assert not expected["parent_positions"][:, found.shape[1] :].any()
    assert_close(patch_ids_from_borders(borders, mask).clamp(min=0), expected["child_to_parent"], **EXACT)


def assert_same_losses(outputs, expected: dict[str, float], **tolerance):
    assert_close(outputs.loss, torch.tensor(expected["loss"]), **tolerance)
    for name, loss in outputs.losses.items():
        assert_close(loss, torch.tensor(expected[f"{name}_loss"]), **tolerance)


@cases("cumulative_borders")
def test_cumulative_borders(case):
    inputs, expected = tensors(case["inputs"]), tensors(case["expected"])
    lengths = inputs.get("lengths")
    borders = cumulative_borders(inputs["scores"], case["threshold"], lengths)
    assert borders.dtype == torch.bool and torch.equal(borders, expected["border_mask"])
    width = borders.shape[1]
    mask = torch.ones_like(borders) if lengths is None else length_mask(lengths, width)
    assert_same_spans(borders, mask, expected)


@cases("gather_and_broadcast")
def test_gather_and_broadcast(case):
    inputs, expected = tensors(case["inputs"]), tensors(case["expected"])
    lengths = inputs.get("lengths")
    borders = inputs["border_mask"].clone()
    borders[:, 0] = True
    mask = torch.ones_like(borders) if lengths is None else length_mask(lengths, borders.shape[1])
    borders &= mask
    assert torch.equal(gather_patches(inputs["child_states"], borders), expected["gathered_parents"])
    broadcast, _ = broadcast_patches(inputs["parent_states"], borders, lengths)
    assert torch.equal(broadcast, expected["broadcast"])
    assert_same_spans(borders, mask, expected)


def reading(units, mask, predictions) -> LevelReading:
    return LevelReading(units=units, mask=mask, hidden_states=None, predictions=predictions, scores=None)


@cases("teacher_forced_level0")
def test_teacher_forced_bytes(case):
    inputs, expected = tensors(case["inputs"]), tensors(case["expected"])
    ids, mask = inputs["byte_ids"], torch.ones_like(inputs["byte_ids"], dtype=torch.bool)
    assert torch.equal(next_token_targets(ids, mask, case["eos_id"]), expected["targets"])
    level = ByteLevel(AdaptiveByteConfig(hidden_size=4, border_mode="teacher_forced"))
    errors = level.errors(reading(ids, mask, inputs["logits"]))
    assert torch.equal(errors > level.error_threshold, expected["raw_mask"])
    assert_same_spans(threshold_borders(errors, level.error_threshold), mask, expected)


@cases("teacher_forced_meta")
def test_teacher_forced_states(case):
    inputs, expected = tensors(case["inputs"]), tensors(case["expected"])
    mask = length_mask(inputs["lengths"], inputs["inputs"].shape[1])
    assert torch.equal(mask, expected["valid_mask"])
    targets = following_units(inputs["inputs"], mask, inputs["eos_embedding"])
    assert torch.equal(targets[mask], expected["targets"][mask])
    config = AdaptiveByteConfig(
        hidden_size=targets.shape[2], border_mode="teacher_forced", border_error_threshold=case["threshold"]
    )
    level = MetaLevel(config, 1)
    level.end_state.data = inputs["eos_embedding"]
    found = reading(inputs["inputs"], mask, inputs["predictions"])
    errors = level.errors(found)
    assert_close(errors.masked_fill(~mask, 0.0), expected["mse"], **CLOSE)
    assert torch.equal((errors > level.error_threshold) & mask, expected["raw_mask"])
    assert_same_spans(threshold_borders(errors, level.error_threshold) & mask, mask, expected)


@cases("entropy")
def test_entropy(case):
    entropies = clamped_entropy(tensors(case["inputs"])["logits"])
    assert_close(entropies, tensors(case["expected"])["entropy_nats"], **CLOSE)
    assert len({round(row["value"], 3) for row in case["regularizer"]}) == 4
    for row in case["regularizer"]:
        assert_close(entropy_penalties(entropies, row["floor"]).mean(), torch.tensor(row["value"]), **CLOSE)


@cases("sampling_distribution")
def test_sampling_distribution(case):
    """What `generate` draws from: a model whose logits are the given ones, whatever its states."""
    logits = tensors(case["inputs"])["logits"].reshape(-1, 257)
    expected = tensors(case["expected"])["probabilities"].reshape(-1, 257)
    model = AdaptiveByteForCausalLM(AdaptiveByteConfig(hidden_size=4, num_levels=1)).eval()
    for row_logits, row_expected in zip(logits, expected, strict=True):
        with torch.no_grad():
            model.lm_head.weight.zero_()
            model.lm_head.bias.copy_(row_logits)
        outputs = model.generate(
            torch.tensor([[65]]),
            attention_mask=torch.ones(1, 1),
            max_new_tokens=1,
            do_sample=True,
            temperature=case["temperature"],
            top_k=case["top_k"],
            top_p=1.0,
            output_scores=True,
            return_dict_in_generate=True,
        )
        assert_close(outputs.scores[0].softmax(dim=-1)[0], row_expected, **CLOSE)


@cases("parameter_counts")
def test_parameter_counts(case):
    for row in case["rows"]:
        adaptive = AdaptiveByteForCausalLM(AdaptiveByteConfig(**row["config"]))
        baseline = GRUByteForCausalLM(GRUByteConfig(**row["config"]))
        assert adaptive.num_parameters() == row["adaptive"] == row["baseline"] == baseline.num_parameters()
        assert len(baseline.blocks) == row["baseline_blocks"]
        assert baseline.num_effective_parameters == row["baseline"] - row["baseline_pad"]


@cases("model_adaptive", "model_baseline")
def test_outputs(case):
    model = published_model(case)
    assert model.num_parameters() == case["parameter_count"]
    ids = tensors(case["inputs"])["byte_ids"]
    outputs = model(ids, labels=ids, output_hidden_states=True)
    expected = tensors(case["expected"])
    if case["kind"] == "model_adaptive":
        assert_close(outputs.encoder_logits, expected["byte_encoder_logits"], **CLOSE)
        assert_close(outputs.logits, expected["byte_decoder_logits"], **CLOSE)
        assert set(outputs.losses) == {"byte_encoder", "byte_decoder", "meta", "uncertainty", "entropy_reg"}
    else:
        assert_close(outputs.logits, expected["byte_encoder_logits"], **CLOSE)
        assert outputs.encoder_logits is None and set(outputs.losses) == {"byte_decoder"}
    assert_same_losses(outputs, case["expected_scalars"], **CLOSE)


@cases("model_adaptive")
def test_levels(case):
    ids = tensors(case["inputs"])["byte_ids"]
    outputs = published_model(case)(ids, output_hidden_states=True)
    assert [int(mask.sum(dim=1).max()) for mask in outputs.border_masks] == [
        TENSORS[level["parent_lengths"]].max() for level in case["levels"]
    ]
    mask = torch.ones_like(ids, dtype=torch.bool)
    for borders, level in zip(outputs.border_masks, case["levels"], strict=True):
        maps = tensors({name: level[name] for name in ("parent_positions", "parent_lengths", "child_to_parent")})
        assert_same_spans(borders, mask, maps)
        mask = length_mask(maps["parent_lengths"], int(maps["parent_lengths"].max()))
    for states, name in zip(outputs.hidden_states, case["level_hidden_states"], strict=True):
        assert_close(states, TENSORS[name][:, : states.shape[1]], **CLOSE)
        assert not TENSORS[name][:, states.shape[1] :].any()


@cases("model_adaptive", "model_baseline")
def test_gradients(case):
    model = published_model(case)
    ids = tensors(case["inputs"])["byte_ids"]
    found = gradients(model, model(ids, labels=ids).loss)
    family = "gru_byte" if case["kind"] == "model_baseline" else "adaptive_byte"
    expected = {FORMATS[family].own_name(name): norm for name, norm in case["gradient_norms"].items()}
    assert set(found) == set(expected)
    for name, norm in expected.items():
        assert_close(found[name].norm(), torch.tensor(norm or 0.0), atol=1e-8, rtol=1e-3)
    for name, tensor in tensors(case.get("gradients", {})).items():
        difference = (found[FORMATS[family].own_name(name)] - tensor).norm()
        assert difference <= 1e-3 * tensor.norm(), name


def test_whole_gradients_are_compared():
    assert sum(len(case.get("gradients", {})) for case in CASES) > 50


@cases("model_adaptive", "model_baseline")
@torch.no_grad()
def test_one_byte_at_a_time(case):
    model = published_model(case)
    ids = tensors(case["inputs"])["byte_ids"]
    expected = model(ids)
    if case["config"]["border_mode"] == "teacher_forced":
        pytest.raises(ValueError, model, ids[:, :1], use_cache=True)
        return
    cache, logits = None, []
    for column in ids.split(1, dim=1):
        outputs = model(column, cache=cache, use_cache=True)
        cache = outputs.cache
        logits.append(outputs.logits)
    assert_close(torch.cat(logits, dim=1), expected.logits, **CLOSE)


@cases("model_adaptive", "model_baseline")
@torch.no_grad()
def test_prefixes(case):
    """Logits of a prefix are those of the whole, or not, where borders depend on the future."""
    model = published_model(case)
    ids = tensors(case["inputs"])["byte_ids"]
    whole = model(ids).logits
    off = [model(ids[:, :end]).logits[:, -1] - whole[:, end - 1] for end in range(1, ids.shape[1] + 1)]
    off = torch.stack(off).abs().amax(dim=(0, 2))
    leaks = torch.tensor(case["prefix_check_max_abs_diff"]) > 1e-4
    assert torch.equal(off > 1e-4, leaks)
    assert bool(leaks.all()) == (case["config"]["border_mode"] == "teacher_forced")


@pytest.mark.parametrize("use_cache", [True, False])
@cases("model_adaptive", "model_baseline")
def test_greedy(case, use_cache):
    if "greedy" not in case:
        assert case["name"] in ("adaptive_l3_teacher_forced", "adaptive_l1")
        return
    greedy = case["greedy"]
    prompt = torch.tensor([greedy["prompt"]])
    settings = {"max_new_tokens": greedy["max_new_bytes"], "do_sample": False, "use_cache": use_cache}
    found = published_model(case).generate(prompt, attention_mask=torch.ones_like(prompt), **settings)
    assert found[0].tolist() == greedy["output"]


@cases("model_adaptive", "model_baseline")
def test_training(case):
    if "training_trajectory" not in case:
        assert case["name"] in ("adaptive_l3_teacher_forced", "adaptive_l1", "adaptive_l2_defaults")
        return
    model = published_model(case).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, weight_decay=0.01)
    trajectory = case["training_trajectory"]
    batches = TENSORS[trajectory["batches"]].long()
    for ids, expected in zip(batches, trajectory["losses"], strict=True):
        outputs = model(ids, labels=ids)
        assert_same_losses(outputs, expected, **RELATIVE)
        optimizer.zero_grad()
        outputs.loss.backward()
        optimizer.step()
