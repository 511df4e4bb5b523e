"""Bytes to a file and back by whole numbers: from Python, as a command, and with the model that comes along."""

import functools
import hashlib
import lzma
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from damage_testing import damaged_parts, outcomes
from hypothesis import given, settings
from hypothesis import strategies as st
from test_integer_gru import TEXT, gru

from auto_compressor.byte_lm.bundled_model import load_bundled_byte_model
from auto_compressor.byte_lm.integer_codec import SPEEDS, compress_bytes, decompress_bytes, encode
from auto_compressor.byte_lm.integer_gru import IntegerGRU
from auto_compressor.byte_lm.integer_matches import Matches
from auto_compressor.cli.main import main
from auto_compressor.files.coded_file import PREFIX
from auto_compressor.lossless import codec
from auto_compressor.lossless.header import FIELDS, read_header


ROOT = Path(__file__).parents[2]
HEADER = FIELDS.size
OVERHEAD = PREFIX.size + HEADER + 16 + 8  # prefix, header with the name of its model type, range coder
DATA = {
    "nothing": b"",
    "one byte": b"\x00",
    "every byte": bytes(range(256)),
    "one value": b"\xff" * 1000,
    "text": TEXT[:2000],
    "repeats": TEXT[:300] * 9,
}


@pytest.fixture(scope="module")
def model():
    return gru(hidden_size=16, num_blocks=1)


@pytest.fixture(scope="module")
def bundled():
    return load_bundled_byte_model()


@pytest.mark.parametrize("num_streams", [None, 1, 3, 700])
@pytest.mark.parametrize("name", DATA)
def test_every_bit_comes_back(model, name, num_streams):
    blob = compress_bytes(model, DATA[name], num_streams)
    assert decompress_bytes(model, blob) == DATA[name]
    header = read_header(blob)
    assert header.num_bytes == len(DATA[name]) and header.num_ties == 0


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200), st.integers(1, 9))
def test_any_bytes_come_back(model, data, num_streams):
    assert decompress_bytes(model, compress_bytes(model, data, num_streams)) == data


def test_what_gets_no_smaller_is_stored(bundled):
    data = np.random.default_rng(0).bytes(2001)
    blob = compress_bytes(bundled, data)
    assert read_header(blob).coder == "stored" and len(blob) <= len(data) + OVERHEAD
    assert decompress_bytes(bundled, blob) == data


def test_the_file_is_as_long_as_its_bits(bundled):
    blob = compress_bytes(bundled, TEXT[:4096])
    bits = read_header(blob).ideal_bits
    assert bits < 8 * (len(blob) - PREFIX.size - HEADER) < 1.001 * bits + 8 * 32


@pytest.mark.parametrize("num_streams, expected", [(1, "208a953b1c90fbfa"), (16, "c10ecf052d614f8b")])
def test_the_words_of_a_file_stay_the_same(bundled, num_streams, expected):
    """Files of older versions decode as long as these are the words that the bundled model encodes a text to."""
    words, _ = encode(IntegerGRU(bundled), TEXT[:2048], num_streams, iter)
    assert hashlib.sha256(words.tobytes()).hexdigest()[:16] == expected


def test_repeats_cost_little(bundled):
    once, twice = (len(compress_bytes(bundled, TEXT[:1000] * times, num_streams=1)) for times in (1, 2))
    assert twice - once < 0.15 * (once - OVERHEAD)


def test_it_is_smaller_than_the_float_model(bundled):
    data = TEXT[:4096]
    assert len(compress_bytes(bundled, data, num_streams=4)) < len(codec.compress_bytes(bundled, data, num_streams=4))


