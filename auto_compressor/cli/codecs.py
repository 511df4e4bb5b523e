"""What `compress` and `decompress` share: the kind of `--model` decides what is done, and which options there are."""

import argparse
from types import ModuleType

from ..families import FAMILIES, module_of
from .common import add_codec_arguments, silence_loading


def commands_by_type(direction: str) -> dict[str, ModuleType]:
    """Model types and the modules that do it for them, which have KIND, add_options() and run()."""
    found = {}
    for family in FAMILIES:
        found |= getattr(module_of(family, "commands"), direction, {})
    return found


def add_arguments(parser: argparse.ArgumentParser, direction: str, file: str):
    add_codec_arguments(parser, file, "the model", default="bytes")
    for command in dict.fromkeys(commands_by_type(direction).values()):
        command.add_options(parser.add_argument_group(command.KIND))


def model_type_of(name: str) -> str:
    from transformers import AutoConfig

    from ..files.bases import resolve_base
    from ..files.loading import load

    silence_loading()
    return load(AutoConfig, resolve_base(name), problem=f"Cannot load the model {name!r}").model_type


def options_of(command: ModuleType) -> dict[str, argparse.Action]:
    parser = argparse.ArgumentParser(add_help=False)
    command.add_options(parser)
    return {action.dest: action for action in parser._actions}


def check_options(args: argparse.Namespace, command: ModuleType, direction: str):
    """Raises a `ValueError` for an option that belongs to another kind of model."""
    own = options_of(command)
    for other in commands_by_type(direction).values():
        for dest, action in options_of(other).items():
            if dest not in own and getattr(args, dest) != action.default:
                option = action.option_strings[0]
                raise ValueError(f"{option} must not be given with {args.model}: it is for {other.KIND}.")


def run(args: argparse.Namespace, direction: str):
    """Does it as the kind of the model says; any other causal language model is tried as one of bytes."""
    commands, model_type = commands_by_type(direction), model_type_of(args.model)
    known = {*sum(FAMILIES.values(), ()), *commands_by_type("COMPRESS")} - set(commands)
    if model_type in known:
        kinds = "; ".join(command.KIND for command in dict.fromkeys(commands.values()))
        raise ValueError(f"--model {args.model} is of the type {model_type}, it must be one of: {kinds}.")
    command = commands.get(model_type, commands["gru_byte"])
    check_options(args, command, direction)
    command.run(args)
