"""Sub-commands of `auto-compressor`, in the order in which they are listed."""

from . import export_base, export_prompt, generate, perplexity, store, summarize


TITLE = "AutoCompressors"
COMMANDS = (summarize, generate, perplexity, store, export_base, export_prompt)
BASES = ("opt", "llama", "mistral", "qwen2", "qwen3", "gemma")
COMPRESS = {f"{base}_autocompressor": summarize for base in BASES}
