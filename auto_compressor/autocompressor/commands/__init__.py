"""Sub-commands of `auto-compressor`, in the order in which they are listed."""

from . import generate, perplexity, store, summarize


TITLE = "AutoCompressors"
COMMANDS = (summarize, generate, perplexity, store)
BASES = ("opt", "llama", "mistral", "qwen2", "qwen3", "gemma")
COMPRESS = {f"{base}_autocompressor": summarize for base in BASES}
