"""The check that no logits depend on later tokens: it passes causal models, and catches every kind of leak."""

import json
import re

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from auto_compressor import (
    AdaptiveByteConfig,
    AdaptiveByteForCausalLM,
    ByteTokenizer,
    GRUByteConfig,
    GRUByteForCausalLM,
    LlamaAutoCompressorConfig,
    LlamaAutoCompressorModel,
)
from auto_compressor.cache_names import as_cache, takes_cache
from auto_compressor.cli.main import main
from auto_compressor.evaluation.causality import check_causality, rounding_threshold
from auto_compressor.files.bundled import BUNDLED_TOKENIZER


SIZES = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
PATHS = ["prefixes", "other tokens behind", "cached, 1 at a time", "cached, 7 at a time"]


class SeesTheLast(LlamaForCausalLM):
    """Every position sees the last token, a little."""

    def forward(self, input_ids, **kwargs):
        output = super().forward(input_ids, **kwargs)
        output.logits = output.logits + 1e-3 * self.get_input_embeddings()(input_ids[:, -1:]).sum()
        return output


class SeesOneAhead(LlamaForCausalLM):
    """One position sees one later token."""

    def forward(self, input_ids, **kwargs):
        output = super().forward(input_ids, **kwargs)
        if input_ids.shape[1] > 6:
            output.logits[:, 4, 0] += 1e-3 * input_ids[:, 6]
        return output


class SeesTheLength(LlamaForCausalLM):
    """It depends on how many tokens there are, not on which."""

    def forward(self, input_ids, **kwargs):
        output = super().forward(input_ids, **kwargs)
        output.logits = output.logits + 1e-3 * input_ids.shape[1]
        return output


class LosesThePast(LlamaForCausalLM):
    """Its cache is empty whenever it is used."""

    @takes_cache
    def forward(self, input_ids, cache=None, **kwargs):
        return super().forward(input_ids, **as_cache(None), **kwargs)


class WrongAtOnePosition(LlamaForCausalLM):
    """Its cached path is wrong at one position, by a little."""

    @takes_cache
    def forward(self, input_ids, cache=None, **kwargs):
        wrong = cache is not None and cache.get_seq_length() == 7
        output = super().forward(input_ids, **as_cache(cache), **kwargs)
        output.logits[:, 0] += 1e-3 * wrong
        return output


class RefusesItsCache(LlamaForCausalLM):
    @takes_cache
    def forward(self, input_ids, cache=None, use_cache=None, **kwargs):
        if use_cache:
            raise ValueError("No cache.")
        return super().forward(input_ids, use_cache=False, **kwargs)


class IsNoNumber(LlamaForCausalLM):
    def forward(self, input_ids, **kwargs):
        output = super().forward(input_ids, **kwargs)
        output.logits[:, 3:4] *= torch.nan if input_ids.shape[1] == 5 else 1
        return output


def make_model(model_class=LlamaForCausalLM, **kwargs):
    torch.manual_seed(0)
    return model_class(LlamaConfig(vocab_size=64, initializer_range=0.2, **SIZES, **kwargs)).eval()


@pytest.fixture
def ids():
    return torch.randint(64, (2, 20))


def verdicts(checks):
    assert [check.path for check in checks] == PATHS
    return [check.leaks for check in checks]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_causal_model_passes(ids, dtype):
    checks = check_causality(make_model().to(dtype), ids)
    assert verdicts(checks) == [False] * 4
    assert any(check.difference > 0 for check in checks)


def test_a_bidirectional_model_is_caught(ids):
    checks = check_causality(make_model(is_causal=False), ids)
    assert all(verdicts(checks))


LEAKS = {
    SeesTheLast: [True, True, True, True],
    SeesOneAhead: [True, True, True, True],
    SeesTheLength: [True, False, True, True],
    LosesThePast: [False, False, True, True],
    WrongAtOnePosition: [False, False, True, True],
    RefusesItsCache: [False, False, False, False],
    IsNoNumber: [True, False, False, False],
}


