"""Summary vectors on disk: one safetensors file with the vectors and what they belong to."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
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
        return self.vectors.numel() * self.vectors.element_size()


@torch.no_grad()
def model_fingerprint(model: PreTrainedModel) -> str:
    """
    SHA-256 over the shape and the first row of every parameter, by which two sets of weights are told apart.

    Rows are rounded to bfloat16, so that a float32 and a bfloat16 load of one checkpoint agree. (A float32 checkpoint
    loaded in float16 may round differently and be refused.)
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        row = parameter.reshape(-1, parameter.shape[-1])[0].to(torch.bfloat16).cpu()
        digest.update(f"{name} {tuple(parameter.shape)}".encode() + row.view(torch.int16).numpy().tobytes())
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
        ValueError: if the softprompt is empty or of another shape, or `num_tokens` below 1.
        OSError: if the file cannot be written.
    """
    width = model.get_input_embeddings().embedding_dim
    if softprompt.ndim != 3 or softprompt.shape[2] != width or softprompt.numel() == 0:
        raise ValueError(
            f"`softprompt` must have the shape (batch_size, length, {width}), got {tuple(softprompt.shape)}."
        )
    if num_tokens < 1:
        raise ValueError(f"`num_tokens` must be 1 or more, got {num_tokens}.")
    path = Path(path)
    metadata = {
        "format": FORMAT,
        "model_name": model.config.name_or_path,
        "model_type": model.config.model_type,
        "fingerprint": model_fingerprint(model),
        "num_tokens": str(num_tokens),
        "compression_ratio": f"{num_tokens / softprompt.shape[1]:.4g}",
    }
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        save_file({"softprompt": softprompt.detach().contiguous().cpu()}, part, metadata=metadata)
        os.replace(part, path)
    except SafetensorError as error:
        raise OSError(f"Cannot write {path}: {error}") from error
    finally:
        part.unlink(missing_ok=True)


def load_softprompt(path: str | os.PathLike, model: PreTrainedModel | None = None) -> Softprompt:
    """
    Loads what [`save_softprompt`] wrote; with a model, onto its device and in its dtype.

    Raises:
        OSError: if the file is missing, damaged or of another kind.
        ValueError: if the vectors were made by other weights than those of `model`.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise OSError(f"{path} holds no softprompt: its format is {metadata.get('format')!r}, not {FORMAT!r}.")
            vectors = file.get_tensor("softprompt")
    except SafetensorError as error:
        raise OSError(f"{path} is damaged: {error}") from error
    if model is not None:
        if metadata["fingerprint"] != model_fingerprint(model):
            raise ValueError(
                f"The softprompt {path} was made by {metadata['model_name']!r} ({metadata['model_type']}), with other"
                f" weights than those of {model.config.name_or_path!r}; vectors fit only the weights that made them."
            )
        vectors = vectors.to(model.device, model.get_input_embeddings().weight.dtype)
    return Softprompt(vectors, int(metadata["num_tokens"]), metadata["model_name"], metadata["fingerprint"])


__all__ = ["Softprompt", "load_softprompt", "model_fingerprint", "save_softprompt"]
