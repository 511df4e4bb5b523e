"""Summary vectors on disk: one safetensors file with the vectors and what they belong to."""

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

from ..files.identity import model_fingerprint
from ..files.whole_files import whole_file, write_whole


FORMAT = "auto_compressor.softprompt.v1"
TENSOR = "softprompt"
# By the names that safetensors has for them.
DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
MAX_TOKENS = 2**48
MAX_NAME_LENGTH = 4096
FIELDS = ("format", "model_name", "model_type", "fingerprint", "adapters", "num_tokens", "compression_ratio")
FIELDS += ("stored_bytes",)
SHA256 = re.compile("[0-9a-f]{64}")


class SoftpromptFileError(OSError, ValueError):
    """A file that is no softprompt, or a damaged one."""


@dataclass(frozen=True)
class Softprompt:
    """
    Summary vectors of a text.

    Args:
        vectors (`torch.Tensor` of shape `(batch_size, softprompt_length, embedding_dim)`): The softprompt.
        num_tokens (`int`): Tokens of each text that they stand for.
        model_name (`str`): Name or folder of the model that made them.
        fingerprint (`str`): The weights of that model, see [`model_fingerprint`].
    """

    vectors: torch.Tensor
    num_tokens: int
    model_name: str
    fingerprint: str

    @property
    def compression_ratio(self) -> float:
        """Tokens per vector."""
        return self.num_tokens / self.vectors.shape[1]

    @property
    def stored_bytes(self) -> int:
        """Bytes of the vectors, in the dtype that they have here."""
        return self.vectors.numel() * self.vectors.element_size()


def has_adapters(model: PreTrainedModel) -> bool:
    return hasattr(model, "peft_config")


def _check_saveable(softprompt: torch.Tensor, width: int, num_tokens: int):
    if softprompt.ndim != 3 or softprompt.shape[2] != width or softprompt.numel() == 0:
        raise ValueError(
            f"`softprompt` must have the shape (batch_size, length, {width}), got {tuple(softprompt.shape)}."
        )
    if softprompt.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise ValueError(f"`softprompt` must hold floats of 16 to 64 bits, got {softprompt.dtype}.")
    if not softprompt.isfinite().all():
        raise ValueError("`softprompt` must be finite, it holds NaN or infinity.")
    if isinstance(num_tokens, bool) or not isinstance(num_tokens, int):
        raise ValueError(f"`num_tokens` must be an integer, got {num_tokens!r}.")
    if not 1 <= num_tokens <= MAX_TOKENS:
        raise ValueError(f"`num_tokens` must be 1 or more, and {MAX_TOKENS} at most, got {num_tokens}.")


