"""Checkpoints of which a file is damaged: a run goes on as if it had never stopped, or says why it does not."""

import random
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from .cases import DOCUMENTED, Case, require_right, seconds_of
from .mutations import BYTES, JSON, Mutation, damaged, other_header_length
from .training import STEPS, train_to_the_end, weights_of


ENDINGS: dict[str, list[Mutation]] = {".json": JSON, ".safetensors": [*BYTES[1:], other_header_length]}
NOT_READ = ("README.md", "training_args.bin", "generation_config.json")  # by a run that goes on


def go_on(folder: Path, expected: bytes):
    """The weights at the end must be those of a run without a stop."""
    train_to_the_end(folder)
    require_right(weights_of(folder) == expected, "other weights than those of a run without a stop")


def damage_file(path: Path, index: int, draw: random.Random):
    """A file is damaged, or is missing."""
    ways = ENDINGS.get(path.suffix, BYTES)
    way = index % (len(ways) + 1)
    if way == len(ways):
        path.unlink()
    else:
        path.write_bytes(damaged(path.read_bytes(), ways, way, draw))


def checkpoints(folder: Path, count: int, seed: int) -> Iterator[Case]:
    """The newest of two checkpoints of a run that was stopped, with every file damaged in turn."""
    whole, stopped, path, draw = folder / "whole", folder / "stopped", folder / "damaged", random.Random(seed)
    seconds = 5 * seconds_of(partial(train_to_the_end, whole))
    shutil.copytree(whole, stopped)
    shutil.rmtree(stopped / "out" / f"checkpoint-{STEPS}")
    (stopped / "out" / "model.safetensors").unlink()
    newest = stopped / "out" / f"checkpoint-{STEPS - 1}"
    names = sorted(file.name for file in newest.iterdir() if file.name not in NOT_READ)
    for index in range(-1, count):
        shutil.copytree(stopped, path)
        if index >= 0:
            damage_file(path / newest.relative_to(stopped) / names[index % len(names)], index // len(names), draw)
        run = partial(go_on, path, weights_of(whole))
        yield Case("resuming", run, path, None, (*DOCUMENTED, SystemExit), seconds)
        shutil.rmtree(path)
