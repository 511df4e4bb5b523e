"""Files of vectors that stand for a text: one safetensors file with one tensor and what it belongs to."""

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, deserialize
from safetensors.torch import save
from transformers import PreTrainedModel

from .identity import model_fingerprint
from .whole_files import write_whole


# By the names that safetensors has for them.
DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
MAX_TOKENS = 2**48
MAX_NAME_LENGTH = 4096
FORMATS = "auto_compressor."  # how the names of all kinds begin
FIELDS = ("format", "model_name", "model_type", "fingerprint", "adapters", "num_tokens")
OTHER_FIELDS = ("compression_ratio", "stored_bytes")  # told for people, and not read
SHA256 = re.compile("[0-9a-f]{64}")


class VectorFileError(OSError, ValueError):
    """A file that holds no such vectors, or a damaged one."""


@dataclass(frozen=True)
class VectorFormat:
    """
    A kind of vectors on disk.

    Args:
        name (`str`): Name of the tensor in the file, and of what it holds.
        format (`str`): What the metadata calls the kind and its version.
    """

    name: str
    format: str


def has_adapters(model: PreTrainedModel) -> bool:
    return hasattr(model, "peft_config")


def check_saveable(name: str, vectors: torch.Tensor, width: int, num_tokens: int):
    """Raises a `ValueError` for vectors that a file of them could not give back."""
    if vectors.ndim != 3 or vectors.shape[2] != width or vectors.numel() == 0:
        raise ValueError(f"`{name}` must have the shape (batch_size, length, {width}), got {tuple(vectors.shape)}.")
    if vectors.dtype not in DTYPES.values():
        raise ValueError(f"`{name}` must hold floats of 16 to 64 bits, got {vectors.dtype}.")
    if not vectors.isfinite().all():
        raise ValueError(f"`{name}` must be finite, it holds NaN or infinity.")
    if isinstance(num_tokens, bool) or not isinstance(num_tokens, int):
        raise ValueError(f"`num_tokens` must be an integer, got {num_tokens!r}.")
    if not 1 <= num_tokens <= MAX_TOKENS:
        raise ValueError(f"`num_tokens` must be 1 or more, and {MAX_TOKENS} at most, got {num_tokens}.")


