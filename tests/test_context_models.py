"""The models of lm-eval that read a context compressed, and the tasks that need no hub."""

import json
import sys

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from modeling_testing import tiny_autocompressor
from test_adaptive_byte import tiny_model as tiny_byte_lm
from torch.nn import functional as F
from train_testing import run_command
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from auto_compressor import POLICIES, ActivationCompressor, ByteTokenizer
from auto_compressor.cli.main import main
from auto_compressor.evaluation.context_models import AutoCompressorLM, ByteLM, MergingCacheLM
from auto_compressor.evaluation.offline_tasks import NUM_CHOICES, TASKS, write_tasks
from auto_compressor.files.bundled import BUNDLED_TOKENIZER


CONTEXT = "In the beginning there was a king in the land, and he had three sons. " * 6
EXAMPLES = "lion: red\n\nsword: blue\n\nbread: green\n\n"


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(BUNDLED_TOKENIZER)


@pytest.fixture(scope="module")
def folders(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    compressor = tiny_autocompressor("llama", vocab_size=len(tokenizer), max_position_embeddings=512)
    compressor.config.segment_length = 16
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    ends = {"bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.3}
    torch.manual_seed(0)
    base = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=512, **sizes, **ends))
    models = {"autocompressor": compressor, "base": base, "byte": tiny_byte_lm("gru")}
    for name, model in models.items():
        model.save_pretrained(folder / name)
        (ByteTokenizer() if name == "byte" else tokenizer).save_pretrained(folder / name)
    return folder


def autocompressor(folders, **options):
    return AutoCompressorLM(str(folders / "autocompressor"), device="cpu", **options)


def score(lm, *pairs: tuple[str, str]) -> list[tuple[float, bool]]:
    requests = [Instance("loglikelihood", {}, arguments=pair, idx=index) for index, pair in enumerate(pairs)]
    return lm.loglikelihood(requests, disable_tqdm=True)


def ids_of(tokenizer, text: str) -> torch.LongTensor:
    return tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids


def log_prob(logits: torch.Tensor, targets: torch.LongTensor) -> float:
    return -float(F.cross_entropy(logits, targets, reduction="sum"))


def test_they_are_registered():
    for name, kind in (("autocompressor", AutoCompressorLM), ("merging_cache", MergingCacheLM), ("byte", ByteLM)):
        assert get_model(name) is kind


@torch.no_grad()
def test_the_front_of_a_context_is_compressed(folders, tokenizer):
    lm, answer = autocompressor(folders, keep=5), " said no"
    (found,) = score(lm, (CONTEXT.strip(), answer))
    whole = ids_of(tokenizer, CONTEXT.strip() + answer)
    length = ids_of(tokenizer, CONTEXT.strip()).shape[1]
    softprompt = lm.model.compress(whole[:, : length - 5], segment_lengths=16)
    logits = lm.model(whole[:, length - 5 :], softprompt=softprompt).logits[0, 4:-1]
    assert found[0] == pytest.approx(log_prob(logits, whole[0, length:]), rel=1e-4)
    assert found[1] == bool((logits.argmax(-1) == whole[0, length:]).all())


