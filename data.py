"""From text to blocks of tokens: another name of `auto_compressor.training.data`."""

import sys

from auto_compressor.training import data


sys.modules[__name__] = data