@pytest.mark.parametrize("model_class", LEAKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_leaks_are_caught(ids, model_class, dtype):
    checks = check_causality(make_model(model_class).to(dtype), ids)
    assert verdicts(checks) == LEAKS[model_class]


def test_where_and_how_much(ids):
    prefixes, changed, single, _ = check_causality(make_model(SeesOneAhead), ids)
    assert [check.position for check in (prefixes, changed, single)] == [4, 4, 4]
    assert prefixes.difference == pytest.approx(1e-3 * float(ids[:, 6].max()), rel=0.01)
    assert check_causality(make_model(WrongAtOnePosition), ids)[2].position == 7
    refused = check_causality(make_model(RefusesItsCache), ids)
    assert [check.refusal for check in refused] == ["", "", "No cache.", "No cache."]


def test_the_last_position_counts(ids):
    """Of the cached path: the others have nothing behind it."""

    class WrongAtTheEnd(LlamaForCausalLM):
        @takes_cache
        def forward(self, input_ids, cache=None, **kwargs):
            wrong = cache is not None and cache.get_seq_length() == 19
            output = super().forward(input_ids, **as_cache(cache), **kwargs)
            output.logits[-1, -1, -1] += 0.1 * wrong
            return output

    assert verdicts(check_causality(make_model(WrongAtTheEnd), ids)) == [False, False, True, False]


def test_the_threshold_is_relative():
    logits = torch.tensor([[-8.0, 2.0]])
    assert rounding_threshold(logits) == pytest.approx(8 * 2.42e-5, rel=0.01)
    assert rounding_threshold(logits.double()) == rounding_threshold(logits)
    assert rounding_threshold(logits.bfloat16()) == pytest.approx(8 * 0.0394, rel=0.01)


def test_autocompressors_pass(ids):
    torch.manual_seed(0)
    config = LlamaAutoCompressorConfig(vocab_size=64, initializer_range=0.2, summary_length=3, pad_token_id=0, **SIZES)
    assert verdicts(check_causality(LlamaAutoCompressorModel(config).eval(), ids)) == [False] * 4


def make_adaptive(**kwargs):
    """With a border at every few bytes on every level."""
    torch.manual_seed(0)
    thresholds = {"byte_entropy_threshold": 12.0, "meta_uncertainty_threshold": 1.5}
    model = AdaptiveByteForCausalLM(AdaptiveByteConfig(hidden_size=16, **thresholds, **kwargs)).eval()
    if model.config.border_mode == "teacher_forced":
        model.levels[0].head.bias.data[ord("e")] = 1.0  # the likeliest byte is sometimes the next one
    return model


@pytest.mark.parametrize("num_levels", [1, 2, 3, 4])
def test_adaptive_models_pass(num_levels):
    byte_ids = torch.randint(256, (3, 60))
    model = make_adaptive(num_levels=num_levels)
    assert verdicts(check_causality(model, byte_ids)) == [False] * 4
    assert all(mask.any(dim=1).all() for mask in model(byte_ids).border_masks)


def test_borders_that_look_ahead_are_caught():
    byte_ids = torch.tensor([list(b"The evening and the morning were the fifth"), list(b"e" * 21 + b"be" * 10 + b"!")])
    checks = check_causality(make_adaptive(border_mode="teacher_forced"), byte_ids)
    assert verdicts(checks) == [True, True, False, False]
    refused = ["teacher_forced works without `cache`" in check.refusal for check in checks]
    assert refused == [False, False, True, True]


def test_recurrent_models_pass():
    torch.manual_seed(0)
    model = GRUByteForCausalLM(GRUByteConfig(hidden_size=16)).eval()
    assert verdicts(check_causality(model, torch.randint(256, (2, 40)))) == [False] * 4


def test_seed(ids):
    """Other tokens behind are those of the seed, and reproducible."""
    first, again, other = (check_causality(make_model(SeesTheLast), ids, seed)[1].difference for seed in (0, 0, 1))
    assert first == again != other


def test_progress(ids):
    seen = []

    def track(steps):
        seen.append(len(steps))
        return iter(steps)

    check_causality(make_model(), ids, progress=track)
    assert seen == [19, 19, 20, 3]


@pytest.mark.parametrize("shape", [(2, 1), (1, 0), (5,)])
def test_short_texts_are_refused(shape):
    with pytest.raises(ValueError, match=re.escape(f"got the shape {shape}")):
        check_causality(make_model(), torch.zeros(shape, dtype=torch.long))


def test_a_model_in_training_is_refused(ids):
    with pytest.raises(ValueError, match="`model` must be in evaluation mode"):
        check_causality(make_model().train(), ids)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    config = LlamaAutoCompressorConfig(
        vocab_size=2048, initializer_range=0.2, summary_length=3, pad_token_id=0, max_position_embeddings=64, **SIZES
    )
    path = tmp_path_factory.mktemp("model")
    LlamaAutoCompressorModel(config).save_pretrained(path)
    AutoTokenizer.from_pretrained(BUNDLED_TOKENIZER).save_pretrained(path)
    return path


def test_the_command_prints_a_table(folder, capsys):
    assert main(["check-causality", "--model", str(folder), "--length", "20", "--batch-size", "3"]) == 0
    printed = capsys.readouterr().out
    assert "3 texts of 20 tokens" in printed
    assert all(path in printed for path in PATHS) and printed.count(" ok ") == 4


def test_a_leak_is_an_error_of_one_line(folder, tmp_path, capsys):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"is_causal": False}))
    assert main(["check-causality", "--model", str(tmp_path), "--length", "9"]) == 1
    captured = capsys.readouterr()
    assert "LEAKS" in captured.out
    (line,) = captured.err.strip().splitlines()
    assert re.search(r"error: .* on the path 'prefixes' the logits of position \d+ differ by", line)


