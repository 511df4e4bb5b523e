"""What `compress` and `decompress` share: the kind of `--model` decides what is done, and which options there are."""

import argparse
from types import ModuleType

from ..families import FAMILIES, module_of
from ..lossless.commands import compress_lossless, decompress_lossless
from .common import add_codec_arguments, silence_loading


DEFAULT_MODEL = "bytes"  # a name that `resolve_base` knows
LOSSLESS = {"COMPRESS": compress_lossless, "DECOMPRESS": decompress_lossless}  # with any causal language model


def commands_by_type(direction: str) -> dict[str, ModuleType]:
    """Model types and the modules that do it for them, which have KIND, add_options() and run()."""
    found = {}
    for family in FAMILIES:
        found |= getattr(module_of(family, "commands"), direction, {})
    return found


def add_arguments(parser: argparse.ArgumentParser, direction: str, file: str):
    add_codec_arguments(parser, file, "the model", DEFAULT_MODEL)
    for command in dict.fromkeys([*commands_by_type(direction).values(), LOSSLESS[direction]]):
        command.add_options(parser.add_argument_group(command.KIND))


def model_type_of(name: str) -> str:
    from transformers import AutoConfig

    from ..files.bases import resolve_base
    from ..files.loading import load

    silence_loading()
    return load(AutoConfig, resolve_base(name), problem=f"Cannot load the model {name!r}").model_type


def options_of(command: ModuleType) -> list[argparse.Action]:
    parser = argparse.ArgumentParser(add_help=False)
    command.add_options(parser)
    return parser._actions


def check_options(args: argparse.Namespace, command: ModuleType, direction: str):
    """Raises a `ValueError` for an option that belongs to another kind of model."""
    own = {action.dest for action in options_of(command)}
    for other in commands_by_type(direction).values():
        for action in options_of(other):
            given = getattr(args, action.dest)
            # Several flags may set one value, each of them its own.
            if action.dest not in own and given != action.default and action.const in (None, given):
                option = action.option_strings[0]
                raise ValueError(f"{option} must not be given with {args.model}: it is for {other.KIND}.")


def run(args: argparse.Namespace, direction: str):
    """Does it as the kind of the model says; any other causal language model codes without loss."""
    commands, model_type = commands_by_type(direction), model_type_of(args.model)
    known = {*sum(FAMILIES.values(), ()), *commands_by_type("COMPRESS")} - set(commands)
    if model_type in known:
        kinds = "; ".join(command.KIND for command in dict.fromkeys(commands.values()))
        raise ValueError(f"--model {args.model} is of the type {model_type}, it must be one of: {kinds}.")
    command = commands.get(model_type, LOSSLESS[direction])
    check_options(args, command, direction)
    command.run(args)
