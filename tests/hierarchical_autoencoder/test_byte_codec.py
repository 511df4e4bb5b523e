"""Bytes to a file of codes and back, from Python and on the command line."""

import copy
import functools
import io
import json
import lzma
import math
import os
import re
import resource
import shutil
import sys
import tracemalloc
import zlib

import numpy as np
import pytest
import torch
from damage_testing import damaged_parts, outcomes
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from auto_compressor import HierarchicalAutoencoder, HierarchicalAutoencoderConfig
from auto_compressor.cli.main import main
from auto_compressor.files.bundled import BUNDLED_TRAIN_TEXT
from auto_compressor.files.coded_file import LANGUAGE_MODEL_MAGIC, PREFIX, write_parts
from auto_compressor.files.identity import weights_hash
from auto_compressor.files.whole_files import write_whole
from auto_compressor.hierarchical_autoencoder import exact_codec
from auto_compressor.hierarchical_autoencoder.codec import decode_bytes, encode_bytes, read_header
from auto_compressor.hierarchical_autoencoder.codes_file import (
    MAGIC,
    pack_bits,
    read_stream,
    unpack_bits,
    write_stream,
)
from auto_compressor.hierarchical_autoencoder.likelihood import log_likelihood


SENTENCE = b"In the beginning God created the heavens and the earth. "
TEXT = SENTENCE * 8
LEVEL = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_expander_layers": 1,
    "window": 4,
    "memory_window": 4,
    "max_patch_length": 4,
}
VQ = {"codebook_size": 13, "codebook_dim": 4}
CODE_SEQUENCE = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
MODELS = {
    "fsq": [LEVEL],
    "vq, two levels": [LEVEL | VQ | {"quantizer": "ema_vq"}, LEVEL | {"max_patch_length": 2}],
    "residual, two levels": [LEVEL | VQ | {"quantizer": "residual_vq", "num_quantizers": 2}] * 2,
    "one code": [LEVEL | VQ | {"quantizer": "ema_vq", "codebook_size": 1}],
}
STRUCTURED = {
    "nothing": b"",
    "one byte": b"\x00",
    "every byte": bytes(range(256)),
    "one value": b"\xff" * 100,
    "no UTF-8": b"\xc3\x28\xff\xfe\x80 caf\xe9",
    "text": TEXT,
    "a block": TEXT[:32],
    "a block and a byte": TEXT[:33],
}


def make_model(levels, block_size=32, seed=0):
    torch.manual_seed(seed)
    levels = [dict(level) for level in levels]
    config = HierarchicalAutoencoderConfig(
        level_configs=levels, code_sequence_config=CODE_SEQUENCE, block_size=block_size
    )
    return HierarchicalAutoencoder(config).eval()


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    return make_model(MODELS[request.param])


@pytest.fixture(scope="module")
def tiny():
    return make_model(MODELS["fsq"])


@pytest.fixture(scope="module")
def trained():
    """A model that has seen one sentence often enough to know it by heart, and then its codes."""
    model = make_model([LEVEL | {"hidden_size": 32, "intermediate_size": 64}]).train()
    input_ids, _ = model.blocks(TEXT)
    for frozen, steps in ((0, 400), (1, 100)):
        model.freeze_levels(frozen)
        optimizer = torch.optim.Adam([weight for weight in model.parameters() if weight.requires_grad], lr=1e-2)
        for _ in range(steps):
            optimizer.zero_grad()
            model(input_ids, labels=input_ids).loss.backward()
            optimizer.step()
    return model.eval()


@pytest.fixture
def one_copy(monkeypatch):
    """Makes the float64 copy of a model once, which takes most of the time of a short text."""
    monkeypatch.setattr(exact_codec, "exact_copy", functools.cache(exact_codec.exact_copy))


@pytest.mark.parametrize("data", STRUCTURED.values(), ids=STRUCTURED)
def test_lossless_restores_everything(model, data):
    assert decode_bytes(model, encode_bytes(model, data, lossless=True)) == data


@pytest.mark.parametrize("data", STRUCTURED.values(), ids=STRUCTURED)
def test_lossy_is_reconstruct(model, data):
    assert decode_bytes(model, encode_bytes(model, data)) == model.reconstruct(data)