def test_the_command_checks_in_float32(folder, tmp_path, capsys):
    LlamaAutoCompressorModel.from_pretrained(folder).bfloat16().save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(BUNDLED_TOKENIZER).save_pretrained(tmp_path)
    command = ["check-causality", "--model", str(tmp_path), "--length", "9"]
    thresholds = []
    for arguments in ([], ["--dtype", "auto"]):
        assert main([*command, *arguments]) == 0
        thresholds.append(float(re.search(r"ok \S (\S+) ", capsys.readouterr().out)[1]))
    assert thresholds[0] < thresholds[1] / 1000


@pytest.mark.parametrize("mode, code", [("uncertainty", 0), ("teacher_forced", 1)])
def test_the_command_on_bytes(tmp_path, capsys, mode, code):
    make_adaptive(border_mode=mode).save_pretrained(tmp_path)
    ByteTokenizer().save_pretrained(tmp_path)
    assert main(["check-causality", "--model", str(tmp_path), "--length", "40"]) == code
    captured = capsys.readouterr()
    assert "2 texts of 40 tokens" in captured.out
    assert ("LEAKS" in captured.out) == ("later tokens leak" in captured.err) == bool(code)


def test_the_text_of_the_command(folder, tmp_path, capsys):
    (tmp_path / "text.txt").write_text("In the beginning there was a king in the land, and he had three sons.")
    arguments = ["check-causality", "--model", str(folder), "--text", str(tmp_path / "text.txt")]
    assert main(arguments) == 0
    tokens = len(AutoTokenizer.from_pretrained(BUNDLED_TOKENIZER)((tmp_path / "text.txt").read_text()).input_ids)
    assert re.search(rf"2 texts of ({tokens // 2}|{(tokens - 1) // 2}) tokens", capsys.readouterr().out)
    assert main(["check-causality", "--model", str(folder), "--batch-size", "1"]) == 0
    assert "1 texts of 64 tokens" in capsys.readouterr().out  # no more than the positions of the model


BAD_INPUT = {
    "length": (["--length", "1"], "--length must be 2 or more, got 1"),
    "batch size": (["--batch-size", "0"], "--batch-size must be 1 or more, got 0"),
    "short text": (["--batch-size", "100000"], "The text must hold 100000 rows of 2 tokens"),
    "no text": (["--text", "/none.txt"], "No such file"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_input(folder, capsys, arguments, message):
    assert main(["check-causality", "--model", str(folder), *arguments]) == 1
    assert message in capsys.readouterr().err
