"""The command `auto-compressor`, called as a shell would."""

import io
import re
import shutil
import subprocess
import sys
from importlib import metadata

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from auto_compressor import (
    AdaptiveByteConfig,
    AdaptiveByteForCausalLM,
    ByteTokenizer,
    GRUByteConfig,
    GRUByteForCausalLM,
    LlamaAutoCompressorConfig,
    LlamaAutoCompressorModel,
    OPTAutoCompressorConfig,
    OPTAutoCompressorModel,
)
from auto_compressor.autocompressor.context import compare_contexts
from auto_compressor.autocompressor.control_tokens import add_control_tokens
from auto_compressor.autocompressor.softprompts import load_softprompt
from auto_compressor.cli.main import COMMANDS, main
from auto_compressor.files.bundled import BUNDLED_TOKENIZER


TEXT = "In the beginning there was a king in the land, and he had three sons.\n" * 6


@pytest.fixture(scope="module", params=[True, False], ids=["accumulate", "replace"])
def folder(request, tmp_path_factory):
    """A saved model with random weights, large enough that softprompts matter, and its tokenizer."""
    torch.manual_seed(0)
    config = LlamaAutoCompressorConfig(
        vocab_size=2048,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        initializer_range=0.5,
        pad_token_id=0,
        summary_length=3,
        accumulate_summary=request.param,
    )
    path = tmp_path_factory.mktemp("model")
    LlamaAutoCompressorModel(config).save_pretrained(path)
    AutoTokenizer.from_pretrained(BUNDLED_TOKENIZER).save_pretrained(path)
    return path


@pytest.fixture
def model(folder):
    return LlamaAutoCompressorModel.from_pretrained(folder).eval()


@pytest.fixture
def ids():
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED_TOKENIZER)
    return lambda text: tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids


@pytest.fixture(scope="module")
def opt_folder(tmp_path_factory):
    """A saved OPT of 16 positions, and its tokenizer."""
    config = OPTAutoCompressorConfig(
        vocab_size=2048,
        hidden_size=32,
        word_embed_proj_dim=32,
        ffn_dim=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=16,
        summary_length=3,
    )
    path = tmp_path_factory.mktemp("opt")
    OPTAutoCompressorModel(config).save_pretrained(path)
    AutoTokenizer.from_pretrained(BUNDLED_TOKENIZER).save_pretrained(path)
    return path


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def one_line(captured):
    """The error of a failed command, which is all that it says."""
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("auto-compressor: error: "), captured.err
    return lines[0]


@pytest.mark.parametrize("segment_length", [None, 13])
def test_summarize_is_compress(folder, model, ids, text_file, tmp_path, capsys, segment_length):
    output = tmp_path / "out.safetensors"
    options = [] if segment_length is None else ["--segment-length", str(segment_length)]
    assert main(["summarize", str(text_file), "-o", str(output), "--model", str(folder), *options]) == 0
    input_ids = ids(TEXT)
    loaded = load_softprompt(output, model)
    expected = model.compress(input_ids, segment_lengths=segment_length)
    torch.testing.assert_close(loaded.vectors, expected, rtol=0, atol=1e-5)
    assert loaded.num_tokens == input_ids.shape[1]
    assert f"{input_ids.shape[1] / expected.shape[1]:.1f}x" in capsys.readouterr().out


def test_summarize_reads_standard_input(folder, model, ids, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(TEXT.encode())))
    assert main(["summarize", "-", "-o", str(tmp_path / "o.safetensors"), "--model", str(folder)]) == 0
    assert load_softprompt(tmp_path / "o.safetensors", model).num_tokens == ids(TEXT).shape[1]


def test_generate_is_generate(folder, model, ids, text_file, tmp_path, capsys):
    output, prompt = tmp_path / "out.safetensors", "The king said"
    main(["summarize", str(text_file), "-o", str(output), "--model", str(folder)])
    capsys.readouterr()
    arguments = ["generate", "--model", str(folder), "--prompt", prompt, "--max-new-tokens", "8"]
    assert main([*arguments, "--softprompt", str(output)]) == 0
    printed = capsys.readouterr().out
    softprompt = load_softprompt(output, model).vectors
    sequences = model.generate(ids(prompt), softprompt=softprompt, max_new_tokens=8, do_sample=False)
    decoded = AutoTokenizer.from_pretrained(BUNDLED_TOKENIZER).decode(sequences[0], skip_special_tokens=True)
    assert printed.rstrip("\n") == decoded.rstrip("\n")
    assert main(arguments) == 0
    assert capsys.readouterr().out != printed
    sampling = [*arguments, "--temperature", "1.5", "--top-p", "0.9", "--seed"]
    samples = [main([*sampling, seed]) or capsys.readouterr().out for seed in ("1", "1", "2")]
    assert samples[0] == samples[1] != samples[2]


