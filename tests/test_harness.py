"""The model `hier_ae` of lm-eval, and `auto-compressor evaluate`, which runs lm-eval on local tasks."""

import json
import logging
import math
import sys
from functools import partial

import pytest
import torch
import yaml
from lm_eval import __main__ as lm_eval_command
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.tasks import TaskManager
from transformers import LlamaConfig, LlamaForCausalLM

from auto_compressor import ByteTokenizer, HierarchicalAutoencoder, HierarchicalAutoencoderConfig
from auto_compressor.cli.main import main
from auto_compressor.evaluation.harness import HierarchicalAELM
from auto_compressor.hierarchical_autoencoder.likelihood import log_likelihood, text_log_likelihood


SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
SIZES["initializer_range"] = 0.5  # so that every code and every byte matters
LEVELS = [
    {"quantizer": "residual_vq", "num_quantizers": 2, "codebook_size": 3, "codebook_dim": 4},
    {"quantizer": "ema_vq", "codebook_size": 5, "codebook_dim": 4},
]
BLOCK_SIZE = 64
CHOICES = [
    {"question": "Der König ging", "choices": [" in den Wald.", " nach Hause."], "answer": 0},
    {"question": "", "choices": ["yes", "no"], "answer": 1},
    {"question": "A question of more than one block. " * 3, "choices": [" A", " B, longer"], "answer": 0},
]
TEXTS = [{"text": "In the beginning there was a king.\n" * 4}, {"text": "Kurz, ü."}, {"text": "a" * BLOCK_SIZE}]
PROMPTS = [{"question": "The king said", "answer": "nothing"}, {"question": "", "answer": ""}]


def save_model(path, levels: list[dict]):
    """A model with random weights."""
    torch.manual_seed(0)
    shared = SIZES | {"max_patch_length": 3, "border_threshold": 0.0, "window": 4, "memory_window": 3}
    levels = [shared | level for level in levels]
    config = HierarchicalAutoencoderConfig(level_configs=levels, code_sequence_config=SIZES, block_size=BLOCK_SIZE)
    HierarchicalAutoencoder(config).save_pretrained(path)
    return path


