"""`auto-compressor evaluate`: the LM evaluation harness, with the models of this package among its own."""

import argparse
import sys

from .common import check_installed, default_device


NAME = "evaluate"
HELP = "run the LM evaluation harness (lm-eval) on models of this package, or any that lm-eval knows"

# The arguments of lm-eval that are used most; all of them are handed on as they are, and others too.
ARGUMENTS = {
    "--model": "autocompressor, merging_cache, byte, hier_ae (a hierarchical autoencoder), hf (transformers), ...",
    "--model_args": "arguments of the model: checkpoint=DIR for hier_ae, pretrained=NAME for the others, ...",
    "--tasks": "names of the tasks to run",
    "--include_path": "folder with tasks of your own",
    "--num_fewshot": "solved examples in front of each question",
    "--limit": "use only so many examples of each task",
    "--batch_size": "texts that are scored at once",
    "--device": "device to run on: cpu, cuda, ... (default: cuda where there is one)",
    "--output_path": "also write the results to this folder",
}


def add_arguments(parser: argparse.ArgumentParser):
    for argument, text in ARGUMENTS.items():
        parser.add_argument(argument, action="extend", nargs="+", metavar="VALUE", help=text)
    parser.set_defaults(further=[])  # those that this parser does not know


def harness_arguments(args: argparse.Namespace) -> list[str]:
    """The command line of lm-eval."""
    values = {argument: getattr(args, argument.removeprefix("--")) for argument in ARGUMENTS}
    given = [[argument, *value] for argument, value in values.items() if value is not None]
    return sum(given, []) + args.further


def device_arguments(args: argparse.Namespace) -> list[str]:
    """The device of this machine, where none is given: lm-eval itself takes cuda, whether there is one or not."""
    given = [*(args.model_args or []), *args.further]
    named = args.device is not None or any(part.startswith("device=") for text in given for part in text.split(","))
    # A file of settings may name one.
    return (
        [] if named or any(text.startswith(("--config", "-C")) for text in given) else ["--device", default_device()]
    )


def run(args: argparse.Namespace):
    check_installed("lm_eval", "lm-eval", "eval")

    from lm_eval.__main__ import cli_evaluate

    from ..evaluation import context_models, harness  # noqa: F401 (they register their models)

    # The entry point of lm-eval reads the command line of the process.
    own, sys.argv = sys.argv, ["lm-eval", "run", *harness_arguments(args), *device_arguments(args)]
    try:
        cli_evaluate()
    except TypeError as error:
        # Models take their arguments by name.
        if "unexpected keyword argument" not in str(error):
            raise
        raise ValueError(f"--model_args {' '.join(args.model_args or [])}: {error}") from error
    finally:
        sys.argv = own