def checksum(vectors: torch.Tensor, metadata: dict[str, str]) -> str:
    """SHA-256 over the vectors, their dtype and shape, and the metadata."""
    told = sorted((key, value) for key, value in metadata.items() if key != "sha256")
    digest = hashlib.sha256(repr((told, str(vectors.dtype), tuple(vectors.shape))).encode("utf-8", "replace"))
    digest.update(vectors.contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_vectors(
    path: str | os.PathLike, kind: VectorFormat, vectors: torch.Tensor, model: PreTrainedModel, num_tokens: int
):
    """Writes vectors `(batch_size, length, width)` with the identity of their model, whole or not at all."""
    metadata = {
        "format": kind.format,
        "model_name": model.config.name_or_path,
        "model_type": model.config.model_type,
        "fingerprint": model_fingerprint(model),
        "adapters": str(has_adapters(model)),
        "num_tokens": str(num_tokens),
        "compression_ratio": f"{num_tokens / vectors.shape[1]:.4g}",
        "stored_bytes": str(vectors.numel() * vectors.element_size()),
    }
    vectors = vectors.detach().contiguous().cpu()
    metadata["sha256"] = checksum(vectors, metadata)
    write_whole(Path(path), save({kind.name: vectors}, metadata))


def require(path: str | os.PathLike, holds: bool, rule: str, found: object):
    """Raises a `VectorFileError` that names the file, the rule and what was found, unless the rule holds."""
    if not holds:
        raise VectorFileError(f"{path} is damaged: {rule}, got {found!r:.80}.")


def check_metadata(path: str | os.PathLike, metadata: dict[str, str]):
    """
    Every text is there and of its kind; files of before there were checksums have none. Others are refused, as a
    checksum under a damaged name is one of them.
    """
    unknown = sorted(metadata.keys() - {*FIELDS, *OTHER_FIELDS, "sha256"})
    require(path, not unknown, "its metadata must be known", unknown)
    for name in ("model_name", "model_type"):
        is_name = name in metadata and 0 < len(metadata[name]) + (name == "model_name") <= MAX_NAME_LENGTH
        require(path, is_name, f"its `{name}` must be a text", metadata.get(name))
    for name in ("fingerprint", "sha256")[: 1 + ("sha256" in metadata)]:
        is_hash = SHA256.fullmatch(metadata.get(name, "")) is not None
        require(path, is_hash, f"its `{name}` must be a SHA-256 in hexadecimal digits", metadata.get(name))
    found = metadata.get("num_tokens", "")
    is_count = found.isascii() and found.isdecimal() and len(found) <= 15 and 1 <= int(found) <= MAX_TOKENS
    require(path, is_count, f"its `num_tokens` must be a whole number from 1 to {MAX_TOKENS}", found)


def parse(data: bytes) -> tuple[dict[str, dict], dict[str, str]]:
    """The tensors and the metadata of a safetensors file; a `SafetensorError` if it is damaged."""
    tensors = dict(deserialize(data))
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return tensors, header.get("__metadata__") or {}


def parse_named(path: str | os.PathLike, data: bytes) -> tuple[dict[str, dict], dict[str, str]]:
    """As `parse`, with a `VectorFileError` that names the file."""
    try:
        return parse(data)
    except SafetensorError as error:
        reason = " ".join(str(error).split())
        raise VectorFileError(f"{path} is damaged: {reason:.200}") from error


def to_vectors(path: str | os.PathLike, name: str, tensors: dict[str, dict]) -> torch.Tensor:
    """The one tensor of a file, of floats and with the right number of dimensions."""
    require(path, list(tensors) == [name], f"it must hold `{name}` alone", list(tensors))
    dtype, shape, data = (tensors[name][part] for part in ("dtype", "shape", "data"))
    require(path, dtype in DTYPES, f"the dtype of its vectors must be one of {', '.join(DTYPES)}", dtype)
    is_shape = len(shape) == 3 and min(shape) > 0
    require(path, is_shape, "the shape of its vectors must be (batch_size, length, width)", tuple(shape))
    return torch.frombuffer(data, dtype=DTYPES[dtype]).reshape(shape)


def check_vectors(path: str | os.PathLike, vectors: torch.Tensor, metadata: dict[str, str]):
    """They are those that were saved, and finite."""
    found = checksum(vectors, metadata)
    expected = metadata.get("sha256", found)
    require(path, found == expected, f"the SHA-256 of what it holds must be {expected[:16]}", found[:16])
    require(path, bool(vectors.isfinite().all()), "its vectors must be finite", "NaN or infinity")


def read_vectors(path: str | os.PathLike, kind: VectorFormat) -> tuple[torch.Tensor, dict[str, str]]:
    """
    Returns vectors `(batch_size, length, width)` and metadata of what [`write_vectors`] wrote.

    Raises:
        OSError: if the file is missing, damaged or of another kind; in the last two cases it is a `ValueError` too.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    # In one go: `safe_open` opens the file twice, and another one may have taken its place in between.
    tensors, metadata = parse_named(path, Path(path).read_bytes())
    if metadata.get("format") != kind.format:
        found = metadata.get("format")
        raise VectorFileError(f"{path} holds no {kind.name}: its format is {found!r:.80}, not {kind.format!r}.")
    check_metadata(path, metadata)
    vectors = to_vectors(path, kind.name, tensors)
    check_vectors(path, vectors, metadata)
    return vectors, metadata


def vector_facts(data: bytes, path: str) -> dict:
    """
    What a file of vectors of any kind says about itself, checked as `read_vectors` does.

    Raises:
        ValueError: for what is no such file, or a damaged one.
    """
    tensors, metadata = parse_named(path, data)
    known = metadata.get("format", "").startswith(FORMATS)
    require(path, known and len(tensors) == 1, "it must hold vectors of this package", metadata.get("format"))
    check_metadata(path, metadata)
    name = next(iter(tensors))
    vectors = to_vectors(path, name, tensors)
    check_vectors(path, vectors, metadata)
    return {"kind": name, **metadata, "shape": list(vectors.shape), "dtype": tensors[name]["dtype"]}


def check_model(
    path: str | os.PathLike,
    kind: VectorFormat,
    vectors: torch.Tensor,
    metadata: dict[str, str],
    model: PreTrainedModel,
    width: int,
):
    """Raises a `ValueError` unless the vectors are of this width and were made by the weights of this model."""
    made_by = f"{metadata['model_name']!r:.200} ({metadata['model_type']:.80})"
    origin = f"The {kind.name} {path} was made by {made_by}"
    if vectors.shape[-1] != width:
        raise ValueError(
            f"{origin} and has the width {vectors.shape[-1]}; {model.config.name_or_path!r} takes {width}."
        )
    if metadata["fingerprint"] != model_fingerprint(model):
        raise ValueError(
            f"{origin}, with other weights than those of {model.config.name_or_path!r}; vectors fit only the weights"
            f" that made them.{adapters_hint(metadata, model)}"
        )


def adapters_hint(metadata: dict[str, str], model: PreTrainedModel) -> str:
    """What differs where vectors were made with adapters beside the weights, or without, and the model is not."""
    if metadata.get("adapters", str(has_adapters(model))) == str(has_adapters(model)):
        return ""
    made, other = ("with", "without") if metadata["adapters"] == "True" else ("without", "with")
    return (
        f" They were made {made} adapters beside the weights, and this model is {other}: adapters that are merged"
        " (`merge_and_unload`) are other weights here, even if they compute the same. Load the vectors with the model"
        " in the form that made them, or make them anew."
    )


__all__ = [
    "VectorFileError",
    "VectorFormat",
    "check_model",
    "check_saveable",
    "read_vectors",
    "require",
    "vector_facts",
    "write_vectors",
]
