"""`auto-compressor compress`: a file into fewer bytes or vectors, with a model of any family."""

import argparse

from . import codecs


NAME = "compress"
HELP = "compress a file with any model: text to summary vectors or latents, any file to codes, any file without loss"


def add_arguments(parser: argparse.ArgumentParser):
    codecs.add_arguments(parser, "COMPRESS", "the file to compress")


def run(args: argparse.Namespace):
    codecs.run(args, "COMPRESS")