def test_byte_strings(trained, one_copy):
    parts = st.lists(st.sampled_from([SENTENCE[:20], SENTENCE[7:25], b"\x00", b"\xff\xfe", b"earth"]), max_size=6)
    strings = st.one_of(st.binary(max_size=80), parts.map(b"".join), st.text(max_size=25).map(str.encode))

    @settings(max_examples=150, deadline=None, database=None)
    @given(strings)
    def restored(data):
        assert decode_bytes(trained, encode_bytes(trained, data, lossless=True)) == data

    restored()


def test_random_bytes_on_every_model(model, one_copy):
    @settings(max_examples=25, deadline=None, database=None)
    @given(st.binary(max_size=120), st.integers(1, 5), st.integers(1, 5))
    def restored(data, batch_size, other):
        blob = encode_bytes(model, data, lossless=True, batch_size=batch_size)
        assert decode_bytes(model, blob, batch_size=other) == data

    restored()


def test_a_long_text():
    model = make_model([LEVEL | {"hidden_size": 8, "max_patch_length": 12}], block_size=512)
    data = BUNDLED_TRAIN_TEXT.read_bytes()[: 2**17]
    blob = encode_bytes(model, data, lossless=True, batch_size=200)
    assert decode_bytes(model, blob, batch_size=100) == data


def coded_bits(model, data):
    """Bits of the codes under their language model, and of what is below them, by the likelihood of the model."""
    input_ids, mask = model.blocks(data)
    scores = log_likelihood(exact_codec.exact_copy(model), input_ids, mask)
    return [-float(nats.sum()) / math.log(2) for nats in (scores.codes, scores.residual)]


def test_the_file_costs_what_the_model_says(trained):
    """The likelihood counts the chance of an end in front of every block and code too, which the file leaves out."""
    for_codes, for_bytes = coded_bits(trained, TEXT)
    (_, _), (_, codes), (form, rest) = read_header(encode_bytes(trained, TEXT, lossless=True)).streams
    assert form == "range" and 8 * codes < for_codes + 64
    assert for_bytes - 1 < 8 * rest < 1.01 * for_bytes + 64


def test_codes_are_coded_under_their_language_model(trained):
    """A language model that knows the codes makes them smaller than any other form; one that does not is not used."""
    header = read_header(encode_bytes(trained, SENTENCE, lossless=True))
    assert header.streams[1][0] == "range"
    untrained = copy.deepcopy(trained)
    untrained.code_sequence = make_model([LEVEL | {"hidden_size": 32}], seed=1).code_sequence
    other = read_header(encode_bytes(untrained, SENTENCE, lossless=True))
    assert other.streams[1][0] != "range" and header.streams[1][1] < other.streams[1][1]


def test_what_the_codes_carry_is_not_stored_again(trained, tiny):
    """A model that knows the sentence has little left to say; one with random weights stores all of it."""
    good, bad = (encode_bytes(model, SENTENCE, lossless=True) for model in (trained, tiny))
    stored = [read_header(blob).streams[2][1] for blob in (good, bad)]
    assert stored[0] < stored[1] / 2
    assert len(good) < len(bad)
    assert decode_bytes(trained, good) == SENTENCE


def test_right_bytes_are_those_that_come_back(trained, tiny):
    right_bytes = read_header(encode_bytes(trained, TEXT)).right_bytes
    assert (trained.reconstruct(TEXT) == TEXT) == (right_bytes == len(TEXT))
    assert read_header(encode_bytes(tiny, TEXT)).right_bytes == 0


def test_a_decoder_takes_the_batches_of_the_encoder(model):
    """Which blocks are coded side by side changes the words of a lossless file, not what comes back."""
    data = TEXT[:300]
    for batch_size in (1, 3, 64):
        blob = encode_bytes(model, data, lossless=True, batch_size=batch_size)
        assert read_header(blob).batch_size == batch_size
        assert {decode_bytes(model, blob, batch_size=other) for other in (1, 4, 64)} == {data}


def test_batches_do_not_matter_to_codes_alone(model):
    data = TEXT[:300]
    blobs = {encode_bytes(model, data, batch_size=batch_size) for batch_size in (1, 3, 64)}
    assert len(blobs) == 1
    blob = blobs.pop()
    assert len({decode_bytes(model, blob, batch_size=batch_size) for batch_size in (1, 4, 64)}) == 1


