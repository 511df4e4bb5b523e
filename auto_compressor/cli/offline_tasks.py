"""`auto-compressor offline-tasks`: tasks for `evaluate` that need no hub."""

import argparse
from pathlib import Path


NAME = "offline-tasks"
HELP = "write tasks for evaluate that need no hub: what does a model know of a context that it compressed?"


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder to write, for --include_path")
    parser.add_argument("--num-cases", type=int, default=60, help="cases of each task (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of what is drawn at random (default: %(default)s)")


def run(args: argparse.Namespace):
    from ..evaluation.offline_tasks import TASKS, write_tasks

    write_tasks(args.output, args.num_cases, args.seed)
    names = ",".join(f"offline_{name}" for name in TASKS)
    print(f"auto-compressor evaluate --include_path {args.output} --tasks {names} --model ...")
