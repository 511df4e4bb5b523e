"""What README.md and docs/ name is there: links, scripts, flags, sub-commands, pages; tables say what is so."""

import importlib
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from pages_testing import PAGES, ROOT, TEXTS, blocks, lines
from transformers import HfArgumentParser

from auto_compressor.autocompressor.softprompts import SOFTPROMPT
from auto_compressor.autocompressor.store import FORMAT as STORE_FORMAT
from auto_compressor.cli import main as command
from auto_compressor.continuous_text_autoencoder.latents import LATENTS
from auto_compressor.families import FAMILIES, MODEL_TYPES, training_family
from option_tables import own_fields, with_tables


GROUPS = [group for model_type in MODEL_TYPES for group in training_family(model_type).argument_groups]
ALL = "\n".join(TEXTS.values())
pages = pytest.mark.parametrize("page", TEXTS)


def test_the_readme_is_short():
    assert len(TEXTS["README.md"].splitlines()) <= 200 and len(TEXTS["README.md"].split()) <= 2000


def test_every_family_has_a_page():
    assert {f"docs/{family}.md" for family in FAMILIES} < set(TEXTS)
    assert all(f"](docs/{family}.md)" in TEXTS["README.md"] for family in FAMILIES)


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```|`[^`\n]+`", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(text: str) -> set[str]:
    """Those of the headings, as GitHub and mkdocs make them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pages
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\((?!https?:)([^)\s]+)\)", without_code(TEXTS[page]))
    assert links or page == "docs/reliability.md"
    for link in links:
        path, _, anchor = link.partition("#")
        target = (PAGES[page].parent / path).resolve() if path else PAGES[page]
        assert target.exists(), f"{page} links to {link}"
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), f"{page} links to {link}"


@pages
def test_tables_say_what_is_so(page):
    assert with_tables(TEXTS[page]) == TEXTS[page], "python docs/option_tables.py writes the tables anew"


def test_every_option_is_in_a_table():
    own = {f"--{field.name}" for group in GROUPS for field in own_fields(group)}
    assert len(own) > 100 and own <= set(re.findall(r"^\| `(--\w+)`", ALL, flags=re.MULTILINE))


def test_tables_hold_options_that_parsers_know():
    known = {flag for group in GROUPS for flag in HfArgumentParser(group)._option_string_actions}
    tables = re.findall(r"<!-- table: options .*?<!-- end of table -->", ALL, flags=re.DOTALL)
    assert len(tables) >= 9 and set(re.findall(r"`(--[\w]+)`", "".join(tables))) <= known


def test_every_script_has_its_variables():
    scripts = {path.name for path in (ROOT / "run").glob("train*.sh")} - {"train_llama.sh", "train_baseline.sh"}
    assert set(re.findall(r"<!-- table: variables run/(\w+\.sh) -->", ALL)) == scripts
    assert all(f"run/{name}" in ALL for name in ("train_llama.sh", "train_baseline.sh", "eval_llama.sh"))


def test_scripts_exist():
    scripts = set(re.findall(r"(?:run|benchmarks|tests)/(?:\w+/)*\w+\.(?:sh|py)", ALL))
    shared = {"measuring.py", "compressors.py"}
    measured = {f"benchmarks/{path.name}" for path in (ROOT / "benchmarks").glob("*.py") if path.name not in shared}
    assert measured | {"run/setup.sh", "run/quickstart.sh", "run/test.sh", "run/canary.sh"} <= scripts
    assert all((ROOT / script).is_file() for script in scripts)


def test_modules_exist():
    found = set(re.findall(r"auto_compressor(?:/\w+)+\.py", ALL))
    assert all((ROOT / path).is_file() for path in found)
    formats = {SOFTPROMPT.format, LATENTS.format, STORE_FORMAT}
    names = set(re.findall(r"`(auto_compressor(?:\.\w+)+)", ALL)) - formats
    for name in names:
        module, _, last = name.rpartition(".")
        assert hasattr(importlib.import_module(module), last) or importlib.import_module(name), name


def test_pictures_and_figures_are_shown():
    results = {path.name for path in (ROOT / "benchmarks" / "results").iterdir()}
    assert results == set(re.findall(r"benchmarks/results/([\w.-]+)", TEXTS["docs/results.md"]))


def test_flags_exist():
    known = {flag for group in GROUPS for flag in HfArgumentParser(group)._option_string_actions}
    folders = ("cli", "commands")
    sources = [path for path in (ROOT / "auto_compressor").rglob("*.py") if path.parent.name in folders]
    sources += [ROOT / "auto_compressor/train.py"]
    sources += [path for name in ("benchmarks", "tests/fuzz", "tests/serving") for path in (ROOT / name).glob("*.py")]
    known |= set(re.findall(r'"(--[\w-]+)"', "".join(path.read_text() for path in sources)))
    known |= {"--help", "--strict"}
    assert set(re.findall(r"(?<![\w-])--[a-z][\w-]*", ALL)) <= known


def test_every_sub_command_has_an_example():
    named = {line.split()[1] for line in lines("docs/command_line.md") if line.startswith("auto-compressor ")}
    assert named == {module.NAME for module in command.COMMANDS}
    assert anchors(TEXTS["docs/command_line.md"]) >= named


@pages
def test_shell_is_valid(page):
    assert subprocess.run(["bash", "-n"], input="\n".join(blocks(page, "bash")), text=True).returncode == 0


def test_the_site_has_every_page():
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    named = set(re.findall(r"[\w/]+\.md", str(config["nav"])))
    assert {Path(page).name for page in TEXTS} - {"README.md"} <= named
    assert named - {"reliability.md"} == {Path(page).name for page in TEXTS} - {"README.md", "reliability.md"}


def test_the_site_is_built_without_warnings(tmp_path):
    """With `pip install -e '.[docs]'`, which the environment of the tests does not have."""
    build = importlib.import_module("mkdocs.commands.build")
    config = importlib.import_module("mkdocs.config").load_config(
        str(ROOT / "mkdocs.yml"), strict=True, site_dir=str(tmp_path)
    )
    build.build(config)
    assert (tmp_path / "autocompressor.html").is_file()
