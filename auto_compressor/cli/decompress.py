"""`auto-compressor decompress`: the file that `compress` or `encode` made smaller."""

import argparse

from . import codecs


NAME = "decompress"
HELP = "restore a file from what `compress` or `encode` made of it, with the same model"


def add_arguments(parser: argparse.ArgumentParser):
    codecs.add_arguments(parser, "DECOMPRESS", "the compressed file")


def run(args: argparse.Namespace):
    codecs.run(args, "DECOMPRESS")
