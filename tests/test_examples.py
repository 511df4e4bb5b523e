"""The programs of examples/ run, in a reduced form, and their page lists each with what it prints."""

import re
import runpy
from pathlib import Path

import pytest


FOLDER = Path(__file__).parents[1] / "examples"
EXAMPLES = sorted(FOLDER.glob("*.py"))
# What each prints, however little it was trained.
PRINTED = {
    "ask_a_document": "26 tokens of each document -> 2 summary vectors",
    "bytes_to_codes": "85 bytes -> ",
    "compress_a_file": "every bit comes back: True",
    "fork_a_cache": "the cache still holds 404 tokens",
    "interpolate_latents": "8 tokens -> 2 latents of 64 numbers",
    "train_with_substeps": "summary vectors of 256 tokens: 12",
}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(path, monkeypatch, capsys):
    monkeypatch.setenv("STEPS", "2")
    runpy.run_path(str(path), run_name="__main__")
    assert PRINTED[path.stem] in capsys.readouterr().out


def test_page_lists_the_examples():
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"^python examples/(\w+)\.py$", page, flags=re.MULTILINE) == [path.stem for path in EXAMPLES]
    for name, line in PRINTED.items():
        assert line in page, name


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 60
