"""Sub-commands of `auto-compressor`, in the order in which they are listed."""

from . import compress, decompress


TITLE = "Byte language models"
COMMANDS = (
    compress,
    decompress,
)
