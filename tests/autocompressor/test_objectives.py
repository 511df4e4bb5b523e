"""What training adds for variable-length and nested summaries and for recall: lengths, penalty, objectives."""

import copy
from collections import Counter

import pytest
import torch
from test_substep_trainer import (
    EXACT,
    families,
    losses_of,
    make_model,
    make_rows,
    make_trainer,
    train,
    weights_of,
)
from torch.nn import functional as F
from torch.testing import assert_close
from transformers import AutoTokenizer, set_seed

from args import TrainingArguments
from auto_compressor.autocompressor.control_tokens import (
    add_control_tokens,
    check_tokenizer,
    resize_for_control_tokens,
)
from auto_compressor.autocompressor.gating import survival
from auto_compressor.autocompressor.losses import chunked_divergence, shift_labels_left
from auto_compressor.autocompressor.objectives import distillation_loss, reconstruction_loss
from auto_compressor.files.bundled import BUNDLED_TOKENIZER
from data import DataCollator
from substep_trainer import draw_summary_length


CONTROL = {"sum_token_id": 62, "eoc_token_id": 63, "compression_max_len": 3, "compression_lambda": 0.5}
SEGMENTS = {"segment_lengths": [5, 3], "training_substeps": 2}


def variable_model(family="llama", **kwargs):
    return make_model(family, **CONTROL | kwargs)


def text_rows(*args, **kwargs):
    """Rows without control tokens."""
    rows = make_rows(*args, **kwargs)
    for row in rows:
        row["input_ids"].clamp_(max=61)
        row["labels"].clamp_(max=61)
    return rows


# Segments that end with <sum>


@pytest.mark.parametrize("randomize_substeps", [False, True])
@families
def test_every_segment_ends_with_sum_and_keeps_its_text(family, randomize_substeps, tmp_path):
    rows = text_rows(4, 24, padded=[0, 3, 20])
    settings = {"training_substeps": 2, "segments_per_substep": 3, "randomize_substeps": randomize_substeps}
    trainer = make_trainer(variable_model(family).train(), rows, tmp_path, **settings)
    batch = DataCollator(1)(rows)
    substeps, segments = trainer.split_substeps(batch)
    for substep, lengths in zip(substeps, segments, strict=True):
        assert len(lengths) == 3 and substep["segment_lengths"] == lengths
        ends = torch.tensor(lengths).cumsum(dim=0) - 1
        assert (substep["input_ids"][:, ends] == 62).all() and (substep["shift_labels"][:, ends] == -100).all()
    for name, expected in {
        "input_ids": batch["input_ids"],
        "attention_mask": batch["attention_mask"],
        "shift_labels": shift_labels_left(batch["labels"]),
    }.items():
        joined = torch.cat([substep[name] for substep in substeps], dim=1)
        is_text = torch.cat([substep["input_ids"] for substep in substeps], dim=1) != 62
        assert torch.equal(joined[is_text].view(4, 24), expected)


def penalised_loop(model, rows, substeps=2):
    """Gradients and losses of a step by hand: each segment alone, the memory handed on, the penalty by its formula."""
    model = copy.deepcopy(model).train()
    batch = DataCollator(1)(rows)
    targets, losses, carried = shift_labels_left(batch["labels"]), [], {}
    num_targets = (targets != -100).sum() / substeps
    for start in (0, 8):
        nll, penalties, compressed = 0, 0, 0
        for begin, end in ((start, start + 5), (start + 5, start + 8)):
            ids, mask = batch["input_ids"][:, begin:end], batch["attention_mask"][:, begin:end]
            memory = carried["softprompt_attention_mask"].detach().sum(1) if carried else 0
            outputs = model(
                torch.cat([ids, torch.full_like(ids[:, :1], 62)], dim=1),
                torch.cat([mask, mask.amax(dim=1, keepdim=True)], dim=1),
                output_softprompt=True,
                **carried,
            )
            logits = outputs.logits[:, :-1].flatten(0, 1)
            nll = nll + F.cross_entropy(logits, targets[:, begin:end].flatten(), ignore_index=-100, reduction="sum")
            carried = {name: outputs[name] for name in ("softprompt", "softprompt_attention_mask")}
            if end < 16:
                survived = survival(outputs.summaries[0].stop_probs).sum(dim=1) * mask.amax(dim=1)
                penalties = penalties + (survived / (mask.sum(1) + memory).clamp(min=1)).sum()
                compressed = compressed + mask.amax(dim=1).sum()
        penalty = 0.5 * penalties / compressed.clamp(min=1)
        loss = (nll + penalty * (targets[:, start : start + 8] != -100).sum()) / num_targets
        loss.backward()
        losses.append(loss.item())
        carried = {name: tensor.detach() for name, tensor in carried.items()}
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}, losses


