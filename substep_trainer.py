"""Training by truncated back-propagation: another name of `auto_compressor.training.substep_trainer`."""

import sys

from auto_compressor.training import substep_trainer


sys.modules[__name__] = substep_trainer
