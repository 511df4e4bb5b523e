"""Hostile input, in great numbers: what the readers and writers of the package make of it.

Every case runs in a process of its own, so that none can take the others with it, and what it costs can be told. The
same target, count and seed give the same cases. `bash run/fuzz.sh` runs them all, docs/reliability.md says what came
out.
"""