BYTE_MODELS = {
    "adaptive": (AdaptiveByteForCausalLM, AdaptiveByteConfig(hidden_size=16, byte_entropy_threshold=12.0)),
    "gru": (GRUByteForCausalLM, GRUByteConfig(hidden_size=16)),
}


@pytest.fixture(scope="module", params=BYTE_MODELS)
def byte_folder(request, tmp_path_factory):
    """A saved language model of bytes with random weights, and no tokenizer beside it."""
    torch.manual_seed(0)
    model_class, config = BYTE_MODELS[request.param]
    model, path = model_class(config), tmp_path_factory.mktemp("bytes")
    with torch.no_grad():
        model.lm_head.weight *= 10  # far from uniform
    model.save_pretrained(path)
    return path


SEARCHES = {
    "greedy": ([], {"do_sample": False}),
    "beams": (["--num-beams", "3"], {"do_sample": False, "num_beams": 3}),
    "sampling": (["--temperature", "2", "--seed", "1"], {"do_sample": True, "temperature": 2.0, "top_k": 0}),
    "top-k": (
        ["--temperature", "2", "--seed", "1", "--top-k", "3"],
        {"do_sample": True, "temperature": 2.0, "top_k": 3},
    ),
}


@pytest.mark.parametrize("search", SEARCHES)
def test_generate_bytes(byte_folder, capsys, search):
    prompt, (arguments, options) = "The king s\u00e5id", SEARCHES[search]
    command = ["generate", "--model", str(byte_folder), "--prompt", prompt, "--max-new-tokens", "30", *arguments]
    assert main(command) == 0
    model = AutoModelForCausalLM.from_pretrained(byte_folder).eval()
    ids = torch.tensor([list(prompt.encode())])
    torch.manual_seed(1)
    sequences = model.generate(ids, max_new_tokens=30, **options)
    assert capsys.readouterr().out == ByteTokenizer().decode(sequences[0], skip_special_tokens=True) + "\n"


def test_searches_differ(byte_folder, capsys):
    command = ["generate", "--model", str(byte_folder), "--prompt", "The king", "--max-new-tokens", "30"]
    printed = [main([*command, *arguments]) or capsys.readouterr().out for arguments, _ in SEARCHES.values()]
    assert len(set(printed)) == len(SEARCHES)


@pytest.mark.parametrize(
    "text", ["na\u00efve caf\u00e9", "\u4e2d\u6587\u3002 \U0001f389\n\U0001f1eb\U0001f1ee", "\u00e5" * 50]
)
def test_characters_of_several_bytes_are_printed_whole(byte_folder, capsys, monkeypatch, text):
    """Byte by byte, as they are generated: no character is cut, none is printed twice."""
    printed = []

    def generate(self, input_ids, streamer, **kwargs):
        for byte in (prompt + text).encode():
            streamer.put(torch.tensor([byte]))
            printed.append(capsys.readouterr().out)
        streamer.end()

    prompt = "\u00e9t\u00e9 "
    monkeypatch.setattr(AutoModelForCausalLM.from_pretrained(byte_folder).__class__, "generate", generate)
    assert main(["generate", "--model", str(byte_folder), "--prompt", prompt]) == 0
    assert "\ufffd" not in "".join(printed)
    assert "".join(printed) + capsys.readouterr().out == prompt + text + "\n"


def test_a_softprompt_needs_an_autocompressor(byte_folder, capsys):
    assert main(["generate", "--model", str(byte_folder), "--prompt", "a", "--softprompt", "x.safetensors"]) == 1
    assert "--softprompt needs an AutoCompressor, --model is a " in one_line(capsys.readouterr())


def test_generate_needs_a_language_model(tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"model_type": "hierarchical_autoencoder"}')
    assert main(["generate", "--model", str(tmp_path), "--prompt", "a"]) == 1
    assert "causal language model, it is of the type hierarchical_autoencoder" in one_line(capsys.readouterr())