def _checksum(vectors: torch.Tensor, metadata: dict[str, str]) -> str:
    """SHA-256 over the vectors, their dtype and shape, and the metadata."""
    told = sorted((key, value) for key, value in metadata.items() if key != "sha256")
    digest = hashlib.sha256(repr((told, str(vectors.dtype), tuple(vectors.shape))).encode("utf-8", "replace"))
    digest.update(vectors.contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def save_softprompt(path: str | os.PathLike, softprompt: torch.Tensor, model: PreTrainedModel, num_tokens: int):
    """
    Saves summary vectors with the identity of their model; the file is there whole or not at all.

    Args:
        path: The file, usually `*.safetensors`. An old one is replaced.
        softprompt (`torch.Tensor` of shape `(batch_size, softprompt_length, embedding_dim)`): The vectors.
        model (`PreTrainedModel`): The AutoCompressor that made them.
        num_tokens (`int`): Tokens of each text that they stand for.

    Raises:
        ValueError: if the softprompt is empty, of another shape, no floats or not finite, or `num_tokens` below 1.
        OSError: if the file cannot be written.
    """
    _check_saveable(softprompt, model.get_input_embeddings().embedding_dim, num_tokens)
    metadata = {
        "format": FORMAT,
        "model_name": model.config.name_or_path,
        "model_type": model.config.model_type,
        "fingerprint": model_fingerprint(model),
        "adapters": str(has_adapters(model)),
        "num_tokens": str(num_tokens),
        "compression_ratio": f"{num_tokens / softprompt.shape[1]:.4g}",
        "stored_bytes": str(softprompt.numel() * softprompt.element_size()),
    }
    vectors = softprompt.detach().contiguous().cpu()
    metadata["sha256"] = _checksum(vectors, metadata)
    write_whole(Path(path), save({TENSOR: vectors}, metadata))


def _require(path: str | os.PathLike, holds: bool, rule: str, found: object):
    """Raises a `SoftpromptFileError` that names the file, the rule and what was found, unless the rule holds."""
    if not holds:
        raise SoftpromptFileError(f"{path} is damaged: {rule}, got {found!r:.80}.")


def _check_metadata(path: str | os.PathLike, metadata: dict[str, str]):
    """
    Every text is there and of its kind; files of before there were checksums have none. Others are refused, as a
    checksum under a damaged name is one of them.
    """
    unknown = sorted(metadata.keys() - {*FIELDS, "sha256"})
    _require(path, not unknown, "its metadata must be known", unknown)
    for name in ("model_name", "model_type"):
        is_name = name in metadata and 0 < len(metadata[name]) + (name == "model_name") <= MAX_NAME_LENGTH
        _require(path, is_name, f"its `{name}` must be a text", metadata.get(name))
    for name in ("fingerprint", "sha256")[: 1 + ("sha256" in metadata)]:
        is_hash = SHA256.fullmatch(metadata.get(name, "")) is not None
        _require(path, is_hash, f"its `{name}` must be a SHA-256 in hexadecimal digits", metadata.get(name))
    found = metadata.get("num_tokens", "")
    is_count = found.isascii() and found.isdecimal() and len(found) <= 15 and 1 <= int(found) <= MAX_TOKENS
    _require(path, is_count, f"its `num_tokens` must be a whole number from 1 to {MAX_TOKENS}", found)


def _parse(data: bytes) -> tuple[dict[str, dict], dict[str, str]]:
    """The tensors and the metadata of a safetensors file; a `SafetensorError` if it is damaged."""
    tensors = dict(deserialize(data))
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return tensors, header.get("__metadata__") or {}


def _to_vectors(path: str | os.PathLike, tensors: dict[str, dict]) -> torch.Tensor:
    """The one tensor of a file, of floats and with the right number of dimensions."""
    _require(path, list(tensors) == [TENSOR], f"it must hold `{TENSOR}` alone", list(tensors))
    dtype, shape, data = (tensors[TENSOR][name] for name in ("dtype", "shape", "data"))
    _require(path, dtype in DTYPES, f"the dtype of its vectors must be one of {', '.join(DTYPES)}", dtype)
    is_shape = len(shape) == 3 and min(shape) > 0
    _require(path, is_shape, "the shape of its vectors must be (batch_size, length, width)", tuple(shape))
    return torch.frombuffer(data, dtype=DTYPES[dtype]).reshape(shape)


def _check_vectors(path: str | os.PathLike, vectors: torch.Tensor, metadata: dict[str, str]):
    """They are those that were saved, and finite."""
    found = _checksum(vectors, metadata)
    expected = metadata.get("sha256", found)
    _require(path, found == expected, f"the SHA-256 of what it holds must be {expected[:16]}", found[:16])
    _require(path, bool(vectors.isfinite().all()), "its vectors must be finite", "NaN or infinity")


def _read(path: str | os.PathLike) -> tuple[torch.Tensor, dict[str, str]]:
    """Returns vectors and metadata of a file; see `load_softprompt` for the errors."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        # In one go: `safe_open` opens the file twice, and another one may have taken its place in between.
        tensors, metadata = _parse(Path(path).read_bytes())
    except SafetensorError as error:
        reason = " ".join(str(error).split())
        raise SoftpromptFileError(f"{path} is damaged: {reason:.200}") from error
    if metadata.get("format") != FORMAT:
        found = metadata.get("format")
        raise SoftpromptFileError(f"{path} holds no softprompt: its format is {found!r:.80}, not {FORMAT!r}.")
    _check_metadata(path, metadata)
    vectors = _to_vectors(path, tensors)
    _check_vectors(path, vectors, metadata)
    return vectors, metadata


def _check_model(path: str | os.PathLike, vectors: torch.Tensor, metadata: dict[str, str], model: PreTrainedModel):
    origin = f"The softprompt {path} was made by {metadata['model_name']!r:.200} ({metadata['model_type']:.80})"
    width = model.get_input_embeddings().embedding_dim
    if vectors.shape[-1] != width:
        raise ValueError(
            f"{origin} and has the width {vectors.shape[-1]}; {model.config.name_or_path!r} takes {width}."
        )
    if metadata["fingerprint"] != model_fingerprint(model):
        raise ValueError(
            f"{origin}, with other weights than those of {model.config.name_or_path!r}; vectors fit only the weights"
            f" that made them.{_adapters_hint(metadata, model)}"
        )


def _adapters_hint(metadata: dict[str, str], model: PreTrainedModel) -> str:
    if metadata.get("adapters", str(has_adapters(model))) == str(has_adapters(model)):
        return ""
    made, other = ("with", "without") if metadata["adapters"] == "True" else ("without", "with")
    return (
        f" They were made {made} adapters beside the weights, and this model is {other}: adapters that are merged"
        " (`merge_and_unload`) are other weights here, even if they compute the same. Load the vectors with the model"
        " in the form that made them, or make them anew."
    )


def load_softprompt(path: str | os.PathLike, model: PreTrainedModel | None = None) -> Softprompt:
    """
    Loads what [`save_softprompt`] wrote; with a model, onto its device and in its dtype.

    Raises:
        OSError: if the file is missing, damaged or of another kind; in the last two cases it is a `ValueError` too.
        ValueError: if the vectors do not fit the dtype of `model`,
            have another width than those of `model`, or were made by other weights.
    """
    vectors, metadata = _read(path)
    if model is not None:
        _check_model(path, vectors, metadata, model)
        vectors = vectors.to(model.device, model.get_input_embeddings().weight.dtype)
        _require(path, bool(vectors.isfinite().all()), f"its vectors must be finite in {vectors.dtype}", "infinity")
    return Softprompt(vectors, int(metadata["num_tokens"]), metadata["model_name"], metadata["fingerprint"])


__all__ = [
    "Softprompt",
    "SoftpromptFileError",
    "load_softprompt",
    "save_softprompt",
    "whole_file",
    "write_whole",
]
