"""Bytes to a file of fewer bits and back, by a language model and a range coder, from Python and as a command."""

import copy
import dataclasses
import functools
import io
import os
import sys

import numpy as np
import pytest
import torch
from damage_testing import damaged_parts, outcomes
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from auto_compressor import AdaptiveByteConfig, AdaptiveByteForCausalLM, GRUByteConfig, GRUByteForCausalLM
from auto_compressor.byte_lm.codec import ByteLMHeader, compress_bytes, decompress_bytes, read_header
from auto_compressor.cli.main import main
from auto_compressor.files.bundled import BUNDLED_TRAIN_TEXT, BUNDLED_VALIDATION_TEXT
from auto_compressor.files.coded_file import PREFIX, write_parts
from auto_compressor.files.identity import weights_hash
from auto_compressor.lossless import codec, range_coding
from auto_compressor.lossless.codec import BYTE_SPEEDS, rows_at
from auto_compressor.lossless.header import FIELDS, MAGIC, MAX_STREAMS, VERSIONS
from auto_compressor.lossless.range_coding import NUM_COUNTS, find_ties, round_to_counts
from auto_compressor.lossless.reading import distributions
from auto_compressor.lossless.vocabulary import BYTES


TEXT = BUNDLED_VALIDATION_TEXT.read_bytes()
OVERHEAD = PREFIX.size + FIELDS.size + 16 + 8  # prefix, header with the name of its model type, range coder
SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def make_llama(seed=0, vocab_size=257, **kwargs):
    torch.manual_seed(seed)
    config = LlamaConfig(vocab_size=vocab_size, initializer_range=0.3, **(SIZES | kwargs))
    return LlamaForCausalLM(config).eval()


def make_adaptive(seed=0, hidden_size=16, **kwargs):
    """With borders at every few bytes, on every level."""
    torch.manual_seed(seed)
    thresholds = {"byte_entropy_threshold": 12.0, "meta_uncertainty_threshold": 1.5}
    return AdaptiveByteForCausalLM(AdaptiveByteConfig(hidden_size=hidden_size, **thresholds, **kwargs)).eval()


def make_gru(hidden_size=8):
    torch.manual_seed(0)
    return GRUByteForCausalLM(GRUByteConfig(hidden_size=hidden_size, num_levels=1, num_blocks=1)).eval()


MODELS = {
    "adaptive": make_adaptive,
    "gru": make_gru,
    "llama": make_llama,
    "llama of 8 positions": functools.partial(make_llama, max_position_embeddings=8),
    "llama of bytes alone": functools.partial(make_llama, vocab_size=256),
}
STRUCTURED = {
    "nothing": b"",
    "one byte": b"\x00",
    "every byte": bytes(range(256)),
    "one value": b"\xff" * 100,
    "no UTF-8": b"\xc3\x28\xff\xfe\x80 caf\xe9",
    "text": TEXT[:300],
}


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    return MODELS[request.param]()


@pytest.fixture(scope="module")
def tiny():
    return make_llama()


@pytest.fixture(scope="module")
def trained():
    """A model with borders that has learned a little English."""
    model = make_adaptive(hidden_size=32, window_end_target=False, add_encoder_states=True).train()
    rows = torch.tensor(list(BUNDLED_TRAIN_TEXT.read_bytes()[: 64 * 1600])).view(-1, 64)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for batch in rows.split(16):
        optimizer.zero_grad()
        model(batch, labels=batch).loss.backward()
        optimizer.step()
    return model.eval()


@pytest.fixture
def one_copy(monkeypatch):
    """Makes the float64 copy of a model and its hash once, which take most of the time of a short text."""
    for name in ("exact_copy", "weights_hash"):
        monkeypatch.setattr(codec, name, functools.cache(getattr(codec, name)))
    monkeypatch.setattr(codec, "check_weights", lambda *args: None)


@pytest.mark.parametrize("num_streams", [None, 3])
@pytest.mark.parametrize("data", STRUCTURED.values(), ids=STRUCTURED)
def test_everything_comes_back(model, data, num_streams):
    assert decompress_bytes(model, compress_bytes(model, data, num_streams)) == data