@torch.no_grad()
def test_other_forms_of_the_front(folders, tokenizer):
    """Its last tokens, as many as there would be vectors; or nothing."""
    whole = ids_of(tokenizer, CONTEXT.strip() + " said no")
    length = ids_of(tokenizer, CONTEXT.strip()).shape[1]
    vectors = 3 * -(-(length - 5) // 16)
    for form, kept in (("truncated", 5 + vectors), ("none", 5)):
        lm = autocompressor(folders, keep=5, form=form)
        logits = lm.model(whole[:, length - kept :]).logits[0, kept - 1 : -1]
        (found,) = score(lm, (CONTEXT.strip(), " said no"))
        assert found[0] == pytest.approx(log_prob(logits, whole[0, length:]), rel=1e-4)


def test_ratio_and_segments(folders):
    lm = autocompressor(folders, segment_length=8, ratio=4)
    given = lm.read_front(torch.full((1, 32), 9))
    assert given["softprompt"].shape[1] == 8 == lm.num_positions([9] * 32)
    assert autocompressor(folders).num_positions([9] * 17) == 6


def test_truncated_is_as_long_as_what_is_compressed(folders):
    """With RMT the last segment's vectors alone are kept."""
    lm = autocompressor(folders, form="truncated")
    lm.model.config.accumulate_summary = False
    given, text = lm.given(list(range(5, 105)), [1, 2])
    assert given == {} and text == [102, 103, 104, 1, 2]


@torch.no_grad()
def test_demonstrations_are_compressed(folders, tokenizer):
    lm = autocompressor(folders, compress="demonstrations")
    (found,) = score(lm, (EXAMPLES + "eagle:", " red"))
    vectors = lm.model.compress(ids_of(tokenizer, EXAMPLES), segment_lengths=16)
    text, answer = ids_of(tokenizer, "eagle:"), ids_of(tokenizer, " red")
    whole = ids_of(tokenizer, EXAMPLES + "eagle: red")
    assert whole[0].tolist() == torch.cat([ids_of(tokenizer, EXAMPLES), text, answer], dim=1)[0].tolist()
    logits = lm.model(torch.cat([text, answer], dim=1), softprompt=vectors).logits[0, text.shape[1] - 1 : -1]
    assert found[0] == pytest.approx(log_prob(logits, answer[0]), rel=1e-4)
    # Without examples nothing is compressed.
    (short,) = score(lm, ("eagle:", " red"))
    plain = lm.model(torch.cat([text, answer], dim=1)).logits[0, text.shape[1] - 1 : -1]
    assert short[0] == pytest.approx(log_prob(plain, answer[0]), rel=1e-4)


def test_a_front_is_read_once_for_all_choices(folders, monkeypatch):
    lm, calls = autocompressor(folders), []
    compress = lm.model.compress
    monkeypatch.setattr(lm.model, "compress", lambda *args, **kwargs: calls.append(1) or compress(*args, **kwargs))
    score(lm, (CONTEXT, " a"), (CONTEXT, " b"), (CONTEXT, " c"), ("Other. " + CONTEXT, " a"))
    assert len(calls) == 2


@torch.no_grad()
@pytest.mark.parametrize("policy", [None, "snapkv"])
def test_merging_cache(folders, tokenizer, policy):
    lm = MergingCacheLM(str(folders / "base"), device="cpu", policy=policy, ratio=2, keep=5)
    found = score(lm, (CONTEXT.strip(), " said no"), (CONTEXT.strip(), " said yes"), (CONTEXT.strip(), " said no"))
    assert found[0] == found[2] != found[1]  # what is scored does not stay in the cache
    whole = ids_of(tokenizer, CONTEXT.strip() + " said no")
    length = ids_of(tokenizer, CONTEXT.strip()).shape[1]
    compressor = ActivationCompressor.from_base(lm.model)
    with compressor.attach(lm.model):
        options = {"compression_ratio": 2.0, "policy": POLICIES[policy] if policy else None}
        cache = compressor.compress(lm.model, whole[:, : length - 5], **options)
        logits = lm.model(whole[:, length - 5 :], past_key_values=cache).logits[0, 4:-1]
    assert found[0][0] == pytest.approx(log_prob(logits, whole[0, length:]), rel=1e-4)
    full = lm.model(whole).logits[0, length - 1 : -1]
    assert abs(log_prob(full, whole[0, length:]) - found[0][0]) > 1e-4


@torch.no_grad()
def test_byte_models_read_everything(folders):
    lm = ByteLM(str(folders / "byte"), device="cpu")
    (found,) = score(lm, (CONTEXT, "é no"))
    ids = torch.tensor([list((CONTEXT + "é no").encode())])
    length = len(CONTEXT.encode())
    # lm-eval gives the space at the end of a context to the continuation.
    logits = lm.model(ids).logits[0, length - 2 : -1]
    assert found[0] == pytest.approx(log_prob(logits, ids[0, length - 1 :]), rel=1e-4)


@pytest.mark.parametrize("kind", ["autocompressor", "merging_cache", "byte"])
@torch.no_grad()
def test_rolling_scores_every_token_once(folders, tokenizer, kind):
    text = CONTEXT[:150]
    if kind == "byte":
        lm = ByteLM(str(folders / "byte"), device="cpu")
        ids = torch.tensor([[lm.prefix_token_id, *text.encode()]])
        expected = log_prob(lm.model(ids).logits[0, :-1], ids[0, 1:])
    else:
        name = "autocompressor" if kind == "autocompressor" else "base"
        lm = get_model(kind)(str(folders / name), device="cpu", keep=8)
        ids = [lm.prefix_token_id, *lm.tok_encode(text)]
        blocks = [(ids[: start - 1], ids[start - 1 : start + 8]) for start in range(1, len(ids), 8)]
        expected = sum(lm.score(front, block, len(block) - 1)[0] for front, block in blocks)
        assert sum(len(block) - 1 for _, block in blocks) == len(ids) - 1
    request = Instance("loglikelihood_rolling", {}, arguments=(text,), idx=0)
    assert lm.loglikelihood_rolling([request], disable_tqdm=True) == [pytest.approx(expected, rel=1e-4)]


@pytest.mark.parametrize("kind", ["autocompressor", "merging_cache", "byte"])
def test_generation_goes_on_behind_the_context(folders, kind):
    name = {"merging_cache": "base"}.get(kind, kind)
    lm = get_model(kind)(str(folders / name), device="cpu")
    options = [{"until": [], "max_gen_toks": 8}, {"until": [], "max_gen_toks": 3}]
    requests = [Instance("generate_until", {}, arguments=(CONTEXT, option), idx=0) for option in options]
    long, short = lm.generate_until(requests, disable_tqdm=True)
    assert long.startswith(short.rstrip("\ufffd")) and len(lm.tok_encode(long)) >= len(lm.tok_encode(short))
    (cut,) = lm.generate_until(
        [Instance("generate_until", {}, arguments=(CONTEXT, {"until": [long[2]], "max_gen_toks": 8}), idx=0)],
        disable_tqdm=True,
    )
    assert cut == long.split(long[2])[0]


def test_bad_input(folders):
    for options, message in (
        ({"keep": 0}, "`keep` must be a whole number of 1 or more, got 0"),
        ({"ratio": "x"}, "`ratio` must be a whole number of 1 or more, got 'x'"),
        ({"form": "short"}, "`form` must be one of compressed, truncated, none, got 'short'"),
        ({"compress": "all"}, "`compress` must be one of context, demonstrations, got 'all'"),
    ):
        with pytest.raises(ValueError, match=message):
            autocompressor(folders, **options)
    with pytest.raises(ValueError, match="`policy` must be one of"):
        MergingCacheLM(str(folders / "base"), policy="none")


# Tasks that need no hub


def test_tasks(tmp_path):
    write_tasks(tmp_path / "a", num_cases=12)
    write_tasks(tmp_path / "b", num_cases=12)
    for name in TASKS:
        cases = [json.loads(line) for line in (tmp_path / "a" / f"{name}.jsonl").read_text().splitlines()]
        assert (tmp_path / "b" / f"{name}.jsonl").read_text() == (tmp_path / "a" / f"{name}.jsonl").read_text()
        assert len(cases) == 12 and len({case["answer"] for case in cases}) > 1
        for case in cases:
            assert len(set(case["choices"])) == NUM_CHOICES
            right = case["choices"][case["answer"]].strip()
            shown = [choice.strip() in case["question"] for choice in case["choices"]]
            # Knowing which words stand in the context is enough for `needle` alone.
            assert right in case["question"]
            assert shown == [name != "needle" or choice.strip() == right for choice in case["choices"]]
    with pytest.raises(ValueError, match="`num_cases` must be 1 or more, got 0"):
        write_tasks(tmp_path, num_cases=0)


def test_evaluate_knows_the_models_of_this_package(folders, tmp_path):
    """In a process of its own: nothing else has registered them."""
    assert main(["offline-tasks", "-o", str(tmp_path / "tasks"), "--num-cases", "2"]) == 0
    program = (
        "import sys, functools, lm_eval.tasks as tasks; from auto_compressor.cli.main import main;"
        " tasks.TaskManager = functools.partial(tasks.TaskManager, include_defaults=False); sys.exit(main())"
    )
    model = ["--model", "autocompressor", "--model_args", f"pretrained={folders / 'autocompressor'}"]
    tasks = ["--tasks", "offline_icl", "--include_path", tmp_path / "tasks", "--device", "cpu"]
    done = run_command(sys.executable, "-c", program, "evaluate", *model, *tasks)
    assert done.returncode == 0 and "offline_icl" in done.stdout, done.stderr
