"""LoRA adapters of AutoCompressors: which can be trained, how they are saved, and how they are merged.

A folder of adapters also has the folder `adapted_base`, with the config of the AutoCompressor and the name of the
checkpoint that its weights come from. PEFT takes that as the base, so that nothing of the summary vectors is lost.
"""

import copy
import json
import logging
import re
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import snapshot_download
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import find_adapter_config_file

from .loading import CHECKPOINT_OPTIONS, checkpoint_options, load, reading, reports_only


if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel

ADAPTER_CONFIG = "adapter_config.json"
# What `from_pretrained` takes and is no field of a config.
MODEL_OPTIONS = ("attn_implementation", "device_map", "dtype", *CHECKPOINT_OPTIONS)
BASE_FOLDER, BASE_FILE = "adapted_base", "base.json"
DOWNLOAD_OPTIONS = ("cache_dir", "force_download", "local_files_only", "revision", "token")
ADAPTER_FILES = ("adapter_*", "config.json", f"{BASE_FOLDER}/*")


def tied_modules(model: PreTrainedModel, names: Iterable[str] | None) -> list[str]:
    """Those of `names`, as in `target_modules` of PEFT, that are the input or output embeddings of a tied model."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    if not model.config.tie_word_embeddings or None in ends:
        return []
    paths = [path for path, module in model.named_modules() if module in ends]
    return [name for name in names or () if any(f".{path}".endswith(f".{name}") for path in paths)]


def check_untied(argument: str, names: list[str], model: PreTrainedModel):
    """Raises a `ValueError` for adapters of weights that two modules share: merged, they would change both."""
    if tied := tied_modules(model, names):
        raise ValueError(
            f"{argument} must not name {', '.join(tied)}: the model ties its input and output embeddings, and adapters"
            " of one of them cannot be merged. Leave them out, or start from an untied model."
        )


def save_adapters(adapted: "PeftModel", save: Callable, folder: str, **kwargs: Any):
    """Saves adapters, without the embeddings that may have grown, and what they are the adapters of."""
    base = adapted.get_base_model()
    # Two rows are trained of embeddings that may have grown: by default all rows would be saved.
    save(adapted, folder, save_embedding_layers=False, **kwargs)
    if not kwargs.get("is_main_process", True):
        return
    target, config = Path(folder).resolve() / BASE_FOLDER, copy.deepcopy(base.config)
    # Adapters that were trained on weights of 4 bits are merged into whole ones.
    vars(config).pop("quantization_config", None)
    for written in (folder, target):
        config.save_pretrained(written)
    (target / BASE_FILE).write_text(json.dumps({"base_model_name_or_path": base.name_or_path}))
    settings = json.loads((Path(folder) / ADAPTER_CONFIG).read_text())
    settings["base_model_name_or_path"] = str(target)
    (Path(folder) / ADAPTER_CONFIG).write_text(json.dumps(settings, indent=2, sort_keys=True))


def downloaded(name: str, **kwargs: Any) -> str:
    """The folder that adapters of the hub are downloaded to; any other name as it is."""
    if Path(name).exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return name
    options = {key: kwargs[key] for key in DOWNLOAD_OPTIONS if kwargs.get(key) is not None}
    if find_adapter_config_file(name, **options) is None:
        return name
    return snapshot_download(name, allow_patterns=list(ADAPTER_FILES), **options)


def is_adapter(folder: str) -> bool:
    return (Path(folder) / ADAPTER_CONFIG).is_file()


def is_adapted_base(folder: str) -> bool:
    return (Path(folder) / BASE_FILE).is_file()


def base_name(folder: str) -> str:
    """The checkpoint under the adapters of a folder."""
    with reading(f"Cannot load the adapters {folder!r}"):
        if (Path(folder) / BASE_FOLDER / BASE_FILE).is_file():
            folder = str(Path(folder) / BASE_FOLDER)
        if is_adapted_base(folder):
            return json.loads((Path(folder) / BASE_FILE).read_text())["base_model_name_or_path"]
        return base_name_of_config(read_adapter_config(folder))


def read_adapter_config(folder: str) -> "PeftConfig":
    from peft import PeftConfig  # only here: PEFT imports transformers, which may be what imports this module

    return PeftConfig.from_pretrained(folder)


def base_name_of_config(config: "PeftConfig") -> str:
    """A base that was written with the adapters may have been moved: then it is not there."""
    name = config.base_model_name_or_path
    return base_name(name) if is_adapted_base(name) else name


@contextmanager
def adapters_complete(folder: str) -> Iterator[None]:
    """Within it, transformers does not report as missing what the adapters of a folder, or of that above, bring."""
    beside = next((path for path in (folder, str(Path(folder).parent)) if is_adapter(path)), None)
    with reading(f"Cannot load the adapters {folder!r}"):
        brought = tuple(read_adapter_config(beside).modules_to_save or ()) if beside else ()

    def is_news(record: logging.LogRecord) -> bool:
        return not reports_only(record.getMessage(), brought)

    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(is_news)
    try:
        yield
    finally:
        logger.removeFilter(is_news)


def load_adapted_base(
    model_class: type[PreTrainedModel], folder: str, config: PreTrainedConfig | None = None, **kwargs: Any
) -> PreTrainedModel:
    """Loads the checkpoint under adapters, with the config and the tokens that lie beside them."""
    options = {name: kwargs.pop(name) for name in MODEL_OPTIONS if kwargs.get(name) is not None}
    if config is None:
        config, kwargs = load(model_class.config_class, folder, return_unused_kwargs=True, **kwargs)
    base = base_name(folder)
    # Adapters may come with tokens that the base has no rows for.
    base_config = load(model_class.config_class, base, **checkpoint_options(options))
    num_tokens, config.vocab_size = config.vocab_size, base_config.vocab_size
    with adapters_complete(folder):
        model = load(model_class, base, config=config, **options, **kwargs)
    if num_tokens != model.config.vocab_size:
        model.resize_token_embeddings(num_tokens, mean_resizing=False)
    return model


def load_merged(model_class: type[PreTrainedModel], folder: str, **kwargs: Any) -> PreTrainedModel:
    """
    Loads adapters and merges them into their base.

    Args:
        model_class (`type`): The AutoCompressor.
        folder (`str`): What `train.py --lora` wrote.
        kwargs: As for `from_pretrained`; config fields such as `summary_length` too.

    Raises:
        OSError: if the adapters or their base are missing or damaged.
    """
    from peft import PeftModel

    model = load_adapted_base(model_class, folder, **kwargs)
    with reading(f"Cannot load the adapters {folder!r}"):
        ends = (model.get_input_embeddings(), model.get_output_embeddings())
        adapted = PeftModel.from_pretrained(model, folder)
        if model.config.tie_word_embeddings and are_adapted(model, ends):
            untie(model, ends[1])
        merged = adapted.merge_and_unload()
    return merged


def asked_by_peft() -> bool:
    """
    Whether `AutoPeftModelForCausalLM` loads a base, on which it will put the adapters itself.

    On the hub, that base has the name of the adapters, and no argument says what it is loaded for.
    """
    return any(frame.f_globals.get("__name__") == "peft.auto" for frame, _ in traceback.walk_stack(None))


def load_with_adapters(model_class: type, name: str, folder: str, output_loading_info: bool = False, **kwargs):
    """`from_pretrained` of adapters by their name and folder, or of what lies in the folder as their base."""
    for option in ("trust_remote_code", "adapter_kwargs", "adapter_name"):
        kwargs.pop(option, None)
    if is_adapter(folder) and not asked_by_peft():
        model = load_merged(model_class, folder, **kwargs)
        # Other weights than those of the base: adapters of their own, and stores, name what they belong to.
        model.name_or_path = model.config.name_or_path = name
    else:
        model = load_adapted_base(model_class, folder, **kwargs)
    nothing: dict[str, Any] = {
        "missing_keys": set(),
        "unexpected_keys": set(),
        "mismatched_keys": set(),
        "error_msgs": [],
    }
    return (model, nothing) if output_loading_info else model


def are_adapted(model: PreTrainedModel, ends: tuple[nn.Module, nn.Module]) -> bool:
    """Whether adapters took the place of one of the embeddings, however their config names them.

    Single rows (`trainable_token_indices`) are replaced, in both alike, and may stay shared.
    """
    from peft.utils.other import TrainableTokensWrapper

    now = (model.get_input_embeddings(), model.get_output_embeddings())
    replaced = [new for new, old in zip(now, ends, strict=True) if new is not old]
    return any(not isinstance(new, TrainableTokensWrapper) for new in replaced)


def named_modules(config: "PeftConfig") -> list[str]:
    targets = config.target_modules or []
    return [*([targets] if isinstance(targets, str) else targets), *(config.modules_to_save or [])]


@torch.no_grad()
def untie(model: PreTrainedModel, head: nn.Module):
    """Gives the head, without what adapters put around it, weights of its own, equal to those of the embeddings."""
    head.weight = nn.Parameter(head.weight.detach().clone())
    model.config.tie_word_embeddings = False


__all__ = [
    "check_untied",
    "downloaded",
    "is_adapted_base",
    "is_adapter",
    "load_adapted_base",
    "load_with_adapters",
    "save_adapters",
]
