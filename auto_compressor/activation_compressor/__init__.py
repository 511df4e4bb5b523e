"""Activation compression: a key/value cache that shrinks."""
