"""Byte language models: with adaptive borders, and their GRU baseline; a lossless codec."""
