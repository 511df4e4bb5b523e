"""The tables of options in the pages, made from what they describe: dataclasses, run scripts, sub-commands.

    python docs/option_tables.py          # writes every table anew; says which pages have changed

A table stands between two comments, of which the first says what it is made from:

    <!-- table: options auto_compressor.autocompressor.arguments.TrainingArguments -->
    <!-- table: variables run/train.sh -->
    <!-- table: commands -->
    <!-- table: command store build -->
    <!-- end of table -->
"""

import argparse
import re
from collections.abc import Callable, Iterable
from dataclasses import MISSING, Field, fields
from importlib import import_module
from pathlib import Path

from auto_compressor.cli import main as command_line


ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
MARKED = re.compile(r"(<!-- table: ([\w-]+) ?([^>]*?) -->\n).*?(?=<!-- end of table -->)", flags=re.DOTALL)
DEFAULT = re.compile(r" \(default: ((?:[^()]|\([^()]*\))*)\)")
ASSIGNMENT = re.compile(r"^(?P<name>[A-Z_]+)=\$\{(?P=name):?-(?P<default>[^}]*)\}(?:\s*#\s*(?P<meaning>.*))?$")
# Of variables that the scripts say nothing about.
MEANINGS = {
    "EPOCHS": "passes over the text, where `STEPS` is empty",
    "EVAL_SETS": "tokenised validation sets; empty: as above",
    "NODE": "host of the first node",
    "NUM_NODES": "number of nodes",
    "WEIGHT_DECAY": "weight decay",
}


def cell(text: object) -> str:
    """Text as a table can hold it: bars would end the cell, stars and angle brackets would be markup."""
    return str(text).replace("|", "\\|").replace("*", "\\*").replace("<", "&lt;").replace("\n", " ").strip()


def table(columns: tuple[str, ...], rows: Iterable[Iterable[str]]) -> str:
    head, *lines = (f"| {' | '.join(line)} |\n" for line in (columns, *rows))
    return "".join([head, f"{'|---' * len(columns)}|\n", *lines])


def own_fields(arguments: type) -> list[Field]:
    """The fields that a class states itself: of training arguments, not the hundred of transformers."""
    return [field for field in fields(arguments) if field.name in arguments.__annotations__]


def default_of(field: Field) -> str:
    """The default as one would type it, or nothing."""
    value = field.default_factory() if field.default is MISSING else field.default
    if value is None or value == []:
        return ""
    words = value if isinstance(value, list) else [value]
    return f"`{' '.join(str(word).lower() if isinstance(word, bool) else f'{word}' for word in words)}`"


def option_row(field: Field) -> tuple[str, str, str]:
    flags = [f"--{field.name}", *field.metadata.get("aliases", [])]
    if field.default is True:
        flags.append(f"--no_{field.name}")
    text = field.metadata.get("help", "")
    told = DEFAULT.search(text)
    default = default_of(field) or (cell(told[1]) if told else "")
    return ", ".join(f"`{flag}`" for flag in flags), default, cell(DEFAULT.sub("", text))


def options(name: str) -> str:
    """The flags that a dataclass of arguments adds to `train.py`."""
    module, _, arguments = name.rpartition(".")
    rows = map(option_row, own_fields(getattr(import_module(module), arguments)))
    return table(("option", "default", "meaning"), rows)


def variables(script: str) -> str:
    """The variables at the top of a run script."""
    head = (ROOT / script).read_text(encoding="utf-8").split("\n####")[0]
    found = [match for match in map(ASSIGNMENT.match, head.splitlines()) if match]
    rows = []
    for match in found:
        name, default, meaning = match["name"], match["default"], match["meaning"] or MEANINGS.get(match["name"], "")
        shown = "all" if default == "$(count_gpus)" else f"`{default}`" if default else ""
        rows.append((f"`{name}`", shown, cell(meaning)))
    return table(("variable", "default", "meaning"), rows)


def commands(_: str) -> str:
    """Every sub-command, by group."""
    rows = [
        (cell(title), f"[`{command.NAME}`](#{command.NAME})", cell(command.HELP))
        for title, group in command_line.GROUPS.items()
        for command in group
    ]
    return table(("for", "command", "what it does"), rows)


def command(name: str) -> str:
    """The arguments of a sub-command, or of an action of one, as in `store build`."""
    name, *actions = name.split()
    module = next(module for module in command_line.COMMANDS if module.NAME == name)
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    for action in actions:
        parser = actions_of(parser)[action]
    rows = [argument_row(action) for action in parser._actions if action.dest != "help"]
    return table(("argument", "meaning"), rows)


def actions_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    return next(action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction))


def argument_row(action: argparse.Action) -> tuple[str, str]:
    named = ", ".join(f"`{flag}`" for flag in action.option_strings)
    name = named or f"`{action.dest}`"
    choices = f"one of {', '.join(map(str, action.choices))}" if action.choices else ""
    told = (action.help or "") % (vars(action) | {"prog": "auto-compressor"})
    parts = [part for part in (told, choices) if part]
    if action.required and named:
        parts.append("required")
    elif action.option_strings and "default" not in told and action.default not in (None, False, argparse.SUPPRESS):
        parts.append(f"(default: {action.default})")
    return name, cell("; ".join(parts).replace("; (", " ("))


MAKERS: dict[str, Callable[[str], str]] = {
    "options": options,
    "variables": variables,
    "commands": commands,
    "command": command,
}


def with_tables(text: str) -> str:
    """A page with every table as it should be."""
    return MARKED.sub(lambda match: match[1] + MAKERS[match[2]](match[3]), text)


def main():
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        if (new := with_tables(text)) != text:
            page.write_text(new, encoding="utf-8")
            print(page.relative_to(ROOT))


if __name__ == "__main__":
    main()