@families
def test_step_equals_a_loop_by_hand(family, tmp_path):
    # Nothing is older than three segments here, so nothing is detached within a substep.
    model, rows = variable_model(family, truncate_bptt_segments=3), text_rows(4, 16, padded=[0, 2])
    expected, losses = penalised_loop(model, rows)
    trainer, (gradients,) = train(model, rows, tmp_path, **SEGMENTS)
    assert gradients["stop_head.weight"].abs().max() > 1e-4
    assert_close(gradients, expected, rtol=1e-5, atol=1e-5)
    (logged,) = losses_of(trainer)
    assert_close([logged[f"substep_{index}_loss"] for index in range(2)], losses, rtol=1e-5, atol=1e-5)


def test_lengths_are_logged(tmp_path):
    model = variable_model()
    with torch.no_grad():
        model.stop_head.weight.zero_()
        model.stop_head.bias.zero_()
    trainer, _ = train(model, text_rows(8, 16), tmp_path, learning_rate=0.0, **SEGMENTS)
    logged = trainer.state.log_history[0]
    for segment in ("substep_0_segment_0", "substep_0_segment_1", "substep_1_segment_0"):
        assert logged[f"{segment}_stop_prob"] == pytest.approx(0.5)
        assert logged[f"{segment}_expected_length"] == pytest.approx(1 + 1 / 2 + 1 / 4)
        assert logged[f"{segment}_realised_length"] == 3  # one half is not above the threshold
    # Segments of 5 and 3 tokens, before them 0 and 1.75 vectors.
    assert logged["substep_0_length_penalty"] == pytest.approx(0.5 * (1.75 / 5 + 1.75 / (3 + 1.75)) / 2)
    assert "substep_1_segment_1_stop_prob" not in logged


def test_evaluation_reports_the_vectors(tmp_path):
    model, rows = variable_model(compress_stop_threshold=1.0), text_rows(3, 16)
    metrics = make_trainer(model, None, tmp_path, eval_dataset=rows, **SEGMENTS).evaluate()
    assert metrics["eval_vectors"] == 9 and metrics["eval_substep_1_segment_1_vectors"] == 0
    model.config.compress_stop_threshold = 1e-6
    metrics = make_trainer(model, None, tmp_path, eval_dataset=rows, **SEGMENTS).evaluate()
    assert metrics["eval_vectors"] == 3 and metrics["eval_substep_0_segment_1_vectors"] == 1


# One step, however it is cut

TEACHER = {"distillation_weight": 0.7, "distillation_model": "given below"}
OBJECTIVES = [
    {},
    {"reconstruction_weight": 0.3},
    TEACHER,
    {"reconstruction_weight": 0.3} | TEACHER,
]


def teacher_for(settings):
    return make_model(summary_length=0).eval() if "distillation_weight" in settings else None


