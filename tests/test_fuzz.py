"""The fuzz command: every target, a few times, and the faults that it must see."""

import csv
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fuzz import __main__ as fuzz
from fuzz import cases
from fuzz.cases import Case, WrongResult, judged, share
from fuzz.mutations import SAFETENSORS, damaged, drawn, other_json
from hypothesis import strategies as st


ROOT = Path(__file__).parents[1]
FEW = {"codecs": 16, "softprompts": 16, "configs": 11, "weights": 11, "checkpoints": 1, "datasets": 12, "pages": 8}
FEW |= {"strings": 8, "kills": 1, "writers": 3}


@pytest.fixture(autouse=True)
def build(monkeypatch, tmp_path):
    """What the command writes goes elsewhere."""
    monkeypatch.setattr(fuzz, "BUILD", tmp_path / "build")
    return tmp_path / "build"


def test_the_script_names_where_the_modules_lie():
    """It finds what the targets need, without the paths that pytest knows."""
    (path,) = re.findall(r"^PYTHONPATH=(\S+) python -m fuzz", (ROOT / "run/fuzz.sh").read_text(), re.M)
    command = [sys.executable, "-m", "fuzz", "--help"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 0 and "codecs" in done.stdout, done.stderr


def test_every_target(build, capsys):
    with pytest.raises(SystemExit):
        fuzz.main(["nothing"])
    assert "TARGET must be one of codecs, softprompts" in capsys.readouterr().err
    assert FEW.keys() == fuzz.TARGETS.keys()


@pytest.mark.parametrize("target", FEW)
def test_a_few_cases(target, build, capsys, monkeypatch):
    monkeypatch.setattr(cases, "TIME_SCALE", 20)  # no timed test: other tests run beside this one
    assert fuzz.main([target, "--count", str(FEW[target])]) == 0, capsys.readouterr().out
    with (build / "fuzz.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert sum(row["good"] == "False" for row in rows) == FEW[target]
    assert all(row["outcome"] == "right" for row in rows if row["good"] == "True")
    assert not (build / "fuzz").exists()


def raise_error(error):
    raise error


def take_memory():
    assert len(b"x" * 2**26) == 2**26


def wait():
    time.sleep(60)


def work():
    end = time.process_time() + 0.7
    while time.process_time() < end:
        pass


FAULTS = {
    "undocumented": (lambda: raise_error(KeyError("a")), "KeyError: 'a'"),
    "wrong": (lambda: raise_error(WrongResult("other bytes")), "WrongResult: other bytes"),
    "several lines": (lambda: raise_error(ValueError("a\nb")), "its message has several lines"),
    "long": (lambda: raise_error(ValueError("a" * 9999)), "its message has 9999 characters"),
    "memory": (take_memory, "must take 1[67] MB at most, took 6[4-9]"),
    "slow": (work, r"must take 0.5 s at most, took [\d.]+"),
    "endless": (wait, "no answer after"),
    "crash": (lambda: os.kill(os.getpid(), signal.SIGKILL), "signal 9 after"),
}


@pytest.mark.parametrize(("run", "problem"), FAULTS.values(), ids=FAULTS)
def test_faults_are_seen_and_their_files_kept(run, problem, tmp_path):
    path = tmp_path / "damaged"
    path.write_bytes(b"damaged")
    attack = [Case("kind", lambda: None, seconds=0.5), Case("kind", run, path, 7, seconds=0.5)]
    good, result = judged(attack, tmp_path / "kept" / "target")
    assert good.outcome == "right" and good.good and not good.problem
    assert re.match(problem, result.problem), result.problem
    assert result.kept == str(tmp_path / "kept" / "target-1") and (tmp_path / "kept" / "target-1").exists()


def test_what_is_documented_is_no_fault(tmp_path):
    attack = [Case("kind", lambda: None), Case("kind", lambda: raise_error(FileNotFoundError("a")), size=1)]
    assert [result.outcome for result in judged(attack, tmp_path)] == ["right", "FileNotFoundError"]
    (good,) = judged([Case("kind", lambda: raise_error(ValueError("a")))], tmp_path)
    assert good.problem == "a good file must come out right, got ValueError"


PLANTED = {
    "another error": ("softprompts", "load_softprompt", lambda *args: raise_error(KeyError("a"))),
    "other vectors": ("softprompts", "held", lambda data: cases.require_right(False, "other vectors")),
}


@pytest.mark.parametrize(("target", "name", "fault"), PLANTED.values(), ids=PLANTED)
def test_a_planted_fault_fails_the_command(target, name, fault, build, monkeypatch, capsys):
    monkeypatch.setattr(f"fuzz.{target}.{name}", fault)
    assert fuzz.main([target, "--count", "16"]) == 1
    with (build / "fuzz.csv").open(newline="") as file:
        failures = [row for row in csv.DictReader(file) if row["problem"]]
    assert failures and all(os.path.isfile(row["kept"]) for row in failures)


def test_the_same_seed_gives_the_same_cases():
    data = (16).to_bytes(8, "little") + b'{"a": {"b": [1]}}'[:16] + bytes(8)
    ways = [way for way in SAFETENSORS if way.__name__ not in ("other_tensors", "other_header")]
    first, second, other = (
        [damaged(data, ways, index, draw) for index in range(20)] for draw in map(random.Random, (0, 0, 1))
    )
    assert first == second != other
    assert drawn(st.text(), 5, seed=0) == drawn(st.text(), 5, seed=0) != drawn(st.text(), 5, seed=1)
    values = [json.loads(other_json(b'{"a": {"b": [1, 2]}, "c": "d"}', random.Random(seed))) for seed in range(50)]
    assert len({json.dumps(value) for value in values}) > 10


def test_shares_add_up():
    assert [share(500, place, 11) for place in range(11)] == [46] * 5 + [45] * 6
