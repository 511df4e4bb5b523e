"""What is checked beside the tests: run/types.sh, with a mypy of our making, and the pins of pre-commit."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml


ROOT = Path(__file__).parents[1]
ERRORS = """auto_compressor/a.py:1: error: Wrong  [misc]
auto_compressor/a.py:7: error: Wrong too  [misc]
auto_compressor/a.py:7: note: Because
auto_compressor/b/c.py:2: error: Wrong  [misc]
"""


@pytest.fixture
def types(tmp_path):
    """Runs run/types.sh beside these counts; returns its status, what it prints, and the counts after it."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "env.sh").touch()
    shutil.copy(ROOT / "run" / "types.sh", tmp_path / "run")
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\nprintf %s "$ERRORS"\nexit "$STATUS"\n')
    python.chmod(0o755)

    def types(counts, *arguments, status=1):
        (tmp_path / "run" / "types.txt").write_text(counts)
        variables = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "ERRORS": ERRORS, "STATUS": str(status)}
        command = ["bash", "run/types.sh", *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=os.environ | variables, capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr, (tmp_path / "run" / "types.txt").read_text()

    return types


COUNTS = "2 auto_compressor/a.py\n1 auto_compressor/b/c.py\n"


@pytest.mark.parametrize("counts", [COUNTS, COUNTS.replace("2", "5"), COUNTS + "3 auto_compressor/gone.py\n"])
def test_as_many_errors_pass(types, counts):
    status, printed, after = types(counts)
    assert status == 0 and "3 errors" in printed and after == counts


@pytest.mark.parametrize("counts", [COUNTS.replace("2", "1"), "1 auto_compressor/b/c.py\n", ""])
def test_more_errors_fail(types, counts):
    status, printed, _ = types(counts)
    assert status == 1 and "a.py:7: error: Wrong too" in printed and "note" not in printed
    assert ("b/c.py:2" in printed) is (counts == "")


def test_update_and_failure(types):
    assert types("", "--update")[::2] == (0, COUNTS)
    status, printed, _ = types(COUNTS, status=2)
    assert status == 2 and printed == ERRORS


def test_the_counts_are_of_files_of_the_package():
    lines = (ROOT / "run" / "types.txt").read_text().splitlines()
    assert all((ROOT / line.split()[1]).is_file() for line in lines)


def test_pre_commit_runs_the_tested_ruff():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    pins = re.findall(r"^ruff==.*$", (ROOT / "run" / "constraints.txt").read_text(), flags=re.MULTILINE)
    assert [hook["additional_dependencies"] for hook in hooks] == [pins, pins]