@pytest.mark.parametrize("name, examples", [("gru", 800), ("adaptive", 200), ("llama of 8 positions", 100)])
def test_more_than_1000_random_byte_strings(name, examples, one_copy):
    model = MODELS[name]()
    parts = st.lists(st.sampled_from([b"In the beginning", b"\x00", b"\xff\xfe", b"earth"]), max_size=3)
    strings = st.one_of(st.binary(max_size=40), parts.map(b"".join), st.text(max_size=12).map(str.encode))

    @settings(max_examples=examples, deadline=None, database=None)
    @given(strings, st.integers(1, 20), st.integers(2, 8))
    def restored(data, num_streams, window):
        assert decompress_bytes(model, compress_bytes(model, data, num_streams, window)) == data

    restored()


def test_100_kilobytes_of_one_sentence(trained):
    data = TEXT[:100] * 1000
    blob = compress_bytes(trained, data, num_streams=500, window=32)
    assert decompress_bytes(trained, blob) == data
    assert len(blob) < len(data) / 2


def test_the_size_proves_the_bits(trained):
    blob = compress_bytes(trained, TEXT[:12_000], num_streams=24)
    header = read_header(blob)
    assert 1 < header.bits_per_byte < 5
    assert header.ideal_bits < 8 * len(blob) < 1.005 * header.ideal_bits + 8 * OVERHEAD
    assert header.bits_per_byte == header.ideal_bits / 12_000


def test_ideal_bits_are_the_cross_entropy_of_the_model(trained, monkeypatch):
    """Without matches. Of the rows, from their second byte on, among bytes alone; the first costs 8 bits."""
    monkeypatch.setattr(codec, "LARGEST_SHARE", 0.0)
    rows = torch.tensor(list(TEXT[:300])).view(3, 100)
    with torch.no_grad():
        logits = trained(rows).logits.double()
    target = rows[:, 1:, None]
    nats = -logits[:, :-1, :256].log_softmax(-1).gather(2, target).sum()
    with_end = -logits[:, :-1].log_softmax(-1).gather(2, target).sum()
    bits = read_header(compress_bytes(trained, TEXT[:300], num_streams=3)).ideal_bits
    assert bits == pytest.approx(float(nats) / torch.tensor(2.0).log().item() + 3 * 8, rel=1e-5)
    assert nats < with_end


def test_padding_of_short_streams_is_not_coded(tiny):
    """10 bytes in 4 streams are 3, 3, 3 and 1."""
    assert [rows_at(step, 3, 10) for step in range(3)] == [4, 3, 3]
    assert [rows_at(step, 2, 5) for step in range(2)] == [3, 2]
    bits = [read_header(compress_bytes(tiny, b"abcdefghij"[:length], num_streams=4)).ideal_bits for length in (9, 10)]
    assert bits[1] == pytest.approx(bits[0] + 8)


def predictions(model, streams, window, version=2):
    return distributions(copy.deepcopy(model).double(), BYTES, streams, window, version)


@pytest.mark.parametrize("version", [1, 2])
def test_predictions_read_what_is_decoded_meanwhile(tiny, version):
    """Nothing of a column is used before it is there, and then all of it is."""
    whole = torch.randint(256, (2, 22), dtype=torch.uint8)
    growing = torch.full_like(whole, 7)
    pairs = zip(predictions(tiny, growing, 8, version), predictions(tiny, whole, 8, version), strict=True)
    for step, (probs, expected) in enumerate(pairs):
        assert torch.equal(probs, expected)
        growing[:, step] = whole[:, step]


def test_a_window_of_version_1_forgets(tiny):
    """The first bytes are seen until the window is full, and then the last half of it."""
    streams = torch.randint(256, (2, 20), dtype=torch.uint8)
    other = streams.clone()
    other[:, 0] += 1
    pairs = list(zip(predictions(tiny, streams, 8, 1), predictions(tiny, other, 8, 1), strict=True))
    assert [torch.equal(*pair) for pair in pairs] == [True] + [False] * 8 + [True] * 11
    with torch.no_grad():
        logits = tiny(streams[:, 5:9].long()).logits[:, -1, :256]
    torch.testing.assert_close(pairs[9][0], logits.double().softmax(-1), rtol=1e-4, atol=1e-7)


