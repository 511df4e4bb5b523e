"""Models on the hub: registered with the Auto classes, saved with their code, and pushed with a card.

The method of transformers, `register_for_auto_class`, would leave adapters without code, and copy torch's files in
place of ours where FSDP wraps a model. Here the code lies beside every config that is saved.
"""

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from sys import modules
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    create_branch,
    create_commit,
    create_repo,
    hf_hub_download,
    run_as_future,
)
from huggingface_hub.errors import EntryNotFoundError
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.dynamic_module_utils import get_relative_import_files
from transformers.utils import logging

from .model_card import CARD_FILE, Card, is_ours, is_repository, named


logger = logging.get_logger(__name__)

ADAPTER_CONFIG, BASE_FILE = "adapter_config.json", "adapted_base/base.json"
PUSHED = (".json", ".jinja", ".md", ".model", ".py", ".safetensors", ".txt")
# What a run leaves in its folder for itself.
OF_A_RUN = ("checkpoint-", "run_settings.json", "trainer_state.json", "runs/", "_", ".")


class Registered(NamedTuple):
    """A model that the Auto classes know."""

    model_class: type[PreTrainedModel]
    auto_class: type
    card: Card
    tokenizer_class: type[PreTrainedTokenizerBase] | None


REGISTERED: dict[type[PreTrainedConfig], Registered] = {}


def register(
    model_class: type[PreTrainedModel],
    auto_class: type,
    card: Card,
    tokenizer_class: type[PreTrainedTokenizerBase] | None = None,
):
    """
    Makes the Auto classes know a model, its config and its tokenizer. From then on they are saved with their code.

    Args:
        model_class (`type`): The model; it names its config class.
        auto_class (`type`): The Auto class that loads it.
        card (`Card`): What a card says of such models.
        tokenizer_class (`type`, *optional*): Its tokenizer, if that is one of this package.
    """
    config_class: Any = model_class.config_class
    AutoConfig.register(config_class.model_type, config_class)
    auto_class.register(config_class, model_class)  # type: ignore[attr-defined]
    if tokenizer_class is not None:
        AutoTokenizer.register(config_class, tokenizer_class=tokenizer_class)
        tokenizer_class.register_for_auto_class()
    REGISTERED[config_class] = Registered(model_class, auto_class, card, tokenizer_class)
    config_class.save_pretrained = save_config
    model_class.push_to_hub = push_to_hub  # type: ignore[method-assign]


def code_of(config_class: type[PreTrainedConfig]) -> tuple[dict[str, str], list[str]]:
    """What `auto_map` says of the classes of a model, and the files that define them."""
    found = REGISTERED[config_class]
    classes = {"AutoConfig": config_class, found.auto_class.__name__: found.model_class}
    auto_map = {name: f"{known.__module__.rpartition('.')[2]}.{known.__name__}" for name, known in classes.items()}
    model_file = str(modules[found.model_class.__module__].__file__)
    return auto_map, [model_file, *get_relative_import_files(model_file)]


def save_config(config: PreTrainedConfig, save_directory: str | Path, **kwargs: Any):
    """As `save_pretrained` in transformers; beside the config lie the code of its model, and a tokenizer of ours."""
    found = REGISTERED.get(type(config))
    if found is None:
        return PreTrainedConfig.save_pretrained(config, save_directory, **kwargs)
    config.auto_map, files = code_of(type(config))
    PreTrainedConfig.save_pretrained(config, save_directory, **kwargs)
    for file in files:
        shutil.copyfile(file, Path(save_directory, Path(file).name))
    if found.tokenizer_class is not None and not Path(save_directory, "tokenizer_config.json").exists():
        found.tokenizer_class().save_pretrained(save_directory)
    return None


def push_to_hub(
    model: PreTrainedModel,
    repo_id: str,
    *,
    max_shard_size: int | str = "50GB",
    tags: list[str] | None = None,
    **kwargs: Any,
) -> CommitInfo:
    """As in transformers, with a card of the family, unless there is one by hand. `kwargs`: as for [`push_folder`]."""
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder, max_shard_size=max_shard_size)
        beside = Path(model.name_or_path, CARD_FILE)
        adapters = Path(folder, ADAPTER_CONFIG).is_file()  # `beside` is the card of their base
        if not adapters and beside.is_file() and is_ours(beside.read_text(encoding="utf-8")):
            shutil.copyfile(beside, Path(folder, CARD_FILE))
        else:
            base_model = None if model.name_or_path == repo_id else model.name_or_path
            write_card(model.config, folder, repo_id.split("/")[-1], base_model, tags=tags)
        return push_folder(folder, repo_id, **{"commit_message": "Upload model", **kwargs})


