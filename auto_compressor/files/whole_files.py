"""Files and folders that are there whole or not at all, whoever else writes them at the same time.

What is written goes beside its target, under a name that no two writers share: it says the machine, the process and a
random number. A run that is killed leaves it behind; the next write of the same target on this machine removes it.
"""

import hashlib
import os
import re
import secrets
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO


MAX_NAME_BYTES = 200  # of the target, so that what is added to its name still makes one that file systems take
PART = re.compile(r"\.([0-9a-f]{8})\.([0-9]+)\.[0-9a-f]{12}\.part")


@cache
def machine() -> str:
    """8 digits for this machine and its table of processes: a container has its own."""
    processes = os.readlink("/proc/self/ns/pid") if os.path.exists("/proc/self/ns/pid") else ""
    return hashlib.sha256(f"{socket.gethostname()} {processes}".encode()).hexdigest()[:8]


def short_name(path: Path) -> str:
    return os.fsdecode(os.fsencode(path.name)[:MAX_NAME_BYTES])


def new_part(path: Path, folder: Path | None = None) -> Path:
    """A name beside `path`, or in `folder`, that no other writer has."""
    name = f"{short_name(path)}.{machine()}.{os.getpid()}.{secrets.token_hex(6)}.part"
    return (folder or path.parent) / name


def is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def is_left_over(name: str, of: str) -> bool:
    """Whether this is the part of a file, of a process of this machine that is gone."""
    found = PART.fullmatch(name.removeprefix(of)) if name.startswith(of) else None
    return found is not None and found[1] == machine() and not is_running(int(found[2]))


def remove(path: Path):
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def remove_left_over(path: Path, folder: Path | None = None):
    """Removes what killed runs have left of the target `path`."""
    if os.name != "posix":  # elsewhere, asking for a process may end it
        return
    with suppress(OSError), os.scandir(folder or path.parent) as entries:
        for entry in entries:
            if is_left_over(entry.name, short_name(path)):
                remove(Path(entry.path))


@contextmanager
def naming_target(path: Path, part: Path) -> Iterator[None]:
    """An `OSError` about no file, as that of a full disk, or about the part, is one about the target."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename not in (None, str(part)):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextmanager
def whole_file(path: Path, mode: str = "wb", **options) -> Iterator[IO]:
    """Opens a file beside `path` that takes its place at the end, down to the disk; an error leaves `path` alone."""
    path = Path(path)
    remove_left_over(path)
    part = new_part(path)
    try:
        with naming_target(path, part):
            with part.open(mode.replace("w", "x"), **options) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
    finally:
        remove(part)


def write_whole(path: Path, data: bytes):
    """Writes a file so that `path` is never there in part."""
    with whole_file(path) as file:
        file.write(data)


def flush(path: Path):
    """Waits until a file is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_full(folder: Path) -> bool:
    """Whether this is a folder with something in it, which a rename cannot replace."""
    return folder.is_dir() and any(folder.iterdir())


def check_new_folder(folder: str | os.PathLike):
    """Raises an `OSError` for a folder that is to be written and has something in it."""
    folder = Path(folder)
    remove_left_over(folder, folder)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise FileExistsError(f"{folder} must be a new or an empty folder.")


def move_files(part: Path, folder: Path):
    """Gives files that are on the disk their names in a folder that keeps its others, one behind the other."""
    for path in sorted(part.iterdir()):
        os.replace(path, folder / path.name)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """
    Yields an empty folder, whose files are those of `folder` at the end; an error leaves `folder` alone.

    A new folder is there at once, with all its files. In one that is there already, others stay, and each of these
    takes the place of its old one when all of them are on the disk.
    """
    folder = Path(folder).absolute()
    within = folder if folder.is_dir() else folder.parent
    within.mkdir(parents=True, exist_ok=True)
    remove_left_over(folder, within)
    part = new_part(folder, within)
    try:
        with naming_target(folder, part):
            part.mkdir()
            yield part
            for path in (path for path in part.rglob("*") if path.is_file()):
                flush(path)
            place_folder(part, folder)
    finally:
        remove(part)


def place_folder(part: Path, folder: Path):
    """Makes a folder of parts `folder`, or moves them into it if it is there."""
    if folder.is_dir():
        return move_files(part, folder)
    try:
        os.replace(part, folder)
    except OSError:
        if not is_full(folder):  # that of another run, which was faster
            raise
        move_files(part, folder)


__all__ = ["check_new_folder", "remove_left_over", "whole_file", "whole_folder", "write_whole"]
