"""Damaged files of both codecs of bytes, each with the checksum of what it holds."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path

from damage_testing import damaged_parts

from auto_compressor.byte_lm.codec import compress_bytes, decompress_bytes
from auto_compressor.files.bundled import BUNDLED_VALIDATION_TEXT
from auto_compressor.hierarchical_autoencoder.codec import decode_bytes, encode_bytes

from .cases import Case, require_right, share
from .models import BYTE_MODELS, make_model


def good_files(text: bytes) -> Iterator[tuple[str, bytes, Callable[[bytes], bytes]]]:
    """Kind, file and reader of each."""
    model = make_model("hierarchical_autoencoder")
    yield "encode --lossless", encode_bytes(model, text, lossless=True), partial(decode_bytes, model)
    for name in BYTE_MODELS:
        model = make_model(name)
        yield f"compress, {name}", compress_bytes(model, text, num_streams=3), partial(decompress_bytes, model)


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