def test_without_a_window_everything_is_seen(tiny):
    streams = torch.randint(256, (1, 60), dtype=torch.uint8)
    other = streams.clone()
    other[:, 0] += 1
    *_, last = zip(predictions(tiny, streams, 0), predictions(tiny, other, 0), strict=True)
    assert not torch.equal(*last)


def test_the_window_of_a_model_is_its_positions(tiny):
    positions = {"tiny": tiny, "eight": MODELS["llama of 8 positions"]()}
    windows = {name: read_header(compress_bytes(model, b"abc")).window for name, model in positions.items()}
    assert windows == {"tiny": 2048, "eight": 8}
    assert read_header(compress_bytes(tiny, b"abc", window=5)).window == 5


def default_streams(num_bytes, num_streams=None):
    return codec.resolve_num_streams(num_streams, num_bytes, BYTE_SPEEDS["normal"])


def test_streams_by_default():
    """One per KiB: an eighth of the steps for 8 KiB."""
    lengths = [0, 1, 1024, 2047, 2048, 8192, 65_535, 65_536, 10**9]
    assert [default_streams(length) for length in lengths] == [1, 1, 1, 1, 2, 8, 63, 64, 64]
    assert default_streams(10**9, 1) == 1 and default_streams(4, MAX_STREAMS) == MAX_STREAMS


@torch.no_grad()
def test_streams_by_default_cost_little(trained):
    """Bits of 8 KiB of text in one stream and in as many as there are by default; decoding both takes a minute."""
    ids, bits = torch.tensor(list(TEXT[:8192])), []
    for num_streams in (1, default_streams(len(ids))):
        rows = ids.view(num_streams, -1)
        logits = trained(rows).logits[:, :-1, :256].transpose(1, 2)  # (streams, 256, steps - 1)
        nats = torch.nn.functional.cross_entropy(logits, rows[:, 1:], reduction="sum")
        bits.append(8 * num_streams + float(nats) / np.log(2))
    assert bits[1] < 1.02 * bits[0]


