"""Summary vectors on disk: one safetensors file with the vectors and what they belong to."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import PreTrainedModel


FORMAT = "auto_compressor.softprompt.v1"


@dataclass(frozen=True)
class Softprompt:
    """
    Summary vectors of a text.

    Args:
        vectors (`torch.Tensor` of shape `(batch_size, softprompt_length, embedding_dim)`): The softprompt.
        num_tokens (`int`): Tokens of each text that they stand for.
        model_name (`str`): Name or folder of the model that made them.
        fingerprint (`str`): Its weights, see [`model_fingerprint`].
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


@torch.no_grad()
def model_fingerprint(model: PreTrainedModel) -> str:
    """
    SHA-256 over the shape and the first row of every parameter, by which two sets of weights are told apart.

    It identifies the weights, not the name of the model; only first rows are read, so that it is cheap at 7B too.
    Rows are rounded to bfloat16, so that a float32 and a bfloat16 load of one checkpoint agree. A float32 checkpoint
    loaded in float16, or adapters merged in another dtype, may round differently and be refused; a training step too
    small to show in bfloat16 in any first row is not seen. Quantised weights are told apart by what they hold, in the
    order in which they are saved.
    """
    digest = hashlib.sha256()
    if any(hasattr(parameter, "quant_state") for parameter in model.parameters()):
        # On CPUs bitsandbytes reorders its weights at their first use; saving undoes that.
        model.state_dict()
    for name, parameter in sorted(model.named_parameters()):
        digest.update(f"{name} {tuple(parameter.shape)}".encode())
        for tensor in plain_tensors(parameter):
            row = first_row(tensor, parameter).to(torch.bfloat16).cpu()
            digest.update(row.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()


def plain_tensors(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """The tensors that a weight holds: itself, or those inside of a subclass, as quantised weights are."""
    if is_traceable_wrapper_subclass(tensor):
        for name in tensor.__tensor_flatten__()[0]:
            yield from plain_tensors(getattr(tensor, name))
    else:
        yield tensor


def first_row(tensor: torch.Tensor, parameter: torch.nn.Parameter) -> torch.Tensor:
    """The first row of a tensor; of a 4-bit weight, one column of bytes, as many bytes as its rows are wide."""
    shape = getattr(getattr(parameter, "quant_state", None), "shape", tensor.shape)
    return tensor.reshape(-1)[: shape[-1] if len(shape) else 1]


def has_adapters(model: PreTrainedModel) -> bool:
    return hasattr(model, "peft_config")


def _check_saveable(softprompt: torch.Tensor, width: int, num_tokens: int):
    if softprompt.ndim != 3 or softprompt.shape[2] != width or softprompt.numel() == 0:
        raise ValueError(
            f"`softprompt` must have the shape (batch_size, length, {width}), got {tuple(softprompt.shape)}."
        )
    if num_tokens < 1:
        raise ValueError(f"`num_tokens` must be 1 or more, got {num_tokens}.")


@contextmanager
def whole_file(path: Path, mode: str = "wb", **options) -> Iterator[IO]:
    """Opens a file beside `path` that takes its place at the end, down to the disk; an error leaves `path` alone."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with part.open(mode, **options) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_whole(path: Path, data: bytes):
    """Writes a file so that `path` is never there in part."""
    with whole_file(path) as file:
        file.write(data)


def save_softprompt(path: str | os.PathLike, softprompt: torch.Tensor, model: PreTrainedModel, num_tokens: int):
    """
    Saves summary vectors with the identity of their model; the file is there whole or not at all.

    Args:
        path: The file, usually `*.safetensors`. An old one is replaced.
        softprompt (`torch.Tensor` of shape `(batch_size, softprompt_length, embedding_dim)`): The vectors.
        model (`PreTrainedModel`): The AutoCompressor that made them.
        num_tokens (`int`): Tokens of each text that they stand for.

    Raises:
        ValueError: if the softprompt is empty or of another shape, or `num_tokens` below 1.
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
    write_whole(Path(path), save({"softprompt": vectors}, metadata))


def _read(path: str | os.PathLike) -> tuple[torch.Tensor, dict[str, str]]:
    """Returns vectors and metadata of a file; see `load_softprompt` for the errors."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise OSError(f"{path} holds no softprompt: its format is {metadata.get('format')!r}, not {FORMAT!r}.")
            return file.get_tensor("softprompt"), metadata
    except SafetensorError as error:
        raise OSError(f"{path} is damaged: {error}") from error


def _check_model(path: str | os.PathLike, vectors: torch.Tensor, metadata: dict[str, str], model: PreTrainedModel):
    origin = f"The softprompt {path} was made by {metadata['model_name']!r} ({metadata['model_type']})"
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
        OSError: if the file is missing, damaged or of another kind.
        ValueError: if the vectors have another width than those of `model`, or were made by other weights.
    """
    vectors, metadata = _read(path)
    if model is not None:
        _check_model(path, vectors, metadata, model)
        vectors = vectors.to(model.device, model.get_input_embeddings().weight.dtype)
    return Softprompt(vectors, int(metadata["num_tokens"]), metadata["model_name"], metadata["fingerprint"])


__all__ = ["Softprompt", "load_softprompt", "model_fingerprint", "save_softprompt", "whole_file", "write_whole"]
