"""`auto-compressor train`: what `python -m auto_compressor.train` does, with the same arguments."""

import argparse


NAME = "train"
HELP = "train and evaluate a model of any family; --help lists the arguments"
PARSER = {"add_help": False, "allow_abbrev": False}  # every argument is handed on, --help too


def add_arguments(parser: argparse.ArgumentParser):
    parser.set_defaults(further=[])


def run(args: argparse.Namespace):
    from ..train import main

    main(args.further, prog="auto-compressor train")