def test_any_size_in_any_number_of_streams(one_copy, monkeypatch):
    """Also files in one stream, as those below 16 KiB once were, whatever there are by default."""
    monkeypatch.setitem(BYTE_SPEEDS, "normal", codec.Speed(8, 64, 2048))
    model = make_gru()
    for length in (0, 1, 7, 8, 15, 16, 17, 40):
        for num_streams in (None, 1, 2, 3, 8, 41):
            blob = compress_bytes(model, TEXT[:length], num_streams)
            assert decompress_bytes(model, blob) == TEXT[:length]
            assert read_header(blob).num_streams == (num_streams or max(1, length // 8))


def test_other_rounding_makes_no_difference(trained, monkeypatch):
    """Noise a hundred times that of float64, on one side only."""
    blob = compress_bytes(trained, TEXT[:3000], num_streams=100)

    def noisy(*args):
        for probs in distributions(*args):
            yield probs * (1 + 1e-12 * torch.randn_like(probs))

    monkeypatch.setattr(codec, "distributions", noisy)
    assert decompress_bytes(trained, blob) == TEXT[:3000]


@pytest.mark.parametrize("parts", [0.5, 7.5, NUM_COUNTS / 2 + 0.5])
@pytest.mark.parametrize("offset", [0, 4e-12, -4e-12])
def test_ties_are_seen(parts, offset):
    probs = torch.full((3, 256), 1 / 256, dtype=torch.double)
    probs[1, 5] = parts / NUM_COUNTS * (1 + offset)
    assert find_ties(probs) == [1]
    counts = round_to_counts(probs, [1])
    assert counts[1].tolist() == [1] * 256 and counts[0].tolist() == [NUM_COUNTS / 256] * 256


@pytest.mark.parametrize("offset", [1e-9, -1e-9])
def test_what_is_no_tie_is_none(offset):
    probs = torch.full((1, 256), 1 / 256, dtype=torch.double)
    probs[0, 5] = 7.5 / NUM_COUNTS * (1 + offset)
    assert find_ties(probs) == []
    assert round_to_counts(probs, [])[0, 5] == (8 if offset > 0 else 7)


def test_ties_are_coded_too(trained, monkeypatch):
    """A wider margin makes a tie of one byte in four; they come back, and cost 8 bits each."""
    few = compress_bytes(trained, TEXT[:1000], num_streams=10)
    monkeypatch.setattr(range_coding, "TIE_MARGIN", 2e-7)
    blob = compress_bytes(trained, TEXT[:1000], num_streams=10)
    monkeypatch.undo()
    assert read_header(few).num_ties == 0 and 10 < read_header(blob).num_ties < 500
    assert len(blob) - len(few) > 4 * read_header(blob).num_ties
    assert decompress_bytes(trained, blob) == TEXT[:1000]


def test_the_number_of_threads_makes_no_difference(trained):
    blobs = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        blobs.append(compress_bytes(trained, TEXT[:500], num_streams=100))
    assert decompress_bytes(trained, blobs[0]) == TEXT[:500]
    torch.set_num_threads(1)
    assert decompress_bytes(trained, blobs[1]) == TEXT[:500]


def test_the_model_is_left_as_it_is(tiny):
    model = copy.deepcopy(tiny).bfloat16()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert decompress_bytes(model, compress_bytes(model, TEXT[:50])) == TEXT[:50]
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == torch.bfloat16 and torch.equal(tensor, before[name])


def test_header(tiny):
    header = read_header(compress_bytes(tiny, TEXT[:1000], num_streams=3, window=10))
    assert header.model_type == "llama" and header.model_hash == weights_hash(tiny)[:16]
    assert (header.num_bytes, header.num_streams, header.num_steps, header.window) == (1000, 3, 334, 10)
    assert ByteLMHeader.unpack(header.pack()) == header
    assert str(read_header(compress_bytes(tiny, b"")).bits_per_byte) == "nan"


def test_other_weights_are_refused(tiny):
    blob = compress_bytes(tiny, b"abc")
    model = copy.deepcopy(tiny)
    with torch.no_grad():
        model.lm_head.weight[-1, -1] += 1e-3
    with pytest.raises(ValueError, match="The file was made by a llama with the weights"):
        decompress_bytes(model, blob)


def test_another_config_with_these_weights_is_refused(tiny):
    blob = compress_bytes(tiny, TEXT[:20])
    model = copy.deepcopy(tiny)
    model.model.norm.variance_epsilon = 1.0
    with pytest.raises(ValueError, match="The file decodes to other bytes than its original"):
        decompress_bytes(model, blob)


def test_words_that_no_predictions_lead_to_are_refused(tiny):
    """Such as decoding meets behind a byte that was predicted otherwise; constriction fails on them."""
    header = read_header(compress_bytes(tiny, TEXT[:100]))
    blob = write_parts(MAGIC, VERSIONS[-1], header.pack(), b"\xff" * 40)
    with pytest.raises(ValueError, match="The file decodes to other bytes than its original"):
        decompress_bytes(tiny, blob)


def test_truncation(tiny):
    blob = compress_bytes(tiny, TEXT[:100])
    for length in range(len(blob)):
        with pytest.raises(
            ValueError, match="The file (is truncated|must be a file that `auto-compressor compress` wrote)"
        ):
            decompress_bytes(tiny, blob[:length])
    with pytest.raises(ValueError, match="The file is damaged"):
        decompress_bytes(tiny, blob + b"\n")


def test_a_flipped_byte(tiny, one_copy):
    blob = compress_bytes(tiny, TEXT[:50])
    messages = "The file (is truncated|is damaged|must have the version|must be a file that|was written by|decodes)"
    for position in range(len(blob)):
        for change in (1, 128, 255):
            damaged = bytearray(blob)
            damaged[position] ^= change
            with pytest.raises(ValueError, match=messages):
                decompress_bytes(tiny, damaged)


@pytest.mark.parametrize("name", ["tiny", "trained"])
def test_damage_with_a_right_checksum(request, name, one_copy):
    """Is refused, or changes nothing that matters; it takes no longer than a good file."""
    model = request.getfixturevalue(name)
    files = damaged_parts(compress_bytes(model, TEXT[:60], num_streams=6), 60)
    refused, _, slowest = outcomes(functools.partial(decompress_bytes, model), files, TEXT[:60])
    assert refused > 30 and slowest < 5


EDITS = {
    "bytes": ({"num_bytes": 2**63}, "`num_bytes` in its header must be 100"),
    "symbols": ({"num_symbols": 2**63}, "`num_symbols` in its header must be"),
    "gigabytes": ({"num_symbols": 2**31}, "`num_symbols` in its header must be"),
    "more bytes": ({"num_symbols": 2_000_000}, "decodes to other bytes than its original"),
    "fewer bytes": ({"num_symbols": 10}, "decodes to other bytes than its original"),
    "no streams": ({"num_streams": 0}, "`num_streams` in its header must be from 1 to 65535, got 0"),
    "streams": ({"num_streams": 2**31}, "`num_streams` in its header must be from 1 to 65535"),
    "many streams": ({"num_streams": 65535, "num_symbols": 2_000_000}, "decodes to other bytes than its original"),
    "window": ({"window": 1}, "`window` in its header must be 0, or 2 or more, got 1"),
    "no window": ({"window": 0}, "`window` in its header must be from 2 to 2048"),
    "ties": ({"num_ties": 2**32 - 1}, "`num_ties` in its header must be"),
    "a tie": ({"num_ties": 1}, "its ties must be places in order"),
    "infinite": ({"ideal_bits": float("inf")}, "`ideal_bits` in its header must be 0 or more, and finite"),
    "type": ({"model_type": "a\nb"}, "its model type must be a name"),
    "hash": ({"sha256": "0" * 64}, "decodes to other bytes than its original"),
}


@pytest.mark.parametrize(("changes", "message"), EDITS.values(), ids=EDITS)
def test_a_header_that_does_not_fit(tiny, changes, message):
    blob = compress_bytes(tiny, TEXT[:100], num_streams=10)
    header, body = dataclasses.replace(read_header(blob), **changes), blob[PREFIX.size :]
    body = body[PREFIX.unpack_from(blob)[2] :]
    with pytest.raises(ValueError, match=f"^a file (is damaged: )?{message}"):
        decompress_bytes(tiny, write_parts(MAGIC, VERSIONS[-1], header.pack(), body), name="a file")


def test_streams_without_bytes_take_no_memory(tiny, monkeypatch):
    blob = compress_bytes(tiny, b"king", num_streams=MAX_STREAMS)
    rows = []
    monkeypatch.setattr(
        codec,
        "distributions",
        lambda *args: rows.append(len(args[2])) or distributions(*args),
    )
    assert decompress_bytes(tiny, blob) == b"king" and rows == [4]


def test_any_order_in_memory_is_coded_the_same():
    """A transposed table, which constriction would read row by row as if it were none."""
    probs = torch.rand(256, 3, dtype=torch.double, generator=torch.Generator().manual_seed(0)).T
    probs = probs / probs.sum(dim=1, keepdim=True)
    counts = round_to_counts(probs, [])
    assert not probs.is_contiguous() and counts.flags.c_contiguous
    assert np.array_equal(counts, round_to_counts(probs.contiguous(), []))


def test_a_file_of_codes_is_refused(tiny):
    with pytest.raises(
        ValueError, match="The file was written by `auto-compressor encode`: use `auto-compressor decode`"
    ):
        decompress_bytes(tiny, b"\x89ACZ\r\n\x1a\n" + bytes(100))


def nan_model():
    model = make_llama()
    with torch.no_grad():
        model.lm_head.weight[0] = torch.nan
    return model


BAD_ARGUMENTS = {
    "text": (compress_bytes, {"data": "abc"}, "`data` must be bytes, got str"),
    "text to restore": (decompress_bytes, {"blob": "abc"}, "`blob` must be bytes, got str"),
    "no streams": (compress_bytes, {"num_streams": 0}, "`num_streams` must be an integer from 1 to 65535, got 0"),
    "half a stream": (compress_bytes, {"num_streams": 0.5}, "`num_streams` must be an integer from 1"),
    "short window": (compress_bytes, {"window": 1}, "`window` must be an integer from 2 to 2048, .* got 1"),
    "long window": (compress_bytes, {"window": 2049}, "`window` must be an integer from 2 to 2048, .* got 2049"),
    "a module": (
        compress_bytes,
        {"model": torch.nn.Linear(1, 1)},
        "`model` must be a causal language model, got",
    ),
    "words": (compress_bytes, {"model": make_llama(vocab_size=512)}, "must be from 256 to 511, it is 512"),
    "letters": (decompress_bytes, {"model": make_llama(vocab_size=26)}, "must be from 256 to 511, it is 26"),
    "training": (compress_bytes, {"model": make_llama().train()}, "`model` must be in evaluation mode"),
    "borders that look ahead": (
        compress_bytes,
        {"model": make_adaptive(border_mode="teacher_forced")},
        "`border_mode` teacher_forced works without `cache`",
    ),
    "NaN": (compress_bytes, {"model": nan_model()}, "`model` must predict with numbers, it gives NaN after 1 symbols"),
}


@pytest.mark.parametrize(("function", "arguments", "message"), BAD_ARGUMENTS.values(), ids=BAD_ARGUMENTS)
def test_bad_arguments(tiny, function, arguments, message):
    default = {"data": b"abc"} if function is compress_bytes else {"blob": b""}
    with pytest.raises(ValueError, match=message):
        function(**({"model": tiny} | default | arguments))


def test_progress(tiny):
    seen = []

    def track(steps):
        seen.append(len(steps))
        return iter(steps)

    decompress_bytes(tiny, compress_bytes(tiny, TEXT[:100], num_streams=3, progress=track), progress=track)
    assert seen == [34, 34]


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    tiny.save_pretrained(path)
    return path


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(TEXT[:100] + b"\xff\x00")
    return path


def error_line(capsys):
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("auto-compressor: error: "), lines
    return lines[0]


def test_compress_and_decompress_files(tiny, folder, text_file, tmp_path, capsys):
    packed, restored = tmp_path / "text.acz", tmp_path / "restored.txt"
    model = ["--model", str(folder)]
    options = ["--streams", "2", "--window", "30"]
    assert main(["compress", str(text_file), "-o", str(packed), *options, *model]) == 0
    data = text_file.read_bytes()
    assert packed.read_bytes() == compress_bytes(tiny, data, num_streams=2, window=30)
    table = capsys.readouterr().out
    assert f"{len(data):,} / {packed.stat().st_size:,}" in table and "2 of 51 symbols" in table
    assert f"{8 * packed.stat().st_size / len(data):.4f}" in table
    assert f"{read_header(packed.read_bytes()).bits_per_byte:.4f}" in table
    assert main(["decompress", str(packed), "-o", str(restored), *model]) == 0
    assert restored.read_bytes() == data
    assert not list(tmp_path.glob("*.part"))


def test_a_file_that_grows_says_so(folder, text_file, tmp_path, capsys):
    assert main(["compress", str(text_file), "-o", str(tmp_path / "o"), "--model", str(folder)]) == 0
    assert f"The file grew, from 102 to {(tmp_path / 'o').stat().st_size} bytes" in capsys.readouterr().out


def test_standard_input_and_output(folder, monkeypatch, capsysbinary):
    def piped(command, data):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        assert main([command, "-", "-o", "-", "--model", str(folder)]) == 0
        return capsysbinary.readouterr()

    for data in (TEXT[:100], b""):
        packed = piped("compress", data)
        assert b"bits per byte" in packed.err
        assert piped("decompress", packed.out).out == data


def fail(error):
    def failing(*args, **kwargs):
        raise error

    return failing


FAILURES = {
    "killed while predicting": (LlamaForCausalLM, "forward", KeyboardInterrupt(), 130),
    "killed while writing": (os, "fsync", KeyboardInterrupt(), 130),
    "killed before it takes its name": (os, "replace", KeyboardInterrupt(), 130),
    "full disk": (os, "fsync", OSError(28, "No space left on device"), 1),
}


@pytest.mark.parametrize("command", ["compress", "decompress"])
@pytest.mark.parametrize("there", [True, False], ids=["old file", "no old file"])
@pytest.mark.parametrize(("target", "name", "error", "code"), FAILURES.values(), ids=FAILURES)
def test_a_failed_run_leaves_no_trace(
    tiny, folder, text_file, tmp_path, monkeypatch, command, there, target, name, error, code
):
    source, output = text_file, tmp_path / "output"
    if command == "decompress":
        source = tmp_path / "text.acz"
        source.write_bytes(compress_bytes(tiny, b"abc"))
    if there:
        output.write_bytes(b"old")
    before = sorted(os.listdir(tmp_path))
    monkeypatch.setattr(target, name, fail(error))
    assert main([command, str(source), "-o", str(output), "--model", str(folder)]) == code
    assert sorted(os.listdir(tmp_path)) == before
    assert not there or output.read_bytes() == b"old"


BAD_INPUT = {
    "no file": (["compress", "{tmp}/none"], "No such file"),
    "over the input": (["compress", "{tmp}/text.txt", "-o", "{tmp}/text.txt"], "must be another file than the one"),
    "no output folder": (["compress", "{tmp}/text.txt", "-o", "{tmp}/no/o"], "there is no folder"),
    "streams": (["compress", "{tmp}/text.txt", "--streams", "0"], "`num_streams` must be an integer from 1 to 65535"),
    "their old name": (
        ["compress", "{tmp}/text.txt", "--num-streams", "0"],
        "`num_streams` must be an integer from 1",
    ),
    "window": (["compress", "{tmp}/text.txt", "--window", "1"], "`window` must be an integer from 2"),
    "no such device": (["compress", "{tmp}/text.txt", "--device", "toaster"], "--device toaster cannot be used"),
    "not compressed": (["decompress", "{tmp}/text.txt"], "must be a file that `auto-compressor compress` wrote"),
    "no model": (["compress", "{tmp}/text.txt", "--model", "{tmp}/none"], "Cannot load the model"),
    "no language model": (["compress", "{tmp}/text.txt", "--model", "{tmp}/clip"], "must be a causal language model"),
    "words": (["compress", "{tmp}/text.txt", "--model", "{tmp}/words"], "Cannot load the tokenizer of"),
    "missing weights": (["compress", "{tmp}/text.txt", "--model", "{tmp}/missing"], "it lacks lm_head.weight"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_input(tiny, folder, text_file, tmp_path, capsys, arguments, message):
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "config.json").write_text('{"model_type": "clip"}')
    make_llama(vocab_size=600).save_pretrained(tmp_path / "words")
    kept = {name: tensor for name, tensor in tiny.state_dict().items() if not name.startswith("lm_head")}
    tiny.save_pretrained(tmp_path / "missing", state_dict=kept)
    before, data = sorted(os.listdir(tmp_path)), text_file.read_bytes()
    arguments = [argument.format(tmp=tmp_path) for argument in arguments]
    for option, value in (("-o", str(tmp_path / "o")), ("--model", str(folder))):
        arguments += [] if option in arguments else [option, value]
    capsys.readouterr()
    assert main(arguments) == 1
    assert message in error_line(capsys)
    assert sorted(os.listdir(tmp_path)) == before and text_file.read_bytes() == data


def test_a_file_of_another_model(text_file, folder, tmp_path, capsys):
    make_llama(seed=1).save_pretrained(tmp_path / "other")
    packed = str(tmp_path / "text.acz")
    assert main(["compress", str(text_file), "-o", packed, "--model", str(folder)]) == 0
    capsys.readouterr()
    assert main(["decompress", packed, "-o", str(tmp_path / "o"), "--model", str(tmp_path / "other")]) == 1
    assert "text.acz was made by" in error_line(capsys)
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("command", ["compress", "decompress"])
def test_without_constriction(monkeypatch, text_file, tmp_path, folder, capsys, command):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main([command, str(text_file), "-o", str(tmp_path / "o"), "--model", str(folder)]) == 1
    assert 'pip install "auto-compressor[codec]"' in error_line(capsys)