@pytest.mark.parametrize("objectives", OBJECTIVES, ids=["penalty", "reconstruction", "distillation", "both"])
@pytest.mark.parametrize("kind", ["variable", "fixed"])
def test_accumulation_steps_do_not_matter(kind, objectives, tmp_path):
    rows, found = text_rows(8, 16), []
    for row in rows:
        row["labels"] = row["input_ids"]
    for batch_size in (8, 2):
        model = variable_model() if kind == "variable" else make_model()
        settings = {"per_device_train_batch_size": batch_size, "gradient_accumulation_steps": 8 // batch_size}
        trainer, (gradients,) = train(
            model, rows, tmp_path, teacher=teacher_for(objectives), **SEGMENTS, **settings, **objectives
        )
        found.append((gradients, trainer.state.log_history[0]))
    assert_close(found[0][0], found[1][0], **EXACT)
    names = [name for name in found[0][1] if name.startswith("substep") or name == "loss"]
    assert len(names) >= 3
    for name in names:
        assert found[0][1][name] == pytest.approx(found[1][1][name], abs=1e-5)


def test_resumed_run_equals_uninterrupted_run(tmp_path):
    """Drawn budgets and drawn segments included."""
    rows = text_rows(32, 24)
    settings = {
        "training_substeps": 2,
        "randomize_substeps": True,
        "nested_summaries": True,
        "reconstruction_weight": 0.3,
        "max_steps": 4,
        "save_strategy": "steps",
        "save_steps": 2,
        "optim": "adamw_torch",
        "learning_rate": 1e-2,
    }
    whole, _ = train(variable_model(), rows, tmp_path / "whole", **settings)
    torch.rand(5)
    trainer = make_trainer(variable_model(), rows, tmp_path / "resumed", **settings)
    trainer.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert_close(weights_of(trainer.model), weights_of(whole.model), rtol=0, atol=0)


# Objectives


@families
def test_reconstruction_equals_a_loop_by_hand(family):
    model, ids = make_model(family), torch.randint(3, 60, (2, 12))
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    outputs = model(ids, mask, segment_lengths=[7, 5], output_softprompt=True)
    segments = [
        {"input_ids": part, "attention_mask": seen}
        for part, seen in zip(ids.split([7, 5], dim=1), mask.split([7, 5], dim=1), strict=True)
    ]
    loss = reconstruction_loss(model, segments[:1], outputs.summaries[:1], prompt_token_id=2)
    vectors = outputs.softprompt[:, :3]
    prompted = torch.cat([torch.full((2, 1), 2), ids[:, :6]], dim=1)
    logits = model(prompted, softprompt=vectors).logits
    assert_close(loss, F.cross_entropy(logits.flatten(0, 1), ids[:, :7].flatten()))
    # The second segment has no text in row 1, which counts for nothing.
    both = reconstruction_loss(model, segments, outputs.summaries, prompt_token_id=2)
    row = {"softprompt": outputs.softprompt[:1, 3:]}
    logits = model(torch.cat([torch.full((1, 1), 2), ids[:1, 7:11]], dim=1), **row).logits
    assert_close(both, (loss + F.cross_entropy(logits[0], ids[0, 7:])) / 2)


def test_reconstruction_trains_the_vectors_and_not_by_a_leak():
    """Reading a segment back from its vectors is learned; from those of the other row it stays at chance."""
    model, ids = make_model(), torch.randint(3, 60, (2, 6))
    mask, optimizer = torch.ones_like(ids), torch.optim.Adam(model.parameters(), 1e-2)

    def reconstruct(swap):
        summaries = model(ids, output_softprompt=True).summaries
        if swap:
            summaries[0].vectors = summaries[0].vectors.flip(0)
        return reconstruction_loss(model, [{"input_ids": ids, "attention_mask": mask}], summaries, 2)

    for _ in range(150):
        optimizer.zero_grad()
        reconstruct(swap=False).backward()
        assert model.embed_summary.weight.grad.abs().max() > 0
        optimizer.step()
    assert reconstruct(swap=False) < 0.1 < 3 < reconstruct(swap=True)


def test_divergence_equals_direct(monkeypatch):
    monkeypatch.setattr("auto_compressor.autocompressor.losses.MAX_LOGITS_IN_MEMORY", 40)
    student, teacher = torch.nn.Linear(6, 11), torch.nn.Linear(5, 9)
    states, teacher_states = torch.randn(2, 7, 6, requires_grad=True), torch.randn(2, 7, 5)
    counted = torch.rand(2, 7) < 0.5
    found = chunked_divergence(student, states, teacher, teacher_states, counted, 11)
    p, q = teacher(teacher_states).softmax(-1), student(states).softmax(-1)[..., :9]
    expected = ((p * (p / q).log()).sum(-1) * counted).sum()
    assert_close(found, expected)
    assert_close(*(torch.autograd.grad(loss, states)[0] for loss in (found, expected)))


def test_distillation_is_zero_for_the_teacher_itself(tmp_path):
    model = make_model(summary_length=0)
    ids = torch.randint(3, 60, (2, 9))
    states = model(ids).last_hidden_state
    everywhere = torch.ones_like(ids, dtype=torch.bool)
    assert distillation_loss(model, states, copy.deepcopy(model), states.detach(), everywhere).abs() < 1e-6
    other = make_model(summary_length=0, initializer_range=0.5)(ids).last_hidden_state
    assert distillation_loss(model, states, model, other, everywhere) > 1e-3


def test_teacher_reads_the_full_context(tmp_path):
    """Its states at the tokens of every substep are those of one pass over the whole text; `<sum>` has none."""
    rows, teacher = text_rows(2, 16), teacher_for(TEACHER)
    trainer = make_trainer(variable_model().train(), rows, tmp_path, teacher=teacher, **SEGMENTS, **TEACHER)
    batch = DataCollator(1)(rows)
    substeps, segments = trainer.split_substeps(batch)
    trainer.add_teacher_states(substeps, segments, batch)
    expected = teacher(batch["input_ids"]).last_hidden_state
    ids = torch.cat([substep["input_ids"] for substep in substeps], dim=1)
    states = torch.cat([substep["teacher_states"] for substep in substeps], dim=1)
    assert_close(states[ids != 62].view_as(expected), expected)
    assert (states[ids == 62] == 0).all()
    assert not any(parameter.requires_grad for parameter in trainer.teacher.parameters())


# Nested summaries


def test_drawn_budgets():
    set_seed(0)
    drawn = Counter(draw_summary_length(8) for _ in range(4000))
    assert set(drawn) == set(range(1, 9))
    assert 0.5 < drawn[8] / 4000 < 0.6 and drawn[1] > drawn[2] > drawn[4]
    assert draw_summary_length(1) == 1


@pytest.mark.parametrize("make", [make_model, variable_model])
def test_nested_training_uses_the_first_vectors(make, tmp_path, monkeypatch):
    """With one budget drawn it is training for exactly this budget."""
    monkeypatch.setattr("substep_trainer.draw_summary_length", lambda most: 2)
    rows = text_rows(8, 16)
    exact = {"summary_length": 2} if make is make_model else {"compression_max_len": 2}
    _, (nested,) = train(make(), rows, tmp_path, nested_summaries=True, **SEGMENTS)
    model, full = make(**exact), make()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(full.get_parameter(name)[: len(parameter)])
    _, (expected,) = train(model, rows, tmp_path, **SEGMENTS)
    for name, gradient in expected.items():
        assert_close(nested[name][: len(gradient)], gradient, **EXACT)
        assert (nested[name][len(gradient) :] == 0).all()


# Control tokens


def test_control_tokens_of_tokenizer_and_model(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED_TOKENIZER)
    before, special = len(tokenizer), set(tokenizer.all_special_tokens)
    ids = add_control_tokens(tokenizer)
    assert ids == {"sum_token_id": before, "eoc_token_id": before + 1} == add_control_tokens(tokenizer)
    assert len(tokenizer) == before + 2 and special < set(tokenizer.all_special_tokens)
    text = tokenizer.decode([*tokenizer("The king")["input_ids"], *ids.values()], skip_special_tokens=True)
    assert text.strip() == "The king"
    tokenizer.save_pretrained(tmp_path)
    model = make_model(vocab_size=before, **ids).eval()
    check_tokenizer(AutoTokenizer.from_pretrained(tmp_path), model.config)
    with pytest.raises(ValueError, match="sum_token_id.*add_control_tokens"):
        check_tokenizer(AutoTokenizer.from_pretrained(BUNDLED_TOKENIZER), model.config)

    with pytest.raises(ValueError, match="resize_token_embeddings"):
        model.compress(torch.tensor([[5, 6, 7]]))
    resize_for_control_tokens(model, len(tokenizer))
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        assert torch.equal(module.weight[before:], module.weight[[2, 2]])
    assert model.compress(torch.tensor([[5, 6, 7]])).shape[1] > 0


# Bad settings


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"reconstruction_weight": -1.0}, "reconstruction_weight"),
        ({"distillation_weight": float("nan"), "distillation_model": "x"}, "distillation_weight"),
        ({"distillation_weight": 0.5}, "distillation_model"),
        ({"distillation_model": "x"}, "distillation_weight"),
    ],
)
def test_bad_arguments(settings, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        TrainingArguments(output_dir=str(tmp_path), use_cpu=True, **settings)


def test_distillation_needs_a_teacher(tmp_path):
    with pytest.raises(ValueError, match="teacher"):
        make_trainer(make_model(), text_rows(2, 16), tmp_path, **TEACHER)


def test_reconstruction_needs_a_prompt(tmp_path):
    with pytest.raises(ValueError, match="reconstruction_weight.*eos_token_id"):
        make_trainer(make_model(eos_token_id=None), text_rows(2, 16), tmp_path, reconstruction_weight=0.5)
