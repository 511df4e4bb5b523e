"""The parts of run/canary.sh that are no shell.

python run/canary.py requirements           what pyproject.toml requires, without upper bounds
python run/canary.py warnings               the filters of pytest: those of pyproject.toml and the errors after them
python run/canary.py table FREEZE JUNIT     Markdown: versions other than run/constraints.txt, and failing tests
"""

import re
import sys
import tomllib
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree


ROOT = Path(__file__).parents[1]


def requirements(project: dict) -> list[str]:
    found = []
    for requirement in project["dependencies"] + project["optional-dependencies"]["dev"]:
        name_and_bounds, semicolon, marker = requirement.partition(";")
        bounds = re.sub(r"\s*(<=?|~=|==)[^,]*,?", "", name_and_bounds).strip().rstrip(",")
        found.append(bounds + semicolon + marker)
    return found


def warning_filters(pyproject: dict) -> list[str]:
    """pytest takes the last filter that fits; here, unlike behind its -W, the module is a regular expression."""
    modules = ["auto_compressor", *sorted(path.stem for path in ROOT.glob("*.py"))]
    ours = rf"({'|'.join(modules)})(\.|$)"
    errors = [f"error::{kind}:{ours}" for kind in ("FutureWarning", "DeprecationWarning")]
    return pyproject["tool"]["pytest"]["ini_options"]["filterwarnings"] + errors


def versions(lines: str) -> dict[str, str]:
    """Of lines `name==version`; names and local versions are written differently here and there."""
    pairs = re.findall(r"^([\w.-]+)==([^\s+;]+)", lines, flags=re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in pairs}


def table(tested: dict[str, str], newest: dict[str, str], junit: Path) -> str:
    lines = ["| package | tested | newest |", "|---|---|---|"]
    names = sorted(tested | newest)
    differ = [name for name in names if tested.get(name) != newest.get(name)]
    lines += [f"| {name} | {tested.get(name, '')} | {newest.get(name, '')} |" for name in differ]
    lines += ["", f"{len(names) - len(differ)} other packages are the tested versions.", ""]
    if not junit.is_file():
        return "\n".join([*lines, "The tests did not run."])
    cases = list(ElementTree.parse(junit).iter("testcase"))
    failing = Counter(
        case.get("classname", "") or case.get("name", "")
        for case in cases
        if case.find("failure") is not None or case.find("error") is not None
    )
    lines += ["| file | failing tests |", "|---|---|"] if failing else []
    lines += [f"| {name} | {number} |" for name, number in sorted(failing.items())]
    lines += [""] if failing else []
    return "\n".join([*lines, f"{sum(failing.values())} of {len(cases)} tests fail."])


def main(command: str, *paths: str):
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    if command == "requirements":
        print("\n".join(requirements(pyproject["project"])))
    elif command == "warnings":
        print("\n".join(warning_filters(pyproject)))
    elif command == "table":
        freeze, junit = map(Path, paths)
        tested = versions((ROOT / "run" / "constraints.txt").read_text())
        print(table(tested, versions(freeze.read_text()), junit))
    else:
        sys.exit(f"canary.py: error: command must be requirements, warnings or table, got {command}.")


if __name__ == "__main__":
    main(*sys.argv[1:])
