"""The arguments of `train.py`: another name of `auto_compressor.training.arguments`."""

import sys

from auto_compressor.training import arguments


sys.modules[__name__] = arguments