@pytest.fixture(scope="module", params=[LEVELS[1:], LEVELS], ids=["one level", "two levels"])
def folder(request, tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"), request.param)


@pytest.fixture(scope="module")
def two_levels(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"), LEVELS)


@pytest.fixture
def lm(folder):
    return HierarchicalAELM(str(folder), device="cpu", batch_size=2)


def requests(kind: str, *arguments: tuple) -> list[Instance]:
    return [Instance(request_type=kind, doc={}, arguments=args, idx=idx) for idx, args in enumerate(arguments)]


# The adapter


def test_it_is_registered():
    assert get_model("hier_ae") is HierarchicalAELM


def test_loglikelihood_is_that_of_the_continuation(lm):
    pairs = [("The king", " said no"), ("", "Ja, ü"), ("Der König", ""), ("x" * 100, " end"), ("x", "y" * 70)]
    found = lm.loglikelihood(requests("loglikelihood", *pairs), disable_tqdm=True)
    for (context, text), (score, _) in zip(pairs[:3], found, strict=False):
        ids = torch.tensor([list((context + text).encode())])
        alone = log_likelihood(lm.model, ids, context_lengths=torch.tensor([len(context.encode())]))
        assert score == pytest.approx(alone.total.item(), rel=1e-4, abs=1e-4)
    (cut,) = lm.loglikelihood(requests("loglikelihood", ("x" * (BLOCK_SIZE - 4), " end")), disable_tqdm=True)
    assert found[3][0] == pytest.approx(cut[0], rel=1e-4)
    blocks = text_log_likelihood(lm.model, [b"y" * 64, b"y" * 6], ends=False).total
    assert found[4][0] == pytest.approx(blocks.sum().item(), rel=1e-4)


def test_is_greedy_is_what_generation_gives(lm):
    """What generation begins with is greedy, and with another last byte it is not."""
    for context in (b"The king said", b"In the"):
        data = lm.model.generate_bytes(context, 8, do_sample=False)[len(context) :][:8]
        for length in range(1, len(data) + 1):
            assert lm.is_greedy(context, data[:length])
            assert not lm.is_greedy(context, data[: length - 1] + bytes([data[length - 1] ^ 1]))
        pairs = [(context.decode(), text.decode("utf-8", "surrogateescape")) for text in (data, data + b"no")]
        found = lm.loglikelihood(requests("loglikelihood", *pairs), disable_tqdm=True)
        assert [greedy for _, greedy in found] == [True, False]


def test_a_continuation_behind_the_end_is_not_greedy(lm, monkeypatch):
    """Generation that ends after two codes of a byte each."""
    monkeypatch.setattr(lm.model, "generate_bytes", lambda prompt, codes, do_sample: prompt + b"ab"[:codes])
    assert [lm.is_greedy(b"x", text) for text in (b"", b"a", b"ab")] == [True] * 3
    assert [lm.is_greedy(b"x", text) for text in (b"b", b"ac", b"abc", b"abb")] == [False] * 4


def test_rolling_scores_whole_texts_with_their_ends(lm):
    found = lm.loglikelihood_rolling(
        requests("loglikelihood_rolling", *((doc["text"],) for doc in TEXTS)), disable_tqdm=True
    )
    expected = text_log_likelihood(lm.model, [doc["text"].encode() for doc in TEXTS]).total.tolist()
    assert found == pytest.approx(expected, rel=1e-4)
    ids = torch.tensor([[*TEXTS[1]["text"].encode(), 256]])
    assert found[1] == pytest.approx(log_likelihood(lm.model, ids).total.item(), rel=1e-4)


def generate(lm, context: str, **gen_kwargs) -> str:
    (found,) = lm.generate_until(requests("generate_until", (context, gen_kwargs)), disable_tqdm=True)
    return found


def test_generate_until_stops(lm, monkeypatch):
    context = "The king said"
    calls = []

    def generate_bytes(prompt, max_new_codes, **kwargs):
        calls.append((prompt, max_new_codes, kwargs))
        return prompt + "One. Two; dreißig".encode()

    monkeypatch.setattr(lm.model, "generate_bytes", generate_bytes)
    assert generate(lm, context, until=[";", "."], max_gen_toks=20) == "One"
    assert generate(lm, context, until="T", max_gen_toks=20) == "One. "
    assert generate(lm, context, until=[], max_gen_toks=6) == "One. T"
    assert generate(lm, context, until=[]) == "One. Two; dreißig"
    assert generate(lm, context, until=[], max_gen_toks=15, temperature=0.0) == "One. Two; drei\ufffd"
    assert generate(lm, "x" * 100, do_sample=True, temperature=0.5, max_gen_toks=4) == "One."
    greedy = {"do_sample": False}
    prompts, limits, options = zip(*calls, strict=True)
    assert prompts[0] == context.encode() and prompts[-1] == b"x" * (BLOCK_SIZE - 4)
    assert limits == (20, 20, 6, 256, 15, 4)
    assert options == (greedy,) * 5 + ({"do_sample": True, "temperature": 0.5},)


def test_generate_until_is_generate_bytes(lm):
    prompt = b"The king said"
    expected = lm.model.generate_bytes(prompt, 12, do_sample=False)[len(prompt) :][:12]
    assert generate(lm, prompt.decode(), until=[], max_gen_toks=12) == expected.decode("utf-8", "replace")


def test_bad_input(two_levels, tmp_path):
    for batch_size in ("auto", 0, -1):
        with pytest.raises(ValueError, match="`batch_size` must be 1 or more, got"):
            HierarchicalAELM(str(two_levels), batch_size=batch_size)
    LlamaConfig(**SIZES).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="`checkpoint` must be a hierarchical_autoencoder"):
        HierarchicalAELM(str(tmp_path))


# lm-eval itself, on tasks of our own


@pytest.fixture(autouse=True)
def logging_as_before():
    """lm-eval logs to the standard error that it finds, which a test closes."""
    root = logging.getLogger()
    handlers = list(root.handlers)
    yield
    root.handlers[:] = handlers


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """Tasks of the three kinds of requests."""
    path = tmp_path_factory.mktemp("tasks")
    choice = {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_target": "answer",
        "doc_to_choice": "{{choices}}",
        "metric_list": [{"metric": "acc"}],
    }
    rolling = {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "bits_per_byte"}],
    }
    generation = {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 12},
        "metric_list": [{"metric": "exact_match"}],
    }
    for name, task, docs in (
        ("ae_choice", choice, CHOICES),
        ("ae_rolling", rolling, TEXTS),
        ("ae_generation", generation, PROMPTS),
    ):
        data = path / f"{name}.jsonl"
        data.write_text("".join(json.dumps(doc) + "\n" for doc in docs))
        source = {"data_files": {"test": str(data)}, "cache_dir": str(path / "cache")}
        task |= {"task": name, "dataset_path": "json", "dataset_kwargs": source, "test_split": "test"}
        (path / f"{name}.yaml").write_text(yaml.safe_dump(task))
    return path


@pytest.fixture
def own_tasks_only(monkeypatch):
    """lm-eval without the thousands of tasks that come with it, whose files it reads in every run."""
    monkeypatch.setattr("lm_eval.tasks.TaskManager", partial(TaskManager, include_defaults=False))


def evaluate(tasks, output, *arguments: str) -> dict:
    """Runs the command; returns the results and the samples by task."""
    shared = ["--include_path", str(tasks), "--output_path", str(output), "--log_samples", "--device", "cpu"]
    assert main(["evaluate", *arguments, *shared]) == 0
    (results,) = output.rglob("results_*.json")
    samples = {}
    for file in output.rglob("samples_*.jsonl"):
        name = file.name.removeprefix("samples_").rsplit("_", 1)[0]
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        samples[name] = sorted(rows, key=lambda row: row["doc_id"])
    return json.loads(results.read_text())["results"], samples


