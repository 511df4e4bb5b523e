"""Coded files: a prefix (magic, version, lengths of the two parts behind it, their CRC-32), a header and a body.

And what such files need to come back as they were: the identity of the weights, a model whose rounding hardly ever
matters, and the checksum of the original.
"""

import copy
import hashlib
import math
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from transformers import PreTrainedModel

from .identity import weights_hash


PREFIX = struct.Struct("<8sBIQI")
MAX_HEADER_BYTES = 2**16
# No text, and damaged by a transfer that takes it for text.
CODES_MAGIC, LANGUAGE_MODEL_MAGIC = b"\x89ACZ\r\n\x1a\n", b"\x89ACM\r\n\x1a\n"
COMMANDS = {CODES_MAGIC: ("encode", "decode"), LANGUAGE_MODEL_MAGIC: ("compress", "decompress")}  # write and read
OTHER_ROUNDING = (
    "this machine or its PyTorch rounds differently from the one that wrote it, or the model has another config"
)
SHA256 = re.compile("[0-9a-f]{64}")
SPARE_BITS = 64  # the range coder may leave so many unwritten
NUM_CODES = 2**24  # of the range coder for a digit: one for every digit, the others in the ratio of their likelihood
MIN_BITS = -math.log2(1 - 255 / NUM_CODES)  # that a symbol costs at least: its last digit is one of 256


class CodedFileError(ValueError):
    """What is wrong with a coded file, as the rest of a sentence that [`naming`] begins with the name of the file."""


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Begins what is wrong with a coded file with its name."""
    try:
        yield
    except CodedFileError as error:
        raise ValueError(f"{name} {error}") from error


def require(holds: bool, rule: str, found: object):
    """Raises a `CodedFileError` that says the rule and what was found, unless the rule holds."""
    if not holds:
        raise CodedFileError(f"is damaged: {rule}, got {found!r:.80}.")


def write_parts(magic: bytes, version: int, header: bytes, body: bytes) -> bytes:
    checksum = zlib.crc32(header + body)
    return PREFIX.pack(magic, version, len(header), len(body), checksum) + header + body


def check_magic(found: bytes, magic: bytes):
    """Raises a `CodedFileError` for a file of another kind, which says what reads it if that is known."""
    writer, _ = COMMANDS[magic]
    if found in COMMANDS and found != magic:
        other, reader = COMMANDS[found]
        raise CodedFileError(f"was written by `auto-compressor {other}`: use `auto-compressor {reader}`.")
    if found != magic:
        raise CodedFileError(f"must be a file that `auto-compressor {writer}` wrote, it begins with {found!r}.")


def found_version(blob: bytes, magic: bytes, known: tuple[int, ...]) -> int:
    """
    The version of what `write_parts` made.

    Raises:
        ValueError: for what is no such file, or one that is truncated or of a version that is not known.
    """
    if not isinstance(blob, bytes | bytearray):
        raise ValueError(f"`blob` must be bytes, got {type(blob).__name__}.")
    check_magic(bytes(blob[: len(magic)]), magic)
    if len(blob) < PREFIX.size:
        raise CodedFileError(f"is truncated: it must have {PREFIX.size} bytes or more, it has {len(blob)}.")
    found = PREFIX.unpack_from(blob)[1]
    if found not in known:
        raise CodedFileError(f"must have the version {' or '.join(map(str, known))}, it has {found}.")
    return found


def read_parts(blob: bytes, magic: bytes, version: int) -> tuple[bytes, bytes]:
    """
    Header and body of what `write_parts` made.

    Raises:
        ValueError: for what is no such file, or one that is truncated, damaged or of another version.
    """
    found_version(blob, magic, (version,))
    _, _, header_length, body_length, checksum = PREFIX.unpack_from(blob)
    parts, length = bytes(blob[PREFIX.size :]), header_length + body_length
    if len(parts) < length:
        raise CodedFileError(f"is truncated: it must have {PREFIX.size + length} bytes, it has {len(blob)}.")
    if len(parts) > length or zlib.crc32(parts) != checksum:
        raise CodedFileError(f"is damaged: its checksum must be {checksum:08x}, it is {zlib.crc32(parts):08x}.")
    require(header_length <= MAX_HEADER_BYTES, f"its header must have {MAX_HEADER_BYTES} bytes at most", header_length)
    return parts[:header_length], parts[header_length:]


def check_origin(model_type: str, *hashes: str):
    """Raises a `CodedFileError` for a type that is no name, or hashes that are no SHA-256."""
    is_name = isinstance(model_type, str) and model_type.isprintable() and 0 < len(model_type) <= 200
    require(is_name, "its model type must be a name", model_type)
    for found in hashes:
        is_hash = isinstance(found, str) and SHA256.fullmatch(found) is not None
        require(is_hash, "its hashes must be SHA-256 in hexadecimal digits", found)


def exact_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A copy in float64, codebooks too, with the attention that keeps it: eager attention takes its softmax in
    float32."""
    exact = copy.deepcopy(model).double()
    exact.config._attn_implementation = "sdpa"
    return exact


def check_weights(model: PreTrainedModel, model_type: str, model_hash: str):
    """Raises a `CodedFileError` for a model with other weights than those whose hash, or its beginning, a file has."""
    found = weights_hash(model)
    if not found.startswith(model_hash):
        raise CodedFileError(
            f"was made by a {model_type} with the weights {model_hash[:16]}, `model` has {found[:16]}: a file"
            " means something only to the weights that made it, in the same dtype."
        )


def read_coded(blob: bytes, magic: bytes, versions: tuple[int, ...], parse: Callable[[bytes, int], Any]) -> tuple:
    """
    The header of a file, as `parse` reads it of bytes and version, and the body, which it checks the length of.

    Raises:
        CodedFileError: for what is no such file, or one that is truncated, damaged or of another version.
    """
    version = found_version(blob, magic, versions)
    packed, body = read_parts(blob, magic, version)
    header = parse(packed, version)
    header.check(len(body))
    return header, body


def most_symbols(num_bytes: int) -> int:
    """How many symbols a range coder can have written in so many bytes: each costs something."""
    return int((8 * num_bytes + SPARE_BITS) / MIN_BITS)


def check_data(data: bytes):
    """Raises a `ValueError` for what is compressed, if it is no bytes."""
    if not isinstance(data, bytes | bytearray):
        raise ValueError(f"`data` must be bytes, got {type(data).__name__}.")


def check_original(data: bytes, sha256: str):
    """Raises a `ValueError` for data that are not the original of a file."""
    found = hashlib.sha256(data).hexdigest()
    if sha256 != found:
        raise CodedFileError(
            f"decodes to other bytes than its original (SHA-256 {found[:16]}, not {sha256[:16]}): {OTHER_ROUNDING}."
        )


__all__ = [
    "CODES_MAGIC",
    "LANGUAGE_MODEL_MAGIC",
    "NUM_CODES",
    "OTHER_ROUNDING",
    "PREFIX",
    "SPARE_BITS",
    "CodedFileError",
    "check_data",
    "check_origin",
    "check_original",
    "check_weights",
    "exact_copy",
    "most_symbols",
    "naming",
    "read_coded",
    "require",
    "write_parts",
]
