"""The command `auto-compressor`: its main program, the sub-commands of all families, and what sub-commands share."""