def test_header(model):
    header = read_header(encode_bytes(model, TEXT, lossless=True))
    output = model.encode(*model.blocks(TEXT))
    top = model.config.level_configs[-1]
    assert header.model_type == "hierarchical_autoencoder" and header.model_hash == weights_hash(model)
    assert (header.num_bytes, header.block_size, header.num_blocks) == (len(TEXT), 32, len(TEXT) // 32)
    assert header.num_patches == int((output.codes[:, 0] >= 0).sum())
    assert (header.num_quantizers, header.codebook_size) == (top.num_quantizers, top.codebook_size)
    assert header.num_codes == header.num_patches * top.num_quantizers
    assert header.lossless and len(header.streams) == 3 and header.version == 3
    assert not read_header(encode_bytes(model, TEXT)).lossless


def test_blocks_that_were_there_before_cost_little(tiny, monkeypatch):
    """The language model of the codes sees one block; what repeats from block to block is known all the same."""
    noise = np.random.default_rng(0).integers(256, size=32, dtype=np.uint8).tobytes()
    codes_bits = lambda blocks: exact_codec.encode_batches(tiny, blocks)[1].bits  # noqa: E731
    once, often = codes_bits([noise]), codes_bits([noise] * 20)
    monkeypatch.setattr(exact_codec, "new_matches", functools.partial(exact_codec.new_matches, largest_share=0.0))
    assert codes_bits([noise] * 20) == pytest.approx(20 * codes_bits([noise]))
    assert once <= 1.05 * codes_bits([noise]) and often < 0.3 * codes_bits([noise] * 20)


def test_codes_take_no_more_than_their_bits(tiny):
    codes = np.random.default_rng(0).integers(1000, size=4000)
    form, stored = write_stream(codes, 1000)
    assert form == "bits" and len(stored) == 4000 * 10 / 8
    form, stored = write_stream(codes * 0 + 7, 1000)
    assert form != "bits" and len(stored) < 100


@pytest.mark.parametrize("limit", [1, 2, 3, 256, 257, 1000, 2**16, 2**16 + 1, 2**20])
@pytest.mark.parametrize("count", [0, 1, 7, 100])
def test_streams(limit, count):
    values = np.random.default_rng(0).integers(limit, size=count)
    bits = (limit - 1).bit_length()
    assert np.array_equal(unpack_bits(pack_bits(values, bits), bits, count), values)
    for candidates in (values, values // limit):
        form, stored = write_stream(candidates, limit)
        assert np.array_equal(read_stream(stored, form, limit, count), candidates)


def test_bytes_per_code(model):
    output = model.encode(*model.blocks(TEXT[:50]))
    owners = output.patch_ids[0]
    for above in output.patch_ids[1:]:
        owners = torch.where(owners < 0, -1, above.gather(1, owners.clamp(min=0)))
    expected = torch.stack([(owners == patch).sum(dim=1) for patch in range(output.codes.shape[2])], dim=1)
    assert torch.equal(output.lengths, expected)
    assert output.lengths.sum() == 50


def test_the_model_is_left_as_it_is(tiny):
    model = copy.deepcopy(tiny).bfloat16()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert decode_bytes(model, encode_bytes(model, TEXT, lossless=True)) == TEXT
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == torch.bfloat16 and torch.equal(tensor, before[name])


def test_the_exact_copy_is_float64_throughout(model):
    """Changes far below float32 go through in proportion: nothing on the way rounds to it."""
    exact = exact_codec.exact_copy(model)
    assert {tensor.dtype for tensor in exact.state_dict().values()} == {torch.float64}
    expander, mask = exact.expanders[-1], torch.ones(2, 9, dtype=torch.bool)
    vectors = torch.randn(2, 9, expander.config.codebook_dim, dtype=torch.float64)
    with torch.no_grad():
        first, second, third = (expander.read_codes(vectors + step, mask) for step in (0, 1e-10, 2e-10))
    torch.testing.assert_close(third - first, 2 * (second - first), rtol=1e-3, atol=1e-14)
    cosine, sine = expander.memory.rotary_emb(vectors, torch.arange(512)[None])
    torch.testing.assert_close(cosine**2 + sine**2, torch.ones_like(cosine), rtol=0, atol=1e-15)


def test_the_exact_copy_is_the_same_for_all_attentions(tiny):
    eager = copy.deepcopy(tiny)
    eager.set_attn_implementation("eager")
    blob = encode_bytes(tiny, TEXT, lossless=True)
    assert decode_bytes(eager, blob) == TEXT
    assert eager.config.level_configs[0]._attn_implementation == "eager"


def test_other_rounding_is_an_error(tiny, monkeypatch):
    blob = encode_bytes(tiny, TEXT, lossless=True)
    decode = exact_codec.decode_batches
    monkeypatch.setattr(exact_codec, "decode_batches", lambda *args: decode(*args)[:-1] + b"\0")
    with pytest.raises(ValueError, match="The file decodes to other bytes than its original"):
        decode_bytes(tiny, blob)


def test_a_model_that_gives_nan_is_refused(tiny):
    broken = copy.deepcopy(tiny)
    torch.nn.init.constant_(broken.expanders[0].lm_head.weight, torch.nan)
    with pytest.raises(ValueError, match="`model` must predict with numbers, it gives NaN"):
        encode_bytes(broken, TEXT, lossless=True)


def test_rounding_of_another_machine_does_no_harm(trained, monkeypatch):
    """Probabilities that differ by a relative 1e-12 are coded alike."""
    blob, softmax = encode_bytes(trained, TEXT, lossless=True), torch.Tensor.softmax
    monkeypatch.setattr(
        torch.Tensor, "softmax", lambda values, dim: softmax(values, dim) * (1 + 1e-12 * torch.rand_like(values))
    )
    assert decode_bytes(trained, blob) == TEXT


def test_weights_hash(tiny, tmp_path):
    tiny.save_pretrained(tmp_path)
    assert weights_hash(HierarchicalAutoencoder.from_pretrained(tmp_path)) == weights_hash(tiny)
    half = copy.deepcopy(tiny).bfloat16()
    assert weights_hash(half) == weights_hash(copy.deepcopy(half).float()) != weights_hash(tiny)


@pytest.mark.parametrize("name", ["compressors.0.quantizer.codebook", "expanders.0.end_head.bias"])
def test_other_weights_are_refused(name):
    model = make_model([LEVEL | VQ | {"quantizer": "ema_vq"}])
    blob = encode_bytes(model, TEXT)
    with torch.no_grad():
        model.state_dict()[name].flatten()[-1] += 1e-3
    with pytest.raises(ValueError, match="The file was made by a hierarchical_autoencoder with the weights"):
        decode_bytes(model, blob)


@pytest.mark.parametrize("lossless", [True, False])
def test_truncation(tiny, lossless):
    blob = encode_bytes(tiny, TEXT[:100], lossless)
    for length in range(len(blob)):
        with pytest.raises(
            ValueError, match="The file (is truncated|must be a file that `auto-compressor encode` wrote)"
        ):
            decode_bytes(tiny, blob[:length])
    with pytest.raises(ValueError, match="The file is damaged"):
        decode_bytes(tiny, blob + b"\n")


@pytest.mark.parametrize("lossless", [True, False])
def test_a_flipped_byte(tiny, lossless):
    blob = encode_bytes(tiny, TEXT[:100], lossless)
    messages = "The file (is truncated|is damaged|must have the version|must be a file that|was written by|decodes)"

    @settings(max_examples=300, deadline=None, database=None)
    @given(st.integers(0, len(blob) - 1), st.integers(1, 255))
    def refused(position, change):
        damaged = bytearray(blob)
        damaged[position] ^= change
        with pytest.raises(ValueError, match=messages):
            decode_bytes(tiny, damaged)

    refused()


def test_damage_with_a_right_checksum(tiny, trained, one_copy):
    """Is refused, or changes nothing that matters; it takes no longer than a good file."""
    for model, seed in ((tiny, 0), (trained, 1)):
        files = damaged_parts(encode_bytes(model, TEXT[:100], lossless=True), 60, seed)
        refused, _, slowest = outcomes(functools.partial(decode_bytes, model), files, TEXT[:100])
        assert refused > 40 and slowest < 5


def edited(blob, **changes):
    """With other values in the header, or without those that are `None`, and the right checksum."""
    _, _, length, _, _ = PREFIX.unpack_from(blob)
    header = json.loads(blob[PREFIX.size :][:length]) | changes
    header = {name: value for name, value in header.items() if value is not None}
    return write_parts(MAGIC, blob[len(MAGIC)], json.dumps(header).encode(), blob[PREFIX.size + length :])


EDITS = {
    "not lossless": ({"lossless": False}, "`lossless` in its header must be true, got False"),
    "lossless not said": ({"lossless": None}, "its header must say"),
    "lossless as a number": ({"lossless": 1}, "`lossless` in its header must be true, got 1"),
    "bytes": ({"num_bytes": 2**45}, "`num_patches` in its header must be from"),
    "more bytes than a number holds": ({"num_bytes": 10**30}, "`num_bytes` in its header must be a whole number"),
    "block size": ({"block_size": 2**20}, "`block_size` in its header must be 32, that of the model"),
    "no blocks": ({"block_size": 0}, "`block_size` in its header must be a whole number from 1"),
    "patches": ({"num_patches": 99}, "its blocks must have 99 patches"),
    "negative": ({"num_patches": -1}, "`num_patches` in its header must be a whole number from 0"),
    "one byte less": ({"num_bytes": 99}, "`num_bytes` in its header must be 100, got 99"),
    "more than the stream holds": (
        {"num_bytes": 2**40, "block_size": 2**31, "num_patches": 2**35},
        "`num_bytes` must be [0-9]+ at most in a stream of",
    ),
    "all at once": ({"batch_size": 2**31}, "`batch_size` in its header must be a whole number from 1 to 4096"),
    "no batches": ({"batch_size": 0}, "`batch_size` in its header must be a whole number from 1"),
    "other batches": ({"batch_size": 3}, "decodes to other bytes than its original"),
    "right bytes": ({"right_bytes": 100}, "its header must say"),
    "codes not coded": ({"streams": [["range", 4]] * 3}, "`streams` in its header must be 3 pairs of a form"),
    "quantizers": ({"num_quantizers": 9}, "`num_quantizers` in its header must be 1, that of the model"),
    "streams": ({"streams": [["tar", 1]] * 3}, "`streams` in its header must be 3 pairs of a form and a length"),
    "lengths": ({"streams": [["bits", 0], ["bits", 0], ["range", 0]]}, "the lengths of its streams must add up to"),
    "hash": ({"sha256": "ff"}, "its hashes must be SHA-256"),
    "other hash": ({"sha256": "f" * 64}, "decodes to other bytes than its original"),
    "type": ({"model_type": "a\nb"}, "its model type must be a name"),
    "unknown field": ({"more": 1}, "its header must say"),
}


@pytest.mark.parametrize(("changes", "message"), EDITS.values(), ids=EDITS)
def test_a_header_that_does_not_fit(tiny, changes, message):
    blob = edited(encode_bytes(tiny, TEXT[:100], lossless=True), **changes)
    with pytest.raises(ValueError, match=f"^a file (is damaged: )?{message}"):
        decode_bytes(tiny, blob, name="a file")


def test_a_header_of_version_1_that_does_not_fit(tiny):
    blob = encode_bytes(tiny, TEXT[:100])
    for changes, message in (
        ({"lossless": True}, "`streams` in its header must be 5 pairs of a form and a length"),
        ({"lossless": 1}, "`lossless` in its header must be true or false, got 1"),
        ({"right_bytes": 101}, "`right_bytes` in its header must be 100 at most, got 101"),
        ({"batch_size": 1}, "its header must say"),
    ):
        with pytest.raises(ValueError, match=message):
            decode_bytes(tiny, edited(blob, **changes))


WORDS = {
    "no words": ([], "a coded stream must be numbers of 4 bytes, got 0"),
    "half a word": (b"\0\0", "a coded stream must be numbers of 4 bytes, got 2"),
    "ties": ([3, 0, 0], "a coded stream must have fewer ties than 3, got 3"),
    "order of ties": ([2, 5, 5, 0], "the ties of a coded stream must be places in order, got [5, 5]"),
}


@pytest.mark.parametrize(("words", "message"), WORDS.values(), ids=WORDS)
def test_words_that_make_no_sense(words, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        exact_codec.read_words(bytes(np.array(words, "<u4")) if isinstance(words, list) else words)


def test_a_lossy_file_that_says_all_comes_back_is_checked(tiny):
    blob = encode_bytes(tiny, TEXT[:100])
    assert decode_bytes(tiny, blob) == tiny.reconstruct(TEXT[:100])
    with pytest.raises(ValueError, match="decodes to other bytes than its original"):
        decode_bytes(tiny, edited(blob, right_bytes=100))


@pytest.mark.parametrize("header", [b"[" * 60_000, b"[]", b"\xff", b"9" * 60_000, b"{" * 70_000], ids=len)
def test_a_header_that_is_none(tiny, header):
    with pytest.raises(ValueError, match="its header must"):
        read_header(write_parts(MAGIC, 1, header, b""))


@pytest.mark.parametrize("form", ["zlib", "lzma"])
def test_a_stream_is_not_decompressed_beyond_its_numbers(form):
    bomb = {"zlib": zlib.compress, "lzma": functools.partial(lzma.compress, format=lzma.FORMAT_ALONE)}[form](
        bytes(2**26)
    )
    tracemalloc.start()
    with pytest.raises(ValueError, match="a stream must hold 100 bytes, got 101"):
        read_stream(bomb, form, 256, 100)
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


def test_a_file_of_a_language_model_says_what_reads_it(tiny):
    with pytest.raises(
        ValueError, match="^x.ac was written by `auto-compressor compress`: use `auto-compressor decompress`"
    ):
        read_header(write_parts(LANGUAGE_MODEL_MAGIC, 1, b"", b""), "x.ac")


BAD_ARGUMENTS = {
    "text": (encode_bytes, {"data": "abc"}, "`data` must be bytes, got str"),
    "text to decode": (decode_bytes, {"blob": "abc"}, "`blob` must be bytes, got str"),
    "nothing": (decode_bytes, {"blob": b""}, "must be a file that `auto-compressor encode` wrote, it begins with b''"),
    "another file": (
        decode_bytes,
        {"blob": b"PK\x03\x04 and so on"},
        "must be a file that `auto-compressor encode` wrote",
    ),
    "batch size": (
        encode_bytes,
        {"data": b"", "batch_size": 0},
        "`batch_size` must be an integer from 1 to 4096, got 0",
    ),
    "half a batch": (decode_bytes, {"blob": b"", "batch_size": 0.5}, "`batch_size` must be an integer from 1 to 4096"),
    "another model": (encode_bytes, {"data": b"", "model": torch.nn.Linear(1, 1)}, "`model` must be a Hierarchical"),
}


@pytest.mark.parametrize(("function", "arguments", "message"), BAD_ARGUMENTS.values(), ids=BAD_ARGUMENTS)
def test_bad_arguments(tiny, function, arguments, message):
    with pytest.raises(ValueError, match=message):
        function(**({"model": tiny} | arguments))


def test_a_model_in_training_is_refused():
    with pytest.raises(ValueError, match="`model` must be in evaluation mode"):
        encode_bytes(make_model(MODELS["fsq"]).train(), TEXT)


def test_another_version_is_refused(tiny):
    blob = bytearray(encode_bytes(tiny, TEXT))
    blob[8] = 4
    with pytest.raises(ValueError, match="The file must have the version 1 or 2 or 3, it has 4"):
        decode_bytes(tiny, blob)


def test_progress(tiny):
    seen = []

    def track(steps):
        seen.append(len(steps))
        return iter(steps)

    blob = encode_bytes(tiny, TEXT, batch_size=3, progress=track)
    decode_bytes(tiny, blob, batch_size=5, progress=track)
    assert seen == [5, 3]  # 14 blocks


def test_the_header_is_json(tiny):
    blob = encode_bytes(tiny, TEXT)
    _, _, length, _, _ = PREFIX.unpack_from(blob)
    assert json.loads(blob[PREFIX.size : PREFIX.size + length])["num_bytes"] == len(TEXT)


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    tiny.save_pretrained(path)
    return path


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(TEXT + b"\xff\x00")
    return path


def error_line(capsys):
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("auto-compressor: error: "), lines
    return lines[0]


@pytest.mark.parametrize("lossless", [True, False])
def test_encode_and_decode_files(tiny, folder, text_file, tmp_path, capsys, lossless):
    packed, restored = tmp_path / "text.ac", tmp_path / "restored.txt"
    options = ["--model", str(folder), "--batch-size", "4"]
    assert main(["encode", str(text_file), "-o", str(packed), *options, *["--lossless"] * lossless]) == 0
    data = text_file.read_bytes()
    assert packed.read_bytes() == encode_bytes(tiny, data, lossless, batch_size=4)
    table = capsys.readouterr().out
    assert f"{len(data):,} / {packed.stat().st_size:,}" in table
    assert f"{8 * packed.stat().st_size / len(data):.2f}" in table
    assert lossless == ("%" not in table)
    assert main(["decode", str(packed), "-o", str(restored), *options]) == 0
    assert restored.read_bytes() == (data if lossless else tiny.reconstruct(data))
    assert not list(tmp_path.glob("*.part"))


def test_the_parts_of_a_lossless_file_are_printed(folder, text_file, tmp_path, capsys):
    assert main(["encode", "--lossless", str(text_file), "-o", str(tmp_path / "o"), "--model", str(folder)]) == 0
    table, num_bytes = capsys.readouterr().out, text_file.stat().st_size
    (_, counts), (_, codes), (_, rest) = read_header((tmp_path / "o").read_bytes()).streams
    assert f"codes {8 * codes / num_bytes:.3f}" in table and f"know {8 * rest / num_bytes:.3f}" in table


@pytest.mark.parametrize("command", ["encode", "decode"])
def test_only_files_without_loss_need_constriction(monkeypatch, tiny, folder, text_file, tmp_path, capsys, command):
    for lossless in (False, True):
        (tmp_path / str(lossless)).write_bytes(encode_bytes(tiny, TEXT, lossless))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for lossless in (False, True):
        source = text_file if command == "encode" else tmp_path / str(lossless)
        arguments = ["--lossless"] if lossless and command == "encode" else []
        arguments += [str(source), "-o", str(tmp_path / "o"), "--model", str(folder)]
        assert main([command, *arguments]) == int(lossless)
    assert 'pip install "auto-compressor[codec]"' in error_line(capsys)


def test_a_file_that_grows_says_so(folder, text_file, tmp_path, capsys):
    arguments = [str(text_file), "-o", str(tmp_path / "o"), "--model", str(folder)]
    assert main(["encode", "--lossless", *arguments]) == 0
    size, packed = text_file.stat().st_size, (tmp_path / "o").stat().st_size
    assert (f"The file grew, from {size:,} to {packed:,} bytes" in capsys.readouterr().out) == (packed > size)
    text_file.write_bytes(b"a")
    assert main(["encode", *arguments]) == 0
    assert "The file grew, from 1 to" in capsys.readouterr().out


def test_standard_input_and_output(folder, tmp_path, monkeypatch, capsysbinary):
    def piped(arguments, data):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        assert main([*arguments, "-", "-o", "-", "--model", str(folder)]) == 0
        return capsysbinary.readouterr()

    packed = piped(["encode", "--lossless"], TEXT)
    assert b"bits per byte" in packed.err
    assert piped(["decode"], packed.out).out == TEXT


def test_an_empty_file(folder, tmp_path):
    (tmp_path / "empty").touch()
    packed, restored = str(tmp_path / "empty.ac"), tmp_path / "restored"
    assert main(["encode", str(tmp_path / "empty"), "-o", packed, "--model", str(folder)]) == 0
    assert main(["decode", packed, "-o", str(restored), "--model", str(folder)]) == 0
    assert restored.read_bytes() == b""


def fail(error):
    def failing(*args, **kwargs):
        raise error

    return failing


FAILURES = {
    "killed while encoding": (HierarchicalAutoencoder, "decode", KeyboardInterrupt(), 130),
    "killed while writing": (os, "fsync", KeyboardInterrupt(), 130),
    "killed before it takes its name": (os, "replace", KeyboardInterrupt(), 130),
    "full disk": (os, "fsync", OSError(28, "No space left on device"), 1),
}


@pytest.mark.parametrize("command", ["encode", "decode"])
@pytest.mark.parametrize("there", [True, False], ids=["old file", "no old file"])
@pytest.mark.parametrize(("target", "name", "error", "code"), FAILURES.values(), ids=FAILURES)
def test_a_failed_run_leaves_no_trace(
    tiny, folder, text_file, tmp_path, monkeypatch, command, there, target, name, error, code
):
    source, output = text_file, tmp_path / "output"
    if command == "decode":
        source = tmp_path / "text.ac"
        source.write_bytes(encode_bytes(tiny, TEXT))
    if there:
        output.write_bytes(b"old")
    before = sorted(os.listdir(tmp_path))
    monkeypatch.setattr(target, name, fail(error))
    assert main([command, str(source), "-o", str(output), "--model", str(folder)]) == code
    assert sorted(os.listdir(tmp_path)) == before
    assert not there or output.read_bytes() == b"old"


def test_a_disk_that_fills_up_half_way(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_whole(tmp_path / "file", bytes(1000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not os.listdir(tmp_path)


BAD_INPUT = {
    "no file": (["encode", "{tmp}/none"], "No such file"),
    "over the input": (["encode", "{tmp}/text.txt", "-o", "{tmp}/text.txt"], "must be another file than the one"),
    "over the input, by a link": (["encode", "{tmp}/text.txt", "-o", "{tmp}/link"], "must be another file"),
    "no output folder": (["encode", "{tmp}/text.txt", "-o", "{tmp}/no/o"], "there is no folder"),
    "output is a folder": (["encode", "{tmp}/text.txt", "-o", "{tmp}"], "must be a file, it is a folder"),
    "output is a device": (["encode", "{tmp}/text.txt", "-o", "/dev/null"], "must be a file, it is a device"),
    "batch size": (["encode", "{tmp}/text.txt", "--batch-size", "0"], "--batch-size must be 1 or more, got 0"),
    "no such device": (["encode", "{tmp}/text.txt", "--device", "toaster"], "--device toaster cannot be used"),
    "not encoded": (["decode", "{tmp}/text.txt"], "must be a file that `auto-compressor encode` wrote"),
    "no model": (["encode", "{tmp}/text.txt", "--model", "{tmp}/none"], "Cannot load the model"),
    "no config": (["encode", "{tmp}/text.txt", "--model", "{tmp}/models"], "model"),
    "a language model": (["encode", "{tmp}/text.txt", "--model", "{tmp}/models/llama"], "it is of the type llama"),
    "damaged weights": (["encode", "{tmp}/text.txt", "--model", "{tmp}/models/damaged"], "Cannot load the model"),
    "missing weights": (["encode", "{tmp}/text.txt", "--model", "{tmp}/models/missing"], "it lacks compressors.0."),
    "other sizes": (["encode", "{tmp}/text.txt", "--model", "{tmp}/models/sizes"], "Cannot load the model"),
}


@pytest.fixture
def bad_models(tiny, folder, tmp_path):
    models = tmp_path / "models"
    LlamaForCausalLM(LlamaConfig(vocab_size=8, **CODE_SEQUENCE)).save_pretrained(models / "llama")
    shutil.copytree(folder, models / "damaged")
    weights = models / "damaged" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    kept = {name: tensor for name, tensor in tiny.state_dict().items() if not name.startswith("compressors")}
    tiny.save_pretrained(models / "missing", state_dict=kept)
    make_model([LEVEL | {"hidden_size": 32}]).save_pretrained(models / "sizes")
    shutil.copy(folder / "model.safetensors", models / "sizes")


@pytest.mark.parametrize(("arguments", "message"), BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_input(folder, bad_models, text_file, tmp_path, capsys, arguments, message):
    (tmp_path / "link").symlink_to(text_file)
    before, data = sorted(os.listdir(tmp_path)), text_file.read_bytes()
    arguments = [argument.format(tmp=tmp_path) for argument in arguments]
    for option, value in (("-o", str(tmp_path / "o")), ("--model", str(folder))):
        arguments += [] if option in arguments else [option, value]
    capsys.readouterr()
    assert main(arguments) == 1
    assert message in error_line(capsys)
    assert sorted(os.listdir(tmp_path)) == before and text_file.read_bytes() == data


def test_a_file_of_another_model(text_file, folder, tmp_path, capsys):
    make_model(MODELS["fsq"], seed=1).save_pretrained(tmp_path / "other")
    packed = str(tmp_path / "text.ac")
    assert main(["encode", str(text_file), "-o", packed, "--model", str(folder)]) == 0
    capsys.readouterr()
    assert main(["decode", packed, "-o", str(tmp_path / "o"), "--model", str(tmp_path / "other")]) == 1
    assert "text.ac was made by" in error_line(capsys)
