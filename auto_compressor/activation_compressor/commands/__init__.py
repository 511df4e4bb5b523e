"""Sub-commands of `auto-compressor`, in the order in which they are listed."""

from . import report_activation


TITLE = "Activation compression"
COMMANDS = (report_activation,)
