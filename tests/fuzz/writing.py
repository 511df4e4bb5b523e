"""Writers that are killed, and writers that meet on one target."""

import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch

from auto_compressor.autocompressor.softprompts import load_softprompt, save_softprompt
from auto_compressor.byte_lm.codec import decompress_bytes
from auto_compressor.cli.main import main as command
from auto_compressor.files.whole_files import whole_file, whole_folder

from .cases import Case, require_right, seconds_of, share
from .models import make_model
from .training import names_in, train_to_the_end, weights_of


PATIENCE = 60.0
PIECE, PIECES = 2**16, 64
LETTERS, ROUNDS = ("abcd", "efgh"), 5  # of two processes, one for each thread
Check = Callable[[Path], None]


# Kills


def forked(run: Callable[[], None]) -> int:
    """Begins work in a process of its own, which ends with 0 if all went well, and returns its id."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        run()
        code = 0
    finally:
        os._exit(code)


def kill_and_run(run: Callable[[Path], None], check: Check, folder: Path, delay: float):
    """Work that is killed after a time is done from the beginning, and checked."""
    folder.mkdir()
    process = forked(partial(run, folder))
    time.sleep(delay)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    run(folder)
    check(folder)


def compress(model: Path, text: Path, folder: Path):
    code = command(["compress", str(text), "-o", str(folder / "text.acm"), "--model", str(model), "--device", "cpu"])
    require_right(code == 0, f"the command ended with {code}")


def check_compressed(text: Path, folder: Path):
    require_right(names_in(folder) == {"text.acm"}, f"the folder has {sorted(names_in(folder))}")
    found = decompress_bytes(make_model("gru_byte"), (folder / "text.acm").read_bytes())
    require_right(found == text.read_bytes(), "other bytes came back")


def check_trained(expected: Path, folder: Path):
    require_right(weights_of(folder) == weights_of(expected), "other weights than those of a run without a stop")
    found, names = names_in(folder / "out"), names_in(expected / "out")
    require_right(found == names, f"more or less is left: {sorted(found ^ names)}")
    halves = sorted(name for name in names_in(folder) if name.endswith((".part", ".tmp", ".incomplete")))
    require_right(not halves, f"there is {halves}")


def write_all(folder: Path):
    """A file and a folder of two, each written piece by piece."""
    with whole_file(folder / "file") as file, whole_folder(folder / "folder") as part:
        for _ in range(PIECES):
            file.write(b"a" * PIECE)
        for name in ("x", "y"):
            (part / name).write_bytes(b"a" * PIECE * PIECES)


def check_written(folder: Path):
    expected = {"file", "folder", "folder/x", "folder/y"}
    require_right(names_in(folder) == expected, f"the folder has {sorted(names_in(folder))}")
    for path in (folder / "file", folder / "folder" / "x", folder / "folder" / "y"):
        require_right(path.read_bytes() == b"a" * PIECE * PIECES, f"{path} is not whole")


def killed_work(folder: Path) -> dict[str, tuple[Callable[[Path], None], Check]]:
    """The work that is killed and the check of its result, by kind."""
    make_model("gru_byte").save_pretrained(folder / "model")
    text, whole = folder / "text", folder / "whole"
    text.write_bytes(b"In the beginning there was a king. " * 10)
    seconds_of(partial(train_to_the_end, whole))
    return {
        "training": (train_to_the_end, partial(check_trained, whole)),
        "compress": (partial(compress, folder / "model", text), partial(check_compressed, text)),
        "a file and a folder": (write_all, check_written),
    }


def kills(folder: Path, count: int, seed: int) -> Iterator[Case]:
    """SIGKILL at any time: after the next run its result is whole, and nothing else is there."""
    draw = random.Random(seed)
    works = killed_work(folder)
    for place, (kind, (run, check)) in enumerate(works.items()):
        timed = folder / f"timed-{place}"
        timed.mkdir()
        longest = seconds_of(partial(run, timed))
        for index in range(-1, share(count, place, len(works))):
            delay = longest * draw.random() if index >= 0 else 0
            path = folder / f"{place}-{index}"
            yield Case(kind, partial(kill_and_run, run, check, path, delay), path, errors=(), seconds=PATIENCE)
            shutil.rmtree(path)


# Two processes and their threads


def write_letters(path: Path, letter: str):
    for _ in range(ROUNDS):
        with whole_file(path) as file:
            for _ in range(4):
                file.write(letter.encode() * PIECE)


def write_folders(path: Path, letter: str):
    for _ in range(ROUNDS):
        with whole_folder(path) as part:
            for name in ("x", "y"):
                (part / name).write_bytes(letter.encode() * 4 * PIECE)


def write_softprompts(path: Path, letter: str):
    model = make_model("llama")
    for _ in range(ROUNDS):
        save_softprompt(path, torch.full((4, 64, model.config.hidden_size), float(ord(letter))), model, 100)


def check_letters(path: Path):
    data = path.read_bytes()
    require_right(len(data) == 4 * PIECE and len(set(data)) == 1, f"{path} is not whole, or of several writers")


def check_folder(path: Path):
    """Both files are there from the beginning, each whole."""
    for name in ("x", "y"):
        check_letters(path / name)


def check_softprompt(path: Path):
    require_right(len(load_softprompt(path).vectors.unique()) == 1, f"{path} is of several writers")


TARGETS: dict[str, tuple[Callable[[Path, str], None], Check]] = {
    "a file": (write_letters, check_letters),
    "a softprompt": (write_softprompts, check_softprompt),
    "a folder": (write_folders, check_folder),
}


def in_threads(write: Callable[[Path, str], None], path: Path, letters: str):
    with ThreadPoolExecutor(len(letters)) as threads:
        list(threads.map(partial(write, path), letters))


def is_alive(process: int) -> bool:
    return os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def write_at_once(write: Callable[[Path, str], None], check: Check, folder: Path):
    """Two processes of four threads write one target, which is whole whenever it is there, and alone at the end."""
    folder.mkdir()
    path = folder / "target"
    processes = [forked(partial(in_threads, write, path, letters)) for letters in LETTERS]
    while any(is_alive(process) for process in processes):
        if path.exists():
            check(path)
    codes = [os.waitpid(process, 0)[1] for process in processes]
    require_right(codes == [0] * len(codes), f"the writers ended with {codes}")
    check(path)
    expected = {"target", "target/x", "target/y"} if path.is_dir() else {"target"}
    require_right(names_in(folder) == expected, f"there is {sorted(names_in(folder))}")


def writers(folder: Path, count: int, seed: int) -> Iterator[Case]:
    """Two processes of four threads each that write one target."""
    for place, (kind, (write, check)) in enumerate(TARGETS.items()):
        for index in range(-1, share(count, place, len(TARGETS))):
            path = folder / f"{kind}-{index}"
            yield Case(kind, partial(write_at_once, write, check, path), path, errors=(), seconds=PATIENCE)
            shutil.rmtree(path)
