"""Sub-commands of `auto-compressor`, in the order in which they are listed."""

from . import generate, perplexity, summarize


TITLE = "AutoCompressors"
COMMANDS = (
    summarize,
    generate,
    perplexity,
)
