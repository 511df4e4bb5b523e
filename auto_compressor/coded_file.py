"""Coded files: a prefix (magic, version, lengths of the two parts behind it, their CRC-32), a header and a body.

And what such files need to come back as they were: the identity of the weights, a model whose rounding hardly ever
matters, and the checksum of the original.
"""

import copy
import hashlib
import struct
import zlib

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import PreTrainedModel


PREFIX = struct.Struct("<8sBIQI")


def write_parts(magic: bytes, version: int, header: bytes, body: bytes) -> bytes:
    checksum = zlib.crc32(header + body)
    return PREFIX.pack(magic, version, len(header), len(body), checksum) + header + body


def read_parts(blob: bytes, magic: bytes, version: int, writer: str) -> tuple[bytes, bytes]:
    """
    Header and body of what `write_parts` made.

    Raises:
        ValueError: for what is no such file of the function `writer`, or one that is truncated, damaged or of another
            version.
    """
    if not isinstance(blob, bytes | bytearray):
        raise ValueError(f"`blob` must be bytes, got {type(blob).__name__}.")
    if blob[: len(magic)] != magic:
        raise ValueError(f"`blob` must be what `{writer}` returns, it begins with {bytes(blob[: len(magic)])!r}.")
    if len(blob) < PREFIX.size:
        raise ValueError(f"`blob` is truncated: it must have {PREFIX.size} bytes or more, it has {len(blob)}.")
    _, found, header_length, body_length, checksum = PREFIX.unpack_from(blob)
    if found != version:
        raise ValueError(f"`blob` must have the version {version}, it has {found}.")
    parts, length = blob[PREFIX.size :], header_length + body_length
    if len(parts) < length:
        raise ValueError(f"`blob` is truncated: it must have {PREFIX.size + length} bytes, it has {len(blob)}.")
    if len(parts) > length or zlib.crc32(parts) != checksum:
        raise ValueError(f"`blob` is damaged: its checksum must be {checksum:08x}, it is {zlib.crc32(parts):08x}.")
    return parts[:header_length], parts[header_length:]


def weights_hash(model: torch.nn.Module) -> str:
    """
    SHA-256 over names, shapes and values of all weights and codebooks.

    Values count, not dtypes: a bfloat16 checkpoint has one hash in bfloat16 and in float32. A float32 checkpoint that
    is rounded to bfloat16 is another model, and decodes to other bytes.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        # Quantised weights are tensors of other tensors.
        values = tensor.dequantize() if is_traceable_wrapper_subclass(tensor) else tensor
        digest.update(values.detach().cpu().double().contiguous().numpy())
    return digest.hexdigest()


def exact_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A copy in float64, codebooks too, with the attention that keeps it: eager attention takes its softmax in
    float32."""
    exact = copy.deepcopy(model).double()
    exact.config._attn_implementation = "sdpa"
    return exact


def check_weights(model: PreTrainedModel, model_type: str, model_hash: str):
    """Raises a `ValueError` for a model with other weights than those that made a file."""
    found = weights_hash(model)
    if model_hash != found:
        raise ValueError(
            f"`blob` was made by a {model_type} with the weights {model_hash[:16]}, `model` has {found[:16]}: a file"
            " means something only to the weights that made it, in the same dtype."
        )


def check_original(data: bytes, sha256: str):
    """Raises a `ValueError` for data that are not the original of a file."""
    found = hashlib.sha256(data).hexdigest()
    if sha256 != found:
        raise ValueError(
            f"`blob` decodes to other bytes than its original (SHA-256 {found[:16]}, not {sha256[:16]}): this machine"
            " or its PyTorch rounds differently from the one that encoded it, or the model has another config."
        )


__all__ = [
    "PREFIX",
    "check_original",
    "check_weights",
    "exact_copy",
    "read_parts",
    "weights_hash",
    "write_parts",
]
