"""Going on from a checkpoint: the newest one that can be read, and only with the settings of its run."""

import json
import re
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from safetensors import SafetensorError, safe_open
from transformers import TrainerState
from transformers import TrainingArguments as HfTrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

from ..files.whole_files import write_whole


logger = logging.get_logger(__name__)

SETTINGS_FILE, STATE_FILE = "run_settings.json", "trainer_state.json"
HALF_WRITTEN = re.compile(r"\.tmp[A-Za-z0-9]{6}")  # as safetensors calls a file until it is whole
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors")

# Arguments that change neither model nor data: where and how they are kept, and how text is prepared.
NOT_SETTINGS = ("cache_dir", "overwrite_cache", "preprocessing_num_workers", "num_samples", "attn_implementation")
NOT_SETTINGS += ("validation_file", "preprocessed_validation_datasets", "max_eval_samples", "use_fast_tokenizer")

# Arguments of the trainer that change the model or the data.
TRAINER_SETTINGS = ("learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm")
TRAINER_SETTINGS += ("lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "optim", "seed", "data_seed", "bf16")
TRAINER_SETTINGS += ("fp16", "label_smoothing_factor", "neftune_noise_alpha")


def settings_of(model_args: Any, data_args: Any, training_args: HfTrainingArguments) -> dict[str, Any]:
    """What makes a run the one that it is, by the names of its arguments."""
    groups = [asdict(group) for group in (model_args, data_args) if is_dataclass(group)]
    settings = {name: value for group in groups for name, value in group.items() if name not in NOT_SETTINGS}
    own = set(vars(training_args)) & (own_fields(type(training_args)) | set(TRAINER_SETTINGS))
    settings |= {name: getattr(training_args, name) for name in own}
    per_device = training_args.per_device_train_batch_size * training_args.gradient_accumulation_steps
    settings["sequences of a step"] = per_device * training_args.world_size
    return json.loads(json.dumps(settings, default=str, sort_keys=True))


def own_fields(arguments: type) -> set[str]:
    """Fields of a family's training arguments that those of transformers lack."""
    return set(arguments.__dataclass_fields__) - set(HfTrainingArguments.__dataclass_fields__)


def check_settings(folder: Path, settings: dict[str, Any]):
    """
    Raises a `ValueError` if the checkpoints of a folder are of a run with other settings: they would be gone on from,
    now or the next time. Runs of before settings were written pass.
    """
    path = folder / SETTINGS_FILE
    if not checkpoints(str(folder)):
        return
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        differing = {name: known[name] for name in sorted(known.keys() & settings.keys())}
    except FileNotFoundError:
        return
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path} must be the settings of a run, it is damaged: {error}") from error
    changes = [f"{name} {old!r}, now {settings[name]!r}" for name, old in differing.items() if old != settings[name]]
    if changes:
        raise ValueError(
            f"{folder} has checkpoints of a run with other settings ({'; '.join(changes)}). Give another"
            " --output_dir, or the settings of that run."
        )


def write_settings(folder: Path, settings: dict[str, Any]):
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / SETTINGS_FILE, json.dumps(settings, indent=2).encode())


def remove_left_over(folder: Path):
    """Removes what safetensors was writing in a folder and its checkpoints when the run was killed."""
    for path in [*folder.glob(".tmp*"), *folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*/.tmp*")]:
        if HALF_WRITTEN.fullmatch(path.name):
            path.unlink(missing_ok=True)


def step_of(folder: Path) -> int:
    return int(folder.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-"))


def checkpoints(output_dir: str) -> list[Path]:
    """The checkpoints whose state says the step of their name, newest first: the state is written last."""
    found = [folder for folder in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*") if is_finished(folder)]
    return sorted(found, key=step_of, reverse=True)


def is_finished(folder: Path) -> bool:
    try:
        return (state_in(folder) or {}).get("global_step") == step_of(folder)
    except ValueError:  # no number in the name
        return False


def state_in(folder: Path) -> dict[str, Any] | None:
    """The state of a trainer, which it writes last; `None` if it is missing or damaged."""
    try:
        state = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    kinds = get_type_hints(TrainerState) | {"stateful_callbacks": dict | None}  # on disk, what they hold
    is_state = isinstance(state, dict) and state.keys() <= kinds.keys()
    return state if is_state and all(fits(state[name], kinds[name]) for name in state) else None


def fits(value: Any, kind: Any) -> bool:
    """Whether a value of JSON may be that of a field of this type; every number may be whole or not."""
    kinds = [get_origin(part) or part for part in (get_args(kind) if isinstance(kind, UnionType) else [kind])]
    return isinstance(value, (*kinds, int, float) if {int, float} & set(kinds) else tuple(kinds))


def damage(folder: Path) -> str | None:
    """What is missing or cannot be read of a checkpoint, if anything is."""
    if not any((folder / name).is_file() for name in WEIGHTS):
        return "it has no weights"
    if state_in(folder) is None:
        return f"{STATE_FILE} is missing or damaged"
    sharded = any(folder.glob("global_step*")) or any(folder.glob("*fsdp*")) or any(folder.glob("optimizer_*"))
    for path in [] if sharded else needed_files(folder):
        if not path.is_file():
            return f"{path.name} is missing"
    files = [path for path in folder.rglob("*") if path.suffix in (".pt", ".pth", ".safetensors")]
    return next((f"{path.relative_to(folder)} is damaged" for path in files if not is_readable(path)), None)


def needed_files(folder: Path) -> Iterator[Path]:
    """What the trainer and the sharded weights consist of."""
    yield from (folder / "optimizer.pt", folder / "scheduler.pt")
    yield next(folder.glob("rng_state_*.pth"), folder / "rng_state.pth")
    if (index := folder / "model.safetensors.index.json").is_file():
        try:
            yield from {folder / name for name in json.loads(index.read_text())["weight_map"].values()}
        except (ValueError, KeyError, AttributeError, TypeError):
            yield folder / "shards of model.safetensors.index.json"


def is_readable(path: Path) -> bool:
    """Whether a file is whole: the checksums of what torch wrote, the sizes in the header of safetensors."""
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt"):
                return True
        with zipfile.ZipFile(path) as file:
            return file.testzip() is None
    except (OSError, SafetensorError, zipfile.BadZipFile, EOFError, NotImplementedError):
        return False


def last_whole_checkpoint(output_dir: str) -> str | None:
    """Returns the newest checkpoint that can be read; a warning names newer ones that cannot."""
    for folder in checkpoints(output_dir):
        if (found := damage(folder)) is None:
            return str(folder)
        logger.warning("The checkpoint %s cannot be resumed from: %s.", folder, found)
    return None


def find_checkpoint(training_args: HfTrainingArguments) -> str | None:
    """
    `--resume_from_checkpoint`: a folder, `true` for the last one there is, or none.

    Raises:
        OSError: if the folder that is given lacks something or is damaged.
    """
    asked = training_args.resume_from_checkpoint
    if asked is None or str(asked).lower() == "false":
        return None
    if str(asked).lower() == "true":
        return last_whole_checkpoint(training_args.output_dir)
    if (found := damage(Path(asked))) is not None:
        raise OSError(f"--resume_from_checkpoint {asked} cannot be resumed from: {found}.")
    return str(asked)


__all__ = [
    "check_settings",
    "find_checkpoint",
    "last_whole_checkpoint",
    "remove_left_over",
    "settings_of",
    "write_settings",
]
