"""The pages that users read, README.md and docs/**/*.md, and the code in them."""

import re
import shlex
from pathlib import Path

from transformers import HfArgumentParser

from auto_compressor.families import training_family


ROOT = Path(__file__).parents[1]
PAGES = {path.relative_to(ROOT).as_posix(): path for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]}
TEXTS = {name: path.read_text(encoding="utf-8") for name, path in sorted(PAGES.items())}


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXTS[page], flags=re.DOTALL | re.MULTILINE)


def lines(page: str) -> list[str]:
    """The commands of a page, each on one line."""
    shell = (line for block in blocks(page, "bash") for line in block.replace("\\\n", " ").splitlines())
    return [line.strip() for line in shell if line.strip()]


LINES = list(dict.fromkeys(line for page in TEXTS for line in lines(page)))


def words(line: str) -> list[str]:
    return shlex.split(line, comments=True)


def family_of(arguments: list[str]) -> str:
    return arguments[arguments.index("--model_type") + 1] if "--model_type" in arguments else "autocompressor"


def check_arguments(arguments: list[str]):
    """They are parsed by the family that they name; precision and distribution depend on the machine."""
    name = family_of(arguments)
    left = [word for word in arguments if word not in ("--model_type", name, "--bf16")]
    HfArgumentParser(training_family(name).argument_groups).parse_args_into_dataclasses([*left, "--use_cpu"])
