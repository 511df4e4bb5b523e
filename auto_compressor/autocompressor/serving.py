"""Other engines: the plain base model of an AutoCompressor, and the embeddings that stand for vectors and a prompt."""

import os
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from ..files.whole_files import check_new_folder, whole_file, whole_folder
from .checks import check_servable
from .configuration_autocompressor import AutoCompressorConfigMixin
from .loading import NEW_MODULES
from .softprompts import load_softprompt


# Fields of a config that say what wrote it.
ORIGIN = ("architectures", "auto_map", "model_type", "transformers_version")


def base_fields(model: PreTrainedModel) -> dict[str, Any]:
    """The fields of the config that the base model has too."""
    own = {*AutoCompressorConfigMixin.__dataclass_fields__, *ORIGIN}
    return {name: value for name, value in model.config.to_dict().items() if name not in own}


def plain_base(model: PreTrainedModel) -> PreTrainedModel:
    """
    The base model of an AutoCompressor, with its weights: it reads summary vectors in front of a prompt as that does.

    What makes summary vectors is left out; rows of control tokens stay in the embeddings.

    Raises:
        ValueError: if the base would give summary vectors other positions, or the weights are quantised.
    """
    check_servable(model)
    if getattr(model, "hf_quantizer", None) is not None:
        raise ValueError("The model must have plain weights to be exported, got quantised ones.")
    config = AutoConfig.for_model(model.config.base_model_type, **base_fields(model))
    weights = model.state_dict()
    weights = {name: tensor for name, tensor in weights.items() if name.split(".")[0] not in NEW_MODULES}
    base_class = AutoModelForCausalLM._model_mapping[type(config)]
    base = base_class.from_pretrained(None, config=config, state_dict=weights, dtype=model.dtype)
    base.generation_config = model.generation_config
    return base.eval()


def export_base(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: str | os.PathLike):
    """
    Writes the plain base model and its tokenizer, for transformers without this package, vLLM and others.

    Args:
        model (`PreTrainedModel`): An AutoCompressor; adapters must be merged.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        folder: The folder to write, new or empty; it is there whole or not at all.

    Raises:
        OSError: if the folder cannot be written or is not empty.
        ValueError: as [`plain_base`].
    """
    folder = Path(folder)
    check_new_folder(folder)
    base = plain_base(model)
    with whole_folder(folder) as part:
        base.save_pretrained(part)
        tokenizer.save_pretrained(part)


def export_prompt(
    model: PreTrainedModel, input_ids: torch.LongTensor, softprompt: str | os.PathLike, path: str | os.PathLike
) -> torch.Tensor:
    """
    Writes the embeddings of summary vectors and a prompt with `torch.save`, as vLLM takes them (`prompt_embeds`).

    Args:
        model (`PreTrainedModel`): The AutoCompressor.
        input_ids (`torch.LongTensor` of shape `(1, prompt_length)`): The prompt.
        softprompt: File of [`~softprompts.save_softprompt`] with the vectors of one text, made by `model`.
        path: The file to write, usually `*.pt`; it is there whole or not at all.

    Returns:
        `torch.Tensor` of shape `(tokens, embedding_dim)`: What was written, in the dtype of the model.

    Raises:
        OSError: if a file is missing, damaged or cannot be written.
        ValueError: if the vectors are of other weights or of several texts, or the model cannot be served.
    """
    vectors = load_softprompt(softprompt, model).vectors
    if len(vectors) != 1:
        raise ValueError(f"{softprompt} must hold the summary vectors of one text, it holds those of {len(vectors)}.")
    (embeds,) = model.to_prompt_embeds(input_ids, vectors)
    with whole_file(Path(path)) as file:
        torch.save(embeds.cpu().clone(), file)
    return embeds


__all__ = ["export_base", "export_prompt", "plain_base"]