def write_card(config: PreTrainedConfig, folder: str | Path, name: str, base_model: str | None, **facts: Any):
    """Writes the card of a model, unless its folder has one by hand. `name` and further facts: as in [`Card.text`]."""
    path = Path(folder, CARD_FILE)
    base_model = getattr(config, "base_name_or_path", None) or base_model
    found = REGISTERED.get(type(config))
    if found is not None and not (path.exists() and not is_ours(path.read_text(encoding="utf-8"))):
        path.write_text(found.card.text(config, name, base_model, **facts), encoding="utf-8")


def push_folder(
    folder: str | Path,
    repo_id: str,
    *,
    commit_message: str = "Upload folder",
    commit_description: str | None = None,
    private: bool | None = None,
    token: bool | str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
) -> CommitInfo:
    """
    Pushes a folder with a model or with adapters, such as `train.py` writes, without its checkpoints.

    Args:
        folder (`str` or `Path`): The folder.
        repo_id (`str`): The repository, which is made if it is not there. A card in it that was written by hand stays.
        commit_message, commit_description, private, token, revision, create_pr: As for `push_to_hub`.
    """
    repo_id = create_repo(repo_id, private=private, token=token, exist_ok=True).repo_id
    if revision is not None and not revision.startswith("refs/pr"):
        create_branch(repo_id, branch=revision, token=token, exist_ok=True)
    additions = dict(contents(Path(folder), repo_id))
    if has_card_by_hand(repo_id, revision, token):
        additions.pop(CARD_FILE, None)
    return create_commit(
        repo_id,
        [CommitOperationAdd(name, content) for name, content in additions.items()],
        commit_message=commit_message,
        commit_description=commit_description,
        token=token,
        revision=revision,
        create_pr=create_pr,
    )


def start_push(folder: str | Path, repo_id: str, **kwargs: Any) -> "Future[CommitInfo]":
    """
    As [`push_folder`], in the background and of a copy: the folder may change, or be deleted, meanwhile.

    Raises:
        OSError: if it cannot be copied, as on a full disk; no part of the copy is left then.
    """
    copy = TemporaryDirectory()
    try:
        copy_contents(Path(folder), Path(copy.name), repo_id)
    except BaseException:
        copy.cleanup()
        raise
    job = run_as_future(push_folder, copy.name, repo_id, **kwargs)
    job.add_done_callback(lambda _: copy.cleanup())
    return job


def copy_contents(folder: Path, copy: Path, repo_id: str):
    """Writes what a repository gets of a folder into another one."""
    for name, content in contents(folder, repo_id):
        target = copy / name
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(content) if isinstance(content, bytes) else shutil.copyfile(content, target)


def has_card_by_hand(repo_id: str, revision: str | None, token: bool | str | None) -> bool:
    try:
        card = hf_hub_download(repo_id, CARD_FILE, revision=revision, token=token)
    except EntryNotFoundError:
        return False
    return not is_ours(Path(card).read_text(encoding="utf-8"))


def contents(folder: Path, repo_id: str) -> Iterator[tuple[str, Path | bytes]]:
    """What a repository gets of a folder: names, and files or what stands in their place."""
    for path in sorted([*folder.glob("*"), *folder.glob("*/*")]):
        name = path.relative_to(folder).as_posix()
        if not path.is_file() or path.suffix not in PUSHED or name.startswith(OF_A_RUN):
            continue
        if name == CARD_FILE:
            yield name, named(path.read_text(encoding="utf-8"), repo_id).encode()
        elif name == ADAPTER_CONFIG and (folder / BASE_FILE).is_file():
            yield name, adapters_of(folder, repo_id)
        else:
            yield name, path


def adapters_of(folder: Path, repo_id: str) -> bytes:
    """The config of adapters: on the hub their repository, which has their config, loads as a model by itself."""
    config = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    base = json.loads((folder / BASE_FILE).read_text(encoding="utf-8"))["base_model_name_or_path"]
    if not is_repository(base):
        logger.warning_once(f"The base of these adapters is the folder {base}: who loads them needs it there.")
    return json.dumps(config | {"base_model_name_or_path": repo_id}, indent=2, sort_keys=True).encode()


__all__ = ["push_folder", "push_to_hub", "register", "start_push", "write_card"]
