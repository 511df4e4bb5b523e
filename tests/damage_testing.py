"""Damaged files: what a fault or an attacker makes of a good one, with its checksum made right again."""

import json
import random
import time
from collections.abc import Callable, Iterator

from auto_compressor.files.coded_file import PREFIX, write_parts


NUMBERS = [-1, 0, 1, 2, 3, 255, 2**16, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1, 10**30]
HOSTILE = [
    *NUMBERS,
    True,
    None,
    0.5,
    1e308,
    "",
    "a",
    [],
    {},
    [["bits", 2**40]],
    [["lzma", -1]] * 5,
    "f" * 64,
    "x" * 900,
]


def flipped(data: bytes, generator: random.Random) -> bytes:
    """One to four bytes are others."""
    damaged = bytearray(data)
    for _ in range(generator.randint(1, 4) if damaged else 0):
        damaged[generator.randrange(len(damaged))] = generator.randrange(256)
    return bytes(damaged)


def resized(data: bytes, generator: random.Random) -> bytes:
    cut = data[: generator.randint(0, len(data))]
    return generator.choice([cut, data + bytes(generator.randint(1, 9)), data * 3])


def other_json(header: bytes, generator: random.Random) -> bytes:
    """A field of a JSON header has another value, or is missing."""
    values = json.loads(header)
    name = generator.choice(sorted(values))
    values[name] = generator.choice(HOSTILE)
    before = json.loads(header)[name]
    if name == "streams" and isinstance(before, list) and generator.random() < 0.7:
        values[name] = [["zlib", length] for _, length in before]
    if name == "lossless":
        values[name] = not before
    if generator.random() < 0.1:
        del values[name]
    return json.dumps(values).encode()


def other_number(header: bytes, generator: random.Random) -> bytes:
    """Four bytes of a packed header are those of another number."""
    place = generator.randrange(0, len(header) - 4, 4)
    number = generator.choice([number % 2**32 for number in NUMBERS])
    return header[:place] + number.to_bytes(4, "little") + header[place + 4 :]


def damaged_parts(blob: bytes, count: int, seed: int = 0) -> Iterator[bytes]:
    """So many damaged copies of a coded file, each with the checksum of what it holds."""
    magic, version, length, _, _ = PREFIX.unpack_from(blob)
    header, body = blob[PREFIX.size :][:length], blob[PREFIX.size + length :]
    in_header = other_json if header.startswith(b"{") else other_number
    ways = [
        lambda draw: (in_header(header, draw), body),
        lambda draw: (in_header(in_header(header, draw), draw), body),
        lambda draw: (flipped(header, draw), body),
        lambda draw: (header, flipped(body, draw)),
        lambda draw: (resized(header, draw), body),
        lambda draw: (header, resized(body, draw)),
    ]
    generator = random.Random(seed)
    for index in range(count):
        yield write_parts(magic, version, *ways[index % len(ways)](generator))


def outcomes(read: Callable[[bytes], bytes], files: Iterator[bytes], original: bytes) -> tuple[int, int, float]:
    """
    How many files were refused by a `ValueError` of one line, how many came back, and the seconds of the slowest.

    Any other error, and any other bytes that come back, fail the test.
    """
    refused, restored, slowest = 0, 0, 0.0
    for file in files:
        start = time.perf_counter()
        try:
            assert read(file) == original, "other bytes came back"
            restored += 1
        except ValueError as error:
            assert "\n" not in str(error) and len(str(error)) < 500, error
            refused += 1
        slowest = max(slowest, time.perf_counter() - start)
    return refused, restored, slowest
