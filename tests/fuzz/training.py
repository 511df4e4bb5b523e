"""A short run of `train.py` within this process, and what it leaves."""

from pathlib import Path

from train_testing import common_arguments

import train
from auto_compressor.files.bundled import BUNDLED_VALIDATION_TEXT


STEPS = 3
TINY = "--config_name tiny --summary_length 4 --block_size 32 --do_train --save_steps 1 --resume_from_checkpoint true"
TEXT = ["--train_file", str(BUNDLED_VALIDATION_TEXT), "--validation_split_percentage", "0"]


def train_to_the_end(folder: Path, steps: int = STEPS):
    """Trains in a folder, from the last checkpoint if there is one."""
    arguments = [*common_arguments(folder / "cache", folder / "out"), *TINY.split(), *TEXT, "--max_steps", steps]
    train.main([str(argument) for argument in arguments], prog="train.py")


def weights_of(folder: Path) -> bytes:
    return (folder / "out" / "model.safetensors").read_bytes()


def names_in(folder: Path) -> set[str]:
    """All files and folders, by their paths from a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}
