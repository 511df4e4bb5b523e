"""The published implementation's numbers: every case of `fixtures/autocompressor` (see its README)."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from auto_compressor import LlamaAutoCompressorModel, OPTAutoCompressorModel
from substep_trainer import random_segment_lengths


FIXTURES = Path(__file__).parents[1] / "fixtures" / "autocompressor"
CASES = json.loads((FIXTURES / "cases.json").read_text())
TENSORS = load_file(FIXTURES / "tensors.safetensors")
MODELS = {"opt": OPTAutoCompressorModel, "llama": LlamaAutoCompressorModel}

VALUES = {"rtol": 0, "atol": 2e-4}
GRADIENTS = {"rtol": 0, "atol": 5e-5}


def cases(*modes):
    chosen = [case for case in CASES["cases"] if case["mode"] in modes]
    return pytest.mark.parametrize("case", chosen, ids=[case["name"] for case in chosen])


def load_model(case, attn_implementation="sdpa"):
    checkpoint = CASES["checkpoints"][case["checkpoint"]]
    model = MODELS[checkpoint["family"]].from_pretrained(
        FIXTURES / checkpoint["path"], attn_implementation=attn_implementation
    )
    for name, value in case["config_overrides"].items():
        setattr(model.config, name, value)
    return model


def tensors(names):
    return {key: TENSORS[name] for key, name in names.items()}


def assert_outputs(outputs, expected, where=None):
    for key, value in tensors(expected).items():
        actual = getattr(outputs, key)
        if where and key in where:
            keep = TENSORS[where[key]].bool()
            actual, value = actual[keep], value[keep]
        if key == "softprompt":
            # Segments of padding alone: the published implementation makes vectors of them, which nobody sees here.
            keep = outputs.softprompt_attention_mask.bool()
            assert keep.any(dim=1).all()
            actual, value = actual[keep], value[keep]
        assert_close(actual.detach(), value, **VALUES, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
@cases("forward")
def test_forward(case, attn_implementation):
    model = load_model(case, attn_implementation)
    outputs = model(**tensors(case["inputs"]), **case["kwargs"])
    assert_outputs(outputs, case["expected"], case.get("compare_where"))


@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
@cases("cached")
def test_cached(case, attn_implementation):
    model, cache = load_model(case, attn_implementation), None
    for step in case["steps"]:
        outputs = model(**tensors(step["inputs"]), **step["kwargs"], cache=cache)
        cache = outputs.cache
        assert_outputs(outputs, step["expected"])


@cases("generate")
def test_generate(case):
    model = load_model(case)
    model.generation_config.eos_token_id = None
    sequences = model.generate(**tensors(case["inputs"]), **case["kwargs"])
    assert torch.equal(sequences, TENSORS[case["expected"]["sequences"]])


@pytest.mark.parametrize("segment_gradient_checkpointing", [False, True])
@cases("grad")
def test_gradients(case, segment_gradient_checkpointing):
    model = load_model(case).train()
    model.config.segment_gradient_checkpointing = segment_gradient_checkpointing
    outputs = model(**tensors(case["inputs"]), **case["kwargs"])
    assert_close(outputs.loss.detach(), TENSORS[case["expected"]["loss"]], **VALUES)
    outputs.loss.backward()
    for name, gradient in tensors(case["expected"]["grads"]).items():
        assert_close(model.get_parameter(name).grad, gradient, **GRADIENTS)


@cases("substeps")
def test_substeps(case):
    model, softprompt, losses = load_model(case).train(), None, []
    expected = case["expected"]
    inputs = tensors(case["inputs"])
    for index, (start, end) in enumerate(case["substep_slices"]):
        outputs = model(
            **{name: tensor[:, start:end] for name, tensor in inputs.items()},
            **case["kwargs"],
            segment_lengths=case["segment_lengths"][index],
            softprompt=softprompt,
        )
        loss = outputs.loss / case["gradient_accumulation_steps"]
        loss.backward()
        losses.append(loss.detach())
        softprompt = outputs.softprompt.detach()
        assert_close(softprompt, TENSORS[expected["softprompts"][index]], **VALUES)
    assert_close(torch.stack(losses), TENSORS[expected["substep_losses"]].flatten(), **VALUES)
    assert_close(torch.stack(losses).mean(), TENSORS[expected["mean_loss"]].squeeze(), **VALUES)
    for name, gradient in tensors(expected["grads"]).items():
        assert_close(model.get_parameter(name).grad, gradient, **GRADIENTS)


@cases("distribution")
def test_random_segment_lengths(case):
    if case["expected"].get("raises"):
        with pytest.raises(ValueError, match="segments"):
            random_segment_lengths(**case["inputs"])
        return
    torch.manual_seed(0)
    outcomes = [tuple(outcome) for outcome in case["expected"]["equally_likely_outcomes"]]
    draws = 400 * len(outcomes)
    counts = Counter(tuple(random_segment_lengths(**case["inputs"])) for _ in range(draws))
    assert set(counts) == set(outcomes)
    # Five standard deviations of a binomial count.
    assert all(abs(counts[outcome] - 400) < 5 * 400**0.5 for outcome in outcomes)
