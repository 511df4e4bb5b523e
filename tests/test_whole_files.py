"""Files and folders that are there whole or not at all."""

import multiprocessing
import os
import subprocess
import sys
import threading

import pytest

from auto_compressor.files import whole_files
from auto_compressor.files.whole_files import new_part, whole_file, whole_folder, write_whole


SIZE = 200_000


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def write_often(path, letters):
    """Writes a file of one letter, one thread for each."""

    def write(letter):
        for _ in range(10):
            write_whole(path, letter.encode() * SIZE)

    threads = [threading.Thread(target=write, args=letter) for letter in letters]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_two_processes_and_four_threads_end_with_one_whole_file(tmp_path):
    path, spawn = tmp_path / "file", multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=write_often, args=(path, letters)) for letters in ("ab", "cd")]
    for process in processes:
        process.start()
    seen = set()
    while any(process.is_alive() for process in processes):
        if path.exists():
            data = path.read_bytes()
            assert len(data) == SIZE and len(set(data)) == 1
            seen |= set(data)
    assert [process.exitcode for process in processes] == [0, 0]
    assert seen <= set(b"abcd") and len(set(path.read_bytes())) == 1
    assert names(tmp_path) == ["file"]


KILLED = """
import os, sys
from pathlib import Path
from auto_compressor.files.whole_files import whole_file, whole_folder

with whole_file(Path(sys.argv[1])) as file, whole_folder(Path(sys.argv[2])) as folder:
    file.write(b"half")
    (folder / "half").write_bytes(b"half")
    os.kill(os.getpid(), 9)
"""


def test_what_a_killed_run_left_goes_at_the_next_write(tmp_path):
    path, folder = tmp_path / "file", tmp_path / "folder"
    assert subprocess.run([sys.executable, "-c", KILLED, path, folder]).returncode == -9
    assert len(names(tmp_path)) == 2 and all(name.endswith(".part") for name in names(tmp_path))
    write_whole(tmp_path / "another", b"")
    assert len(names(tmp_path)) == 3
    write_whole(path, b"whole")
    with whole_folder(folder) as part:
        (part / "whole").write_bytes(b"whole")
    assert names(tmp_path) == ["another", "file", "folder"] and names(folder) == ["whole"]


def test_parts_of_others_stay(tmp_path, monkeypatch):
    """Of this process, of another machine, and files whose names only look alike."""
    path = tmp_path / "file"
    parts = [new_part(path), tmp_path / "file.part", tmp_path / "file.00000000.1.part"]
    monkeypatch.setattr(whole_files, "machine", lambda: "00000000")
    monkeypatch.setattr(os, "getpid", lambda: 2**22 + 1)  # above all processes
    parts.append(new_part(path))
    monkeypatch.undo()
    for part in parts:
        part.touch()
    write_whole(path, b"")
    assert names(tmp_path) == sorted([path.name, *(part.name for part in parts)])


def test_a_long_name(tmp_path):
    path = tmp_path / ("\u4e2d" * 80)
    write_whole(path, b"whole")
    assert path.read_bytes() == b"whole" and len(names(tmp_path)) == 1


def full_disk(*args):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_a_full_disk_is_an_error_with_the_name(tmp_path, monkeypatch, name):
    monkeypatch.setattr(os, name, full_disk)
    with pytest.raises(OSError, match="No space left on device: '.*/file'"):
        write_whole(tmp_path / "file", b"whole")
    with (
        pytest.raises(OSError, match="No space left on device: '.*/folder'"),
        whole_folder(tmp_path / "folder") as part,
    ):
        (part / "a").write_bytes(b"a")
    assert not names(tmp_path)


def test_no_folder_to_write_into_is_an_error_with_the_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="'.*/none/file'"):
        write_whole(tmp_path / "none" / "file", b"whole")


def test_an_error_leaves_the_old_file(tmp_path):
    write_whole(tmp_path / "file", b"old")
    with pytest.raises(ZeroDivisionError), whole_file(tmp_path / "file", "w", encoding="utf-8") as file:
        file.write("new")
        raise ZeroDivisionError
    assert (tmp_path / "file").read_bytes() == b"old" and names(tmp_path) == ["file"]


def test_a_folder_is_new_or_keeps_its_other_files(tmp_path):
    folder = tmp_path / "a" / "report"
    for text in ("old", "new"):
        with whole_folder(folder) as part:
            (part / "x").write_text(text)
            (part / "y").write_text(text)
            assert names(folder.parent) in (["report"], [part.name])
        (folder / "own").touch()
    assert names(folder) == ["own", "x", "y"] and (folder / "x").read_text() == "new"
    with pytest.raises(KeyboardInterrupt), whole_folder(folder) as part:
        (part / "x").write_text("half")
        raise KeyboardInterrupt
    assert names(folder) == ["own", "x", "y"] and (folder / "x").read_text() == "new"
    assert names(tmp_path) == ["a"] and names(folder.parent) == ["report"]
