"""`auto-compressor compress`, `decompress` and `info` with language models of tokens."""

import io
import json
import os
import sys

import pytest
import torch
from tiny_tokens import byte_level, make_llama
from train_testing import ROOT

from auto_compressor.cli.main import main
from auto_compressor.files.bundled import BUNDLED_VALIDATION_TEXT
from auto_compressor.lossless.codec import compress_bytes, read_header


DATA = BUNDLED_VALIDATION_TEXT.read_bytes()[:300] + b"\xff\x00<|endoftext|>"
OLDER = ROOT / "tests" / "fixtures" / "one_folder"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    make_llama().save_pretrained(path)
    byte_level().save_pretrained(path)
    return path


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "source"
    path.write_bytes(DATA)
    return path


def error_line(capsys):
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("auto-compressor: error: "), lines
    return lines[0]


def test_there_and_back(folder, source, tmp_path, capsys):
    packed, back, model = tmp_path / "packed", tmp_path / "back", ["--model", str(folder)]
    assert main(["compress", str(source), "-o", str(packed), *model, "--streams", "3"]) == 0
    expected = compress_bytes(make_llama(), DATA, 3, tokenizer=byte_level())
    assert packed.read_bytes() == expected
    assert f"{len(DATA):,} / {len(expected):,}" in capsys.readouterr().out
    assert main(["decompress", str(packed), "-o", str(back), *model]) == 0
    assert back.read_bytes() == DATA
    assert sorted(os.listdir(tmp_path)) == ["back", "packed", "source"]


def test_json(folder, source, tmp_path, capsys):
    packed, model = tmp_path / "packed", ["--model", str(folder), "--json"]
    assert main(["compress", str(source), "-o", str(packed), *model]) == 0
    figures, header = json.loads(capsys.readouterr().out), read_header(packed.read_bytes())
    assert figures["num_bytes"] == len(DATA) and figures["file_bytes"] == packed.stat().st_size
    assert figures["model_bits_per_byte"] == header.bits_per_byte and figures["bytes_per_second"] > 0
    assert main(["decompress", str(packed), "-o", str(tmp_path / "back"), *model]) == 0
    assert json.loads(capsys.readouterr().out)["num_bytes"] == len(DATA)


def test_standard_input_and_output(folder, monkeypatch, capsysbinary):
    """Figures go to standard error."""
    data = DATA
    for command in ("compress", "decompress"):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        assert main([command, "-", "-o", "-", "--model", str(folder), "--json"]) == 0
        found = capsysbinary.readouterr()
        (line,) = [line for line in found.err.splitlines() if line.startswith(b"{")]
        assert json.loads(line)["file"] == "standard output"
        data = found.out
    assert data == DATA


def test_speeds(folder, source, tmp_path, capsys):
    windows = []
    for option in (["--fast"], [], ["--best"]):
        packed = tmp_path / "packed"
        assert main(["compress", str(source), "-o", str(packed), "--model", str(folder), *option]) == 0
        windows.append(read_header(packed.read_bytes()).window)
    assert windows == [512, 1024, 2048]
    with pytest.raises(SystemExit):
        main(["compress", str(source), "-o", "out", "--fast", "--best"])
    assert "not allowed with argument" in capsys.readouterr().err


KINDS = {
    "text.acz": {"version": 1, "model_type": "gru_byte", "coder": "float64"},
    "text.acc": {"kind": "codes of a hierarchical autoencoder", "lossless": True},
    "softprompt.safetensors": {"kind": "softprompt", "num_tokens": "24"},
}


@pytest.mark.parametrize("name", KINDS)
def test_info(name, capsys):
    assert main(["info", str(OLDER / name), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts.items() >= KINDS[name].items() and facts["file_bytes"] == (OLDER / name).stat().st_size
    assert main(["info", str(OLDER / name)]) == 0
    assert facts["kind"] in capsys.readouterr().out


def test_info_of_standard_input(folder, monkeypatch, capsys):
    blob = compress_bytes(make_llama(), b"", tokenizer=byte_level())
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(blob)))
    assert main(["info", "-", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["version"] == 3 and facts["num_bytes"] == 0 and facts["bits_per_byte"] is None


@pytest.mark.parametrize("name", KINDS)
def test_info_of_damaged_files(name, tmp_path, capsys):
    blob = (OLDER / name).read_bytes()
    for damaged in (blob[:-1], blob[:30], blob[:-3] + b"abc", b"", b"abc", bytes(100)):
        (tmp_path / "damaged").write_bytes(damaged)
        assert main(["info", str(tmp_path / "damaged")]) == 1
        assert "damaged" in error_line(capsys)


BAD_INPUT = {
    "no such model": (["--model", "{tmp}/none"], "none"),
    "another kind": (["--model", "{model}", "--lossless"], "--lossless must not be given with"),
    "window": (["--model", "{model}", "--window", "1"], "`window` must be an integer from 2 to 2048"),
}


@pytest.mark.parametrize(("options", "message"), BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_input(folder, source, tmp_path, capsys, options, message):
    options = [option.format(tmp=tmp_path, model=folder) for option in options]
    assert main(["compress", str(source), "-o", str(tmp_path / "out"), *options]) == 1
    assert message in error_line(capsys) and not (tmp_path / "out").exists()


def test_another_tokenizer_is_refused(folder, source, tmp_path, capsys):
    other = tmp_path / "other"
    torch.manual_seed(0)
    make_llama().save_pretrained(other)
    tokenizer = byte_level()
    tokenizer.add_tokens(["whatever"])
    tokenizer.save_pretrained(other)
    assert main(["compress", str(source), "-o", str(tmp_path / "packed"), "--model", str(folder)]) == 0
    capsys.readouterr()
    assert main(["decompress", str(tmp_path / "packed"), "-o", str(tmp_path / "back"), "--model", str(other)]) == 1
    assert "was made with the vocabulary" in error_line(capsys)
