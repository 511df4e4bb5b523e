"""Compressors of today beside which the benchmarks put models, and long texts that no model was trained on."""

import bz2
import json
import lzma
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from measuring import cpu_seconds


LIBRARIES = {
    "xz -9e": partial(lzma.compress, preset=9 | lzma.PRESET_EXTREME),
    "bzip2 -9": bz2.compress,
}
PROGRAMS = {
    "zstd -22": "zstd -q --ultra -22 {source} -o {target}",
    "brotli -11": "brotli -q 11 -w 24 {source} -o {target}",
    "zpaq -m5": "zpaq a {target} {source} -m5 -t1",
}
LEAST, MOST = 10_000, 200_000  # characters of a long document


def children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def program_size(command: str, data: bytes) -> int:
    """Bytes of the file that a program makes of the data."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "data", Path(folder) / "data.zpaq"  # which zpaq would add by itself
        source.write_bytes(data)
        subprocess.run(command.format(source=source, target=target).split(), check=True, capture_output=True)
        return target.stat().st_size


def compressed(data: bytes) -> Iterator[tuple[str, int, float]]:
    """Name, bytes and CPU seconds of every compressor; programs that are not installed are left out."""
    sizes: dict[str, int] = {}
    for name, compress in LIBRARIES.items():
        spent = cpu_seconds(lambda name=name, compress=compress: sizes.update({name: len(compress(data))}))
        yield name, sizes[name], spent
    for name, command in PROGRAMS.items():
        if shutil.which(command.split()[0]):
            start = children_seconds()
            size = program_size(command, data)
            yield name, size, children_seconds() - start


def corpus_documents(corpus: Path, numbers: dict[str, int]) -> dict[str, bytes]:
    """The first long documents of files of a corpus that `run/make_corpus.sh` wrote, where there is one."""
    found = {}
    for name, number in numbers.items():
        if (corpus / name).exists():
            with (corpus / name).open(encoding="utf-8") as file:
                rows = [row for row in map(json.loads, file) if LEAST <= len(row["text"]) <= MOST]
            found |= {row["source"]: row["text"].encode() for row in rows[:number]}
    return found
