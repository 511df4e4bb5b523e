"""Lossless compression of any bytes: a causal language model predicts, a range coder stores what it did not know."""