def test_another_number_of_threads_writes_and_reads_the_same(bundled, tmp_path):
    (tmp_path / "text").write_bytes(TEXT[:1500])
    program = (
        "import sys, torch; torch.set_num_threads(int(sys.argv[1]));"
        "from auto_compressor.cli.main import main; sys.exit(main(sys.argv[2:]))"
    )

    def run(threads: int, *arguments: str):
        command = [sys.executable, "-c", program, str(threads), *arguments]
        subprocess.run(
            command,
            check=True,
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "passive"},
            capture_output=True,
        )

    for threads in (1, 2):
        run(threads, "compress", str(tmp_path / "text"), "-o", str(tmp_path / f"small{threads}"), "--streams", "64")
    assert (tmp_path / "small1").read_bytes() == (tmp_path / "small2").read_bytes()
    run(2, "decompress", str(tmp_path / "small1"), "-o", str(tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == TEXT[:1500]


def test_damaged_files_are_refused(model):
    data = TEXT[:60]
    files = damaged_parts(compress_bytes(model, data, num_streams=6), 60)
    refused, _, slowest = outcomes(functools.partial(decompress_bytes, model), files, data)
    assert refused > 30 and slowest < 60


@pytest.mark.parametrize("num_streams", [0, 2**16, 1.5, "2"])
def test_streams_out_of_range_are_refused(model, num_streams):
    with pytest.raises(ValueError, match="`num_streams` must be an integer from 1 to 65535, got"):
        compress_bytes(model, b"text", num_streams)


def test_what_is_no_bytes_is_refused(model):
    with pytest.raises(ValueError, match="`data` must be bytes, got str"):
        compress_bytes(model, "text")


def test_a_file_of_another_model_or_codec_is_refused(bundled):
    blob = compress_bytes(bundled, TEXT[:500])
    with pytest.raises(ValueError, match="The file was made by a gru_byte with the weights"):
        decompress_bytes(gru(hidden_size=8), blob)
    with pytest.raises(ValueError, match=r"note was made by the codec of gru_byte \(integers\): use that one"):
        codec.decompress_bytes(bundled, blob, name="note")


def test_a_window_and_older_files_are_in_float64(model):
    for blob in (compress_bytes(model, TEXT[:300], window=20), codec.compress_bytes(model, TEXT[:300])):
        assert read_header(blob).coder == "float64"
        assert decompress_bytes(model, blob) == TEXT[:300]


def test_streams_by_the_size_of_a_file(bundled):
    found = {speed: read_header(compress_bytes(bundled, TEXT[:4096], speed=speed)).num_streams for speed in SPEEDS}
    assert found == {"fast": 16, "normal": 8, "best": 1}
    with pytest.raises(ValueError, match="`speed` must be one of fast, normal, best, got 'slow'"):
        compress_bytes(bundled, TEXT, speed="slow")


# Matches


def test_matches_expect_what_followed_before():
    """A loop over the bytes of one stream, which looks for the same last bytes."""
    data = np.frombuffer(b"abcdefgh, abcdefgh, abcdefgh.", np.uint8)
    matches, expected = Matches(1, len(data)), []
    for byte in data:
        weights = np.ones((1, 256))
        matches.adjust(weights)
        expected.append(int(matches.guessed[0]) if len(matches.guessed) else None)
        matches.read_bytes(np.array([byte]))
    right = [guess == byte for guess, byte in zip(expected, data, strict=True)]
    # From the sixth byte of the second copy on, up to the end of the third one.
    assert not any(right[:14]) and all(right[16:28]) and not right[28]


def test_matches_reach_into_other_streams():
    data = np.tile(np.frombuffer(TEXT[:64], np.uint8), (2, 1))
    data[1] = np.roll(data[1], 20)  # the second stream reads later what the first one has read
    matches, right = Matches(2, 64), 0
    for column in data.T:
        matches.adjust(np.ones((2, 256)))
        right += int((matches.guessed == column[matches.matched])[matches.matched == 1].sum())
        matches.read_bytes(column)
    assert right > 30


# The command


def test_a_command_without_a_model(tmp_path, capsys):
    source, small, back = (tmp_path / name for name in ("text", "small", "back"))
    source.write_bytes(TEXT[:20_000])
    assert main(["compress", str(source), "-o", str(small)]) == 0
    assert "bits per byte of the file" in capsys.readouterr().out
    assert main(["decompress", str(small), "-o", str(back)]) == 0
    assert back.read_bytes() == TEXT[:20_000]
    assert small.stat().st_size < len(lzma.compress(TEXT[:20_000], preset=9 | lzma.PRESET_EXTREME))


def test_older_files_still_decode(model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "small").write_bytes(codec.compress_bytes(model, TEXT[:300]))
    command = ["decompress", str(tmp_path / "small"), "-o", str(tmp_path / "back"), "--model", str(tmp_path / "model")]
    assert main(command) == 0
    assert (tmp_path / "back").read_bytes() == TEXT[:300]


def test_the_bundled_model_is_rounded_to_8_bits(bundled):
    for name, weight in bundled.named_parameters():
        if weight.ndim == 2:
            largest = weight.abs().amax(dim=1, keepdim=True) * 0.999  # what was just below a power of two may be one
            exponents = 7 - torch.frexp(largest).exponent
            whole = torch.ldexp(weight, exponents)
            assert torch.equal(whole, whole.round()), name
