"""Damaged files of both codecs of bytes, each with the checksum of what it holds."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path

from damage_testing import damaged_parts
from hypothesis import strategies as st

from auto_compressor.files.bundled import BUNDLED_VALIDATION_TEXT
from auto_compressor.hierarchical_autoencoder.codec import decode_bytes, encode_bytes
from auto_compressor.lossless.codec import compress_bytes, decompress_bytes

from .cases import Case, require_right, share
from .models import BYTE_MODELS, make_model, token_model
from .mutations import drawn


def good_files(text: bytes) -> Iterator[tuple[str, bytes, Callable[[bytes], bytes]]]:
    """Kind, file and reader of each."""
    model = make_model("hierarchical_autoencoder")
    yield "encode --lossless", encode_bytes(model, text, lossless=True), partial(decode_bytes, model)
    for name in BYTE_MODELS:
        model = make_model(name)
        yield f"compress, {name}", compress_bytes(model, text, num_streams=3), partial(decompress_bytes, model)
    model, tokenizer = token_model()
    blob = compress_bytes(model, text, num_streams=3, tokenizer=tokenizer)
    yield "compress, tokens", blob, partial(decompress_bytes, model, tokenizer=tokenizer)


def restore(path: Path, read: Callable[[bytes], bytes], text: bytes):
    require_right(read(path.read_bytes()) == text, "other bytes came back")


def codecs(folder: Path, count: int, seed: int) -> Iterator[Case]:
    """Files of `encode` and `compress`: refused, or the bytes that were compressed."""
    text, path = BUNDLED_VALIDATION_TEXT.read_bytes()[:100], folder / "damaged"
    files = list(good_files(text))
    for place, (kind, blob, read) in enumerate(files):
        for damaged in chain([blob], damaged_parts(blob, share(count, place, len(files)), seed)):
            path.write_bytes(damaged)
            yield Case(kind, partial(restore, path, read, text), path, len(damaged))


def there_and_back(data: bytes, num_streams: int, window: int):
    model, tokenizer = token_model()
    blob = compress_bytes(model, data, num_streams, window, tokenizer=tokenizer)
    require_right(decompress_bytes(model, blob, tokenizer=tokenizer) == data, "other bytes came back")


def strings(folder: Path, count: int, seed: int) -> Iterator[Case]:
    """Random bytes and texts by a model of tokens, there and back."""
    parts = st.lists(st.sampled_from([b"In the beginning", b"\x00", b"\xff\xfe", b"<|endoftext|>"]), max_size=4)
    data = st.one_of(st.binary(max_size=60), parts.map(b"".join), st.text(max_size=20).map(str.encode))
    yield Case("random bytes", partial(there_and_back, b"In the beginning" * 4, 3, 8))
    for case in drawn(st.tuples(data, st.integers(1, 20), st.integers(2, 16)), count, seed):
        yield Case("random bytes", partial(there_and_back, *case))
