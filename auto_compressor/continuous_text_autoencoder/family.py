"""What `train.py` must know of continuous text autoencoders."""

from dataclasses import fields
from typing import Any

from transformers import (
    AutoModel,
    PreTrainedTokenizerBase,
)

from ..files import loading
from ..files.bundled import BUNDLED_TOKENIZER
from ..training.data import DataCollator
from ..training.family import Family, RunArguments, make_or_load
from .arguments import ContinuousTextArguments, ContinuousTrainingArguments
from .configuration_continuous_text_autoencoder import ContinuousTextAutoencoderConfig
from .modeling_continuous_text_autoencoder import ContinuousTextAutoencoder, check_tokenizer
from .trainer import ContinuousTrainer


BLOCK_SIZE = 128  # tokens, as published
# Of new models of the architecture `chunk`; those of `conv` are as published.
CHUNK_FIELDS = {"architecture": "chunk", "hidden_size": 256, "tie_word_embeddings": True, "kl_clip": 0.5}
# Arguments that are no fields of the config.
SOURCE_OPTIONS = ("model_name_or_path", "tokenizer_name", "cache_dir")


def load_continuous_text(
    model_args: ContinuousTextArguments,
) -> tuple[ContinuousTextAutoencoder, PreTrainedTokenizerBase]:
    """Makes a new model for the tokenizer, or loads --model_name_or_path, whose tokenizer it must be.

    Raises:
        ValueError: for values that make no model, or a tokenizer of another size than the model.
        OSError: if model or tokenizer cannot be read.
    """
    tokenizer_name = model_args.tokenizer_name or model_args.model_name_or_path or BUNDLED_TOKENIZER
    try:
        tokenizer = loading.load_tokenizer(tokenizer_name, cache_dir=model_args.cache_dir)
    except OSError as error:
        raise OSError(f"There is no tokenizer in {str(tokenizer_name)!r}: give --tokenizer_name.") from error
    values = {field.name: getattr(model_args, field.name) for field in fields(model_args)}
    given = {name: value for name, value in values.items() if value not in (None, []) and name not in SOURCE_OPTIONS}
    if model_args.model_name_or_path is None:
        chunk = given.get("architecture", "chunk") == "chunk"
        given = (CHUNK_FIELDS if chunk else {}) | given | {"vocab_size": len(tokenizer)}
    model = make_or_load(AutoModel, ContinuousTextAutoencoderConfig, model_args, given)
    check_tokenizer(tokenizer, model.config.vocab_size)
    return model, tokenizer


def trainer_options(
    model: ContinuousTextAutoencoder, tokenizer: PreTrainedTokenizerBase, arguments: RunArguments
) -> dict[str, Any]:
    # Rows of other lengths are masked.
    return {"data_collator": DataCollator(pad_token_id=0), "processing_class": tokenizer}


FAMILY = Family(
    trainer=ContinuousTrainer,
    model_arguments=ContinuousTextArguments,
    training_arguments=ContinuousTrainingArguments,
    load=lambda arguments: load_continuous_text(arguments.model),
    block_size=lambda model, arguments: BLOCK_SIZE,
    trainer_options=trainer_options,
)

__all__ = ["FAMILY"]
