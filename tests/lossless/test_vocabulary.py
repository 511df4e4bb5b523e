"""Any bytes as symbols of a vocabulary, and back by its table alone."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokens import END, TOKENIZERS, VOCAB_SIZE

from auto_compressor.files.bundled import BUNDLED_VALIDATION_TEXT
from auto_compressor.lossless.vocabulary import BLOCK, BYTES, RAW_SHARE, vocabulary_of
from auto_compressor.tokenization_bytes import ByteTokenizer


TEXT = BUNDLED_VALIDATION_TEXT.read_bytes()[:3000]
CASES = {
    "nothing": b"",
    "text": TEXT,
    "capitals": TEXT[:200].upper(),
    "spaces": b"  two  and\n\n three   \t\n",
    "every byte": bytes(range(256)) * 2,
    "no UTF-8": b"\xc3\x28 caf\xe9 \xff\xfe" + TEXT[:50] + b"\xf0\x9f\x98",
    "what NFKC changes": "\ufb01 e\u0301 \u212b \u2460 \u00a0".encode(),
    "other scripts": "Ωμέγα 日本語 🙂 \u2581".encode(),
    "special tokens": f"a{END}b<s></s><unk><0x41>".encode(),
    "surrogates": "\ud800\udc80".encode("utf-8", "surrogatepass"),
    "zeros": bytes(50),
}


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request):
    return TOKENIZERS[request.param]()


@pytest.fixture(scope="module")
def vocabulary(tokenizer):
    return vocabulary_of(tokenizer, VOCAB_SIZE + 40)


@pytest.mark.parametrize("data", CASES.values(), ids=CASES)
def test_everything_comes_back(vocabulary, data):
    symbols = vocabulary.symbols_of(data)
    assert vocabulary.bytes_of(symbols) == data
    assert symbols.size == 0 or 0 <= symbols.min() and symbols.max() < vocabulary.size


def test_random_bytes_come_back(vocabulary):
    parts = st.lists(st.sampled_from([b"In the beginning", b"\xff", b"<s>", "é".encode(), b"  "]), max_size=5)
    strings = st.one_of(st.binary(max_size=40), parts.map(b"".join), st.text(max_size=12).map(str.encode))

    @settings(max_examples=150, deadline=None, database=None)
    @given(strings)
    def restored(data):
        assert vocabulary.bytes_of(vocabulary.symbols_of(data)) == data

    restored()


def test_text_is_the_tokens_of_its_tokenizer():
    for name in ("byte-level", "SentencePiece"):
        tokenizer = TOKENIZERS[name]()
        tokens = tokenizer(TEXT.decode(), add_special_tokens=False).input_ids
        symbols = vocabulary_of(tokenizer, VOCAB_SIZE).symbols_of(TEXT).tolist()
        assert len(symbols) < len(TEXT) / 1.5 and symbols[5:] == tokens[-len(symbols) + 5 :]


def test_only_what_does_not_come_back_is_spelled(tokenizer, vocabulary):
    """A byte that is no UTF-8 in the middle costs a symbol, and a few at the borders."""
    text = TEXT[:1000].lower()
    whole = vocabulary.symbols_of(text)
    broken = vocabulary.symbols_of(text[:500] + b"\xff" + text[500:])
    assert abs(len(broken) - len(whole)) < 30


def test_special_tokens_are_never_symbols(tokenizer, vocabulary):
    special = set(tokenizer.all_special_ids)
    assert special
    for data in CASES.values():
        assert not special & set(vocabulary.symbols_of(data).tolist())
    probs = vocabulary.uniform(2)
    assert probs[:, sorted(special)].abs().max() == 0 and probs[:, VOCAB_SIZE + 1 : vocabulary.first_raw].sum() == 0


def test_distributions(vocabulary):
    probs = vocabulary.probabilities(torch.randn(3, VOCAB_SIZE + 40))
    assert probs.shape == (3, vocabulary.size) and vocabulary.size % BLOCK == 0
    torch.testing.assert_close(probs.sum(dim=1), torch.ones(3, dtype=torch.double))
    if vocabulary.has_raw_bytes:
        torch.testing.assert_close(probs[:, -256:], torch.full((3, 256), RAW_SHARE / 256, dtype=torch.double))


def test_bytes_without_tokens_are_raw():
    vocabularies = {name: vocabulary_of(make(), VOCAB_SIZE) for name, make in TOKENIZERS.items()}
    assert [name for name, vocabulary in vocabularies.items() if vocabulary.has_raw_bytes] == ["without bytes"]
    symbols = vocabularies["without bytes"].symbols_of(b"\xff\x80")
    assert symbols.tolist() == [vocabularies["without bytes"].first_raw + value for value in (255, 128)]


def test_models_of_bytes():
    assert vocabulary_of(None, 257) is BYTES and vocabulary_of(ByteTokenizer(), 259) is BYTES
    assert BYTES.symbols_of(b"\x00ab\xff").tolist() == [0, 97, 98, 255] and BYTES.start is None
    assert BYTES.bytes_of(np.array([0, 255])) == b"\x00\xff" and BYTES.size == 256


def test_tokens_that_the_model_does_not_have_are_not_used():
    vocabulary = vocabulary_of(TOKENIZERS["byte-level"](), 300)
    symbols = vocabulary.symbols_of(TEXT)
    assert vocabulary.bytes_of(symbols) == TEXT and symbols.max() < 300


def test_what_a_model_reads():
    """The start in front, and in place of raw bytes."""
    vocabulary = vocabulary_of(TOKENIZERS["without bytes"](), VOCAB_SIZE)
    streams = torch.tensor([[5, vocabulary.first_raw + 7, 9]], dtype=torch.int32)
    start = vocabulary.start
    assert vocabulary.columns(streams, 0, 4).tolist() == [[start, 5, start, 9]]
    assert vocabulary.columns(streams, 2, 3).tolist() == [[start]] and vocabulary.columns(streams, 0, 1).shape == (
        1,
        1,
    )
    assert BYTES.columns(torch.tensor([[3, 4]]), 1, 2).tolist() == [[4]]


def test_hashes_tell_vocabularies_apart():
    hashes = {vocabulary_of(make(), VOCAB_SIZE).hash for make in TOKENIZERS.values()} | {BYTES.hash}
    assert len(hashes) == 4
    assert vocabulary_of(TOKENIZERS["byte-level"](), VOCAB_SIZE).hash in hashes
