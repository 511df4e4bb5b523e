"""The scripts in findings/, which are not run here: what their page says of them, and what none of them may hold."""

import ast
import os
import re
import subprocess
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "findings"
HELPER = FOLDER / "environment.sh"
FINDINGS = sorted(set(FOLDER.glob("*.sh")) - {HELPER})
PAGE = (FOLDER / "README.md").read_text()
ROWS = {cells[1]: cells for cells in re.findall(r"^\| \[(\w+)\]\((\w+\.sh)\) \|(.*)\|(.*)\|(.*)\|(.*)\|$", PAGE, re.M)}
SOURCE = re.compile(r'^source "\$\(dirname "\$0"\)/environment\.sh"((?: [a-z-]+==\d+(?:\.\d+)+)+)$', re.M)
PYTHON = re.compile(r"<<'PYTHON'\n(.*?\n)PYTHON$", re.M | re.S)

findings = pytest.mark.parametrize("path", FINDINGS, ids=lambda path: path.stem)
files = pytest.mark.parametrize("path", [*FINDINGS, HELPER, FOLDER / "README.md"], ids=lambda path: path.name)


def pins(path):
    """The packages that a finding installs, with their versions."""
    return dict(pin.split("==") for pin in SOURCE.search(path.read_text())[1].split())


def our_test(text):
    """The test that is named in a header, whose lines are joined, or in a row of the table."""
    found = re.search(r"(tests/(?:\w+/)?\w+\.py)::(\w+)", text)
    return found and found.groups()


def header(path):
    return re.match(r"#!/usr/bin/env bash\n((?:#.*\n)+)source ", path.read_text())[1]


def test_the_page_lists_all():
    assert list(ROWS) == [path.name for path in FINDINGS]
    assert all(name == f"{stem}.sh" for stem, name, *_ in ROWS.values())


@pytest.mark.parametrize("path", [*FINDINGS, HELPER], ids=lambda path: path.stem)
def test_bash_reads_it(path):
    result = subprocess.run(["bash", "-n", path], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert os.access(path, os.X_OK) == (path != HELPER)


@findings
def test_packages_are_pinned(path):
    text = path.read_text()
    assert len(SOURCE.findall(text)) == 1
    assert "pip" not in re.findall(r"\w+", text)
    modules = {
        name.split(".")[0]
        for program in PYTHON.findall(text)
        for node in ast.walk(ast.parse(program))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
    }
    come_along = {"numpy", "tokenizers"}  # with transformers
    installed = {name.replace("-", "_") for name in pins(path)} | come_along
    assert modules and modules <= installed | {"os", "sys"}


@findings
def test_header_states_the_versions(path):
    """And in the table, those that the row names."""
    words, row = " ".join(header(path).split()), ROWS[path.name][2]
    assert "A good guess:" in words and "Seen:" in words
    for text in (words, row):
        versions = re.findall(r"\b([a-z][a-z-]*) (\d+\.\d+\.\d+)", text)
        assert versions and set(versions) <= set(pins(path).items())


@findings
def test_our_test_is_there(path):
    named = our_test(header(path).replace("#", ""))
    assert named == our_test(ROWS[path.name][5])
    if named:
        file, name = named
        assert re.search(rf"^ *def {name}\(", (ROOT / file).read_text(), re.M)


@findings
def test_it_can_fail(path):
    text = path.read_text()
    assert text.count("The behaviour changed.") == 1
    assert 'sys.exit("The behaviour changed.")' in text or 'echo "The behaviour changed." >&2\n    exit 1' in text


@files
def test_no_host_no_path_and_not_this_package(path):
    text = path.read_text()
    assert "auto_compressor" not in text and "auto-compressor" not in text
    assert not re.search(r"://|\b\w+\.(co|com|dev|io|net|org)\b", text)
    assert not re.search(r"(^|[\s\"'`=:(])[/~]\w", text, re.M)
    assert all(len(line) <= 119 for line in text.splitlines() if not line.startswith("|"))