def test_evaluate(two_levels, tasks, tmp_path, capsys):
    lm = HierarchicalAELM(str(two_levels), device="cpu")
    names = "ae_choice,ae_rolling,ae_generation"
    model = ["--model", "hier_ae", "--model_args", f"checkpoint={two_levels}", "--batch_size", "2"]
    results, samples = evaluate(tasks, tmp_path, *model, "--tasks", names)
    printed = capsys.readouterr().out
    assert all(name in printed for name in names.split(",")) and "bits_per_byte" in printed
    right = 0
    for doc, row in zip(CHOICES, samples["ae_choice"], strict=True):
        pairs = [(doc["question"], " " + choice) for choice in doc["choices"]]
        assert pairs == [(args["arg_0"], args["arg_1"]) for args in row["arguments"].values()]
        scores = [score for score, _ in lm.loglikelihood(requests("loglikelihood", *pairs), disable_tqdm=True)]
        right += scores.index(max(scores)) == doc["answer"]
    assert results["ae_choice"]["acc,none"] == pytest.approx(right / len(CHOICES))
    likelihood = text_log_likelihood(lm.model, [doc["text"].encode() for doc in TEXTS])
    assert results["ae_rolling"]["bits_per_byte,none"] == pytest.approx(likelihood.bits_per_byte, rel=1e-4)
    assert likelihood.bits_per_byte == pytest.approx(
        -likelihood.total.sum().item() / math.log(2) / sum(len(doc["text"].encode()) for doc in TEXTS)
    )
    for doc, row in zip(PROMPTS, samples["ae_generation"], strict=True):
        assert row["resps"] == [[generate(lm, doc["question"], until=["\n"], max_gen_toks=12)]]


def test_evaluate_hands_other_models_on(tasks, own_tasks_only, tmp_path):
    """A model of transformers, and arguments that the command does not name."""
    config = LlamaConfig(**SIZES, vocab_size=259, bos_token_id=258, eos_token_id=256, pad_token_id=257)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    ByteTokenizer().save_pretrained(tmp_path / "model")
    model = ["--model", "hf", "--model_args", f"pretrained={tmp_path / 'model'}", "--limit", "2"]
    results, samples = evaluate(tasks, tmp_path / "out", *model, "--tasks", "ae_rolling", "--seed", "1")
    assert len(samples["ae_rolling"]) == 2
    assert 4 < results["ae_rolling"]["bits_per_byte,none"] < 20


def test_the_command_line_of_lm_eval(monkeypatch):
    seen, own = [], sys.argv
    monkeypatch.setattr(lm_eval_command, "cli_evaluate", lambda: seen.append(sys.argv))
    arguments = ["--model", "hf", "--model_args", "a=1", "b=2", "--tasks", "x,y"]
    further = ["--gen_kwargs", "temperature=0", "--write_out"]
    assert main(["evaluate", *arguments, "--tasks", "z", *further]) == 0
    device = ["--device", "cuda" if torch.cuda.is_available() else "cpu"]
    assert seen.pop() == ["lm-eval", "run", *arguments, "z", *further, *device]
    assert sys.argv is own
    for given in (["--device", "meta"], ["--model_args", "a=1,device=meta"], ["--config", "run.yaml"]):
        assert main(["evaluate", *arguments, *given]) == 0
        assert device[0] not in seen.pop()[-2:] or given == ["--device", "meta"]


@pytest.mark.parametrize("cuda", [True, False])
def test_the_default_device(cuda, monkeypatch):
    seen = []
    monkeypatch.setattr(lm_eval_command, "cli_evaluate", lambda: seen.append(sys.argv))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    assert main(["evaluate", "--model", "hier_ae", "--tasks", "x"]) == 0
    assert seen[0][-2:] == ["--device", "cuda" if cuda else "cpu"]


def test_other_commands_refuse_arguments_that_they_do_not_know(capsys):
    with pytest.raises(SystemExit):
        main(["generate", "--model", "x", "--prompt", "a", "--gen_kwargs", "temperature=0"])
    assert "unrecognized arguments: --gen_kwargs temperature=0" in capsys.readouterr().err


@pytest.mark.parametrize(("task", "checkpoint"), [("no_such_task", ""), ("ae_choice", "no_such_folder")])
def test_errors_are_one_line(two_levels, tasks, own_tasks_only, capsys, task, checkpoint):
    model = ["--model", "hier_ae", "--model_args", f"checkpoint={two_levels / checkpoint}"]
    assert main(["evaluate", *model, "--tasks", task, "--include_path", str(tasks)]) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("auto-compressor: error: ")]
    assert len(errors) == 1 and "no_such" in errors[0]


def test_arguments_that_a_model_does_not_take(two_levels, tasks, own_tasks_only, capsys):
    model = ["--model", "hier_ae", "--model_args", f"checkpoint={two_levels},ratio=4"]
    assert main(["evaluate", *model, "--tasks", "ae_choice", "--include_path", str(tasks)]) == 1
    assert "unexpected keyword argument 'ratio'" in capsys.readouterr().err.splitlines()[-1]


def test_lm_eval_is_not_installed(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    assert main(["evaluate", "--model", "hier_ae", "--tasks", "x"]) == 1
    assert 'pip install "auto-compressor[eval]"' in capsys.readouterr().err