@pytest.fixture(scope="module")
def variable_folder(tmp_path_factory):
    """A model that decides how many vectors a segment gets, with the control tokens in its tokenizer."""
    torch.manual_seed(0)
    path, tokenizer = tmp_path_factory.mktemp("variable"), AutoTokenizer.from_pretrained(BUNDLED_TOKENIZER)
    ids = add_control_tokens(tokenizer)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaAutoCompressorConfig(
        vocab_size=len(tokenizer), compression_max_len=4, pad_token_id=0, **sizes, **ids
    )
    LlamaAutoCompressorModel(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def test_variable_length(variable_folder, text_file, tmp_path, capsys):
    file, model = tmp_path / "text.safetensors", ["--model", str(variable_folder)]
    summarize = ["summarize", str(text_file), "-o", str(file), "--segment-length", "16", *model]
    # It stops with the probability 1/5, so never before the end.
    for budget, per_segment in ((None, 4), ("2", 2), ("9", 4)):
        arguments = [] if budget is None else ["--max-summary-length", budget]
        assert main([*summarize, *arguments]) == 0
        softprompt = load_softprompt(file).vectors
        assert softprompt.shape[1] == per_segment * -(-load_softprompt(file).num_tokens // 16)
    assert main(["generate", "--prompt", "The king", "--softprompt", str(file), "--max-new-tokens", "4", *model]) == 0
    table = tmp_path / "table.csv"
    arguments = ["perplexity", "--text", str(text_file), "--segment-lengths", "8", "8", "9", "-o", str(table), *model]
    assert main([*arguments, "--max-summary-length", "3"]) == 0
    positions = {row.split(",")[0]: float(row.split(",")[1]) for row in table.read_text().splitlines()[1:]}
    assert list(positions.values()) == [0, 6, 6, 16]
    assert main([*summarize, "--max-summary-length", "0"]) == 1
    assert "--max-summary-length must be 1 or more, got 0" in capsys.readouterr().err


def test_tokenizer_without_control_tokens(variable_folder, text_file, tmp_path, capsys):
    folder = tmp_path / "plain"
    shutil.copytree(variable_folder, folder)
    AutoTokenizer.from_pretrained(BUNDLED_TOKENIZER).save_pretrained(folder)
    assert main(["summarize", str(text_file), "-o", str(tmp_path / "x.safetensors"), "--model", str(folder)]) == 1
    assert "no special token 2048, the `sum_token_id` of the model" in capsys.readouterr().err


def test_perplexity_is_compare_contexts(folder, model, ids, text_file, tmp_path, capsys):
    table = tmp_path / "table.csv"
    lengths = ["8", "8", "9"]
    arguments = ["perplexity", "--model", str(folder), "--text", str(text_file), "--segment-lengths", *lengths]
    assert main([*arguments, "--batch-size", "4", "-o", str(table)]) == 0
    sequences = ids(TEXT)[0]
    sequences = sequences[: len(sequences) // 25 * 25].view(-1, 25)
    batches = [batch for batch in sequences.split(4) if len(batch) > 1]
    results = compare_contexts(model, batches, [8, 8, 9])
    rows = [line.split(",") for line in table.read_text().splitlines()][1:]
    assert [row[0] for row in rows] == [result.context for result in results]
    for row, result in zip(rows, results, strict=True):
        assert float(row[1]) == result.positions
        assert float(row[2]) == pytest.approx(result.perplexity, rel=1e-5)
    assert "full context (this model)" in capsys.readouterr().out
    assert [row.context for row in compare_contexts(model, batches, [8, 8, 9], model)][-1] == "full context"


def test_the_segment_length_of_training_is_the_default(folder, model, ids, text_file, tmp_path, capsys):
    """In `compress` and in the three commands that read a text."""
    trained, output, input_ids = tmp_path / "trained", tmp_path / "o.safetensors", ids(TEXT)
    shutil.copytree(folder, trained)
    AutoConfig.from_pretrained(folder, segment_length=8).save_pretrained(trained)
    model = LlamaAutoCompressorModel.from_pretrained(trained).eval()
    expected = model.compress(input_ids, segment_lengths=8)
    torch.testing.assert_close(model.compress(input_ids), expected, rtol=0, atol=0)
    assert main(["summarize", str(text_file), "-o", str(output), "--model", str(trained)]) == 0
    torch.testing.assert_close(load_softprompt(output, model).vectors, expected, rtol=0, atol=1e-5)

    table = [tmp_path / "a.csv", tmp_path / "b.csv"]
    for path, lengths in zip(table, ([], ["--segment-lengths", "8", "8", "8", "8"]), strict=True):
        arguments = ["perplexity", "--text", str(text_file), "-o", str(path), *lengths]
        assert main([*arguments, "--model", str(trained)]) == 0
    assert table[0].read_text() == table[1].read_text()

    printed = []
    for name, lengths in ((trained, []), (folder, ["--segment-length", "8"]), (folder, [])):
        capsys.readouterr()
        assert main(["generate", "--prompt", TEXT[:150], "--model", str(name), *lengths]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] != printed[2]


def test_a_segment_length_must_be_positive():
    with pytest.raises(ValueError, match="`segment_length` must be 1 or more, or None, got 0"):
        LlamaAutoCompressorConfig(segment_length=0)


def test_compare_contexts_by_hand(model, ids):
    batch = ids(TEXT)[0, :50].view(2, 25)
    context, text = batch.split([16, 9], dim=1)
    none, summary, other, full = compare_contexts(model, [batch], [8, 8, 9])
    whole = model(batch).logits[:, 16:-1].log_softmax(-1).gather(-1, text[:, 1:, None]).sum()
    assert full.nll == pytest.approx(-whole.item(), rel=1e-5)
    own = model.compress(context, segment_lengths=8)
    for result, softprompt in ((none, None), (summary, own), (other, own.flip(0))):
        loss = model(text, labels=text, softprompt=softprompt).loss
        assert result.perplexity == pytest.approx(loss.exp().item(), rel=1e-5)
        assert result.tokens == 16
    assert (none.positions, summary.positions, full.positions) == (0, own.shape[1], 16)


BAD_INPUT = {
    "no text file": (["summarize", "{tmp}/none.txt", "-o", "{tmp}/o.safetensors"], "none.txt"),
    "empty text": (["summarize", "{tmp}/empty.txt", "-o", "{tmp}/o.safetensors"], "must hold text"),
    "not UTF-8": (["summarize", "{tmp}/latin.txt", "-o", "{tmp}/o.safetensors"], "must be UTF-8"),
    "no output folder": (["summarize", "{tmp}/text.txt", "-o", "{tmp}/no/o.safetensors"], "there is no folder"),
    "segment length": (
        ["summarize", "{tmp}/text.txt", "-o", "{tmp}/o.safetensors", "--segment-length", "0"],
        "`segment_lengths` must be positive",
    ),
    "output is a folder": (["summarize", "{tmp}/text.txt", "-o", "{tmp}"], "must be a file"),
    "no such device": (["generate", "--prompt", "a", "--device", "toaster"], "--device toaster cannot be used"),
    "no softprompt": (["generate", "--prompt", "a", "--softprompt", "{tmp}/none.safetensors"], "There is no file"),
    "foreign softprompt": (["generate", "--prompt", "a", "--softprompt", "{tmp}/text.txt"], "is damaged"),
    "empty prompt": (["generate", "--prompt", ""], "--prompt must not be empty"),
    "new tokens": (["generate", "--prompt", "a", "--max-new-tokens", "0"], "--max-new-tokens must be 1 or more"),
    "temperature": (["generate", "--prompt", "a", "--temperature", "-1"], "--temperature must be 0 or more"),
    "temperature nan": (["generate", "--prompt", "a", "--temperature", "nan"], "--temperature must be 0 or more"),
    "top-p": (["generate", "--prompt", "a", "--temperature", "1", "--top-p", "0"], "--top-p must be above 0"),
    "top-k": (["generate", "--prompt", "a", "--temperature", "1", "--top-k", "-1"], "--top-k must be 0 or more"),
    "beams": (["generate", "--prompt", "a", "--num-beams", "0"], "--num-beams must be 1 or more, got 0"),
    "short text": (["perplexity", "--segment-lengths", "500", "500", "--text", "{tmp}/text.txt"], "2 sequences"),
    "one segment": (["perplexity", "--segment-lengths", "20"], "two or more segments"),
    "one sequence": (
        ["perplexity", "--segment-lengths", "8", "8", "--max-sequences", "1"],
        "--max-sequences must be 2 or more",
    ),
    "no segments": (["perplexity"], "--segment-lengths must be given"),
    "prompt segment": (["generate", "--prompt", "a", "--segment-length", "0"], "--segment-length must be 1 or more"),
    "batch size": (["perplexity", "--segment-lengths", "8", "8", "--batch-size", "1"], "--batch-size must be 2"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_input(folder, text_file, tmp_path, capsys, arguments, message):
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "latin.txt").write_bytes("Caf\xe9".encode("latin-1"))
    arguments = [argument.format(tmp=tmp_path) for argument in arguments]
    assert main([*arguments, "--model", str(folder)]) == 1
    assert message in one_line(capsys.readouterr())
    assert not (tmp_path / "o.safetensors").exists()


@pytest.mark.parametrize(
    "arguments", [["generate", "--prompt", "caf\udce9"], ["compress", "caf\udce9.txt", "-o", "x"]]
)
def test_arguments_that_are_not_utf8(folder, capsys, arguments):
    assert main([*arguments, "--model", str(folder)]) == 1
    assert "All arguments must be UTF-8, got 'caf\\udce9" in one_line(capsys.readouterr())


def test_a_segment_of_more_than_the_positions(opt_folder, text_file, tmp_path, capsys):
    arguments = ["summarize", str(text_file), "-o", str(tmp_path / "o.safetensors"), "--model", str(opt_folder)]
    assert main([*arguments, "--segment-length", "17"]) == 1
    assert "can hold `max_position_embeddings` = 16" in one_line(capsys.readouterr())
    assert main(arguments) == 0


def test_a_softprompt_of_another_model(folder, opt_folder, text_file, tmp_path, capsys):
    output = str(tmp_path / "o.safetensors")
    main(["summarize", str(text_file), "-o", output, "--model", str(folder)])
    assert main(["generate", "--prompt", "a", "--softprompt", output, "--model", str(opt_folder)]) == 1
    assert "other weights" in one_line(capsys.readouterr())


def test_a_model_without_tokenizer(tmp_path, opt_folder, capsys):
    OPTAutoCompressorModel.from_pretrained(opt_folder).save_pretrained(tmp_path)
    capsys.readouterr()
    assert main(["generate", "--prompt", "a", "--model", str(tmp_path)]) == 1
    assert f"Cannot load the tokenizer of '{tmp_path}'" in one_line(capsys.readouterr())


def test_interruption(folder, text_file, tmp_path, monkeypatch):
    def interrupted(model, *args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(LlamaAutoCompressorModel, "compress", interrupted)
    output = tmp_path / "o.safetensors"
    assert main(["summarize", str(text_file), "-o", str(output), "--model", str(folder)]) == 130
    assert not output.exists()


def test_unreachable_model(capsys):
    assert main(["generate", "--prompt", "a", "--model", "nobody/nothing"]) == 1
    message = one_line(capsys.readouterr())
    assert "nobody/nothing" in message and "smollm2" in message


def test_installed_command_lists_the_sub_commands():
    command = [sys.executable, "-m", "auto_compressor.cli.main", "--help"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert {module.NAME for module in COMMANDS} == set(
        re.findall(r"^  ([a-z-]+)  +\w.*$", output.split("All families:")[1], flags=re.MULTILINE)
    )


def test_version(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"auto-compressor {metadata.version('auto-compressor')}\n"


def test_version_of_what_is_not_installed(capsys, monkeypatch):
    def version(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 2 and "must be installed for --version" in capsys.readouterr().err


def test_train_is_handed_every_argument(monkeypatch):
    """As they are and in order, also those that this command has itself."""
    seen = []
    monkeypatch.setattr("auto_compressor.train.main", lambda argv, prog: seen.append((argv, prog)))
    arguments = "--do_train --version -h tiny --learning_rate -1e-3 --segment_lengths 4 4 --lora=true --help".split()
    assert main(["train", *arguments]) == 0 and main(["train"]) == 0
    assert seen == [(arguments, "auto-compressor train"), ([], "auto-compressor train")]


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        (["--help"], 0, "usage: auto-compressor train [-h]"),
        (["--model_type", "gru_byte", "--help"], 0, "--sequence_length"),
        (["--model_type", "bad"], 2, "auto-compressor train: error: argument --model_type: invalid choice"),
        (["--max_steps", "bad"], 2, "auto-compressor train: error: argument --max_steps"),
    ],
)
def test_train_is_called_by_its_name(arguments, code, message, capsys):
    with pytest.raises(SystemExit) as end:
        main(["train", *arguments])
    assert end.value.code == code
    assert message in "".join(capsys.readouterr())


def test_errors_of_train_are_one_line(tmp_path):
    with pytest.raises(SystemExit, match="^auto-compressor train: error: Nothing to do: give --do_train, .*both.$"):
        main(["train", "--output_dir", str(tmp_path), "--use_cpu"])
