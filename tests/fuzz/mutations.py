"""What becomes of a good file: bytes, JSON and safetensors, damaged by a generator of random numbers."""

import json
import random
from collections.abc import Callable
from typing import Any

import hypothesis
from damage_testing import HOSTILE, flipped, resized
from hypothesis import HealthCheck, Phase
from hypothesis import strategies as st


Mutation = Callable[[bytes, random.Random], bytes]
OTHER = [*HOSTILE, float("nan"), -(2**31), "nan", "../../x", "\x00", "\ud800", {"a": {"b": []}}, [[[]]], [0] * 50]


def drawn(strategy: st.SearchStrategy, count: int, seed: int) -> list:
    """So many examples of a strategy of hypothesis, the same for the same seed."""
    found: list = []

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=max(count, 1),
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.given(strategy)
    def collect(example):
        found.append(example)

    collect()
    return found[:count]


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every object or list within a JSON value, with each of its keys."""
    if not isinstance(value, dict | list):
        return []
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    return [(value, key) for key in keys] + [place for key in keys for place in places(value[key])]


def with_other_value(values: Any, draw: random.Random) -> Any:
    """A JSON value in which one place holds something else, or is missing; it is changed itself."""
    within, key = draw.choice(places(values))
    if draw.random() < 0.15:
        del within[key]
    elif draw.random() < 0.2:
        within[key] = within[draw.choice(list(within))] if isinstance(within, dict) else [within[key]]
    else:
        within[key] = draw.choice(OTHER)
    return values


def other_json(data: bytes, draw: random.Random) -> bytes:
    values = json.loads(data)
    for _ in range(draw.randint(1, 3)):
        if places(values):
            values = with_other_value(values, draw)
    return json.dumps(values).encode()


def nested_json(data: bytes, draw: random.Random) -> bytes:
    """Something that is JSON to the eye: too deep, too long a number, twice the same, no object."""
    deep = draw.choice([b"[", b'{"a":']) * draw.choice([50, 2000, 100_000])
    number = b'{"model_type": ' + b"9" * draw.choice([20, 5000]) + b"}"
    return draw.choice([deep, number, data + data, b"[" + data + b"]", b"", b"null", b"\xff\xfe" + data])


def split_safetensors(data: bytes) -> tuple[bytes, bytes]:
    end = 8 + int.from_bytes(data[:8], "little")
    return data[8:end], data[end:]


def join_safetensors(header: bytes, body: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header + body


def other_header(data: bytes, draw: random.Random) -> bytes:
    """A safetensors file whose header says something else, with its length made right again."""
    header, body = split_safetensors(data)
    return join_safetensors(draw.choice([other_json, flipped, nested_json])(header, draw), body)


def other_header_length(data: bytes, draw: random.Random) -> bytes:
    length = draw.choice([0, 1, 7, len(data), 2**31, 2**40, 2**63, 2**64 - 1])
    return length.to_bytes(8, "little") + data[8:]


def other_tensors(data: bytes, draw: random.Random) -> bytes:
    """A whole safetensors file, of which one tensor is gone, has another name, or another shape or dtype that fits."""
    header, body = split_safetensors(data)
    tensors = json.loads(header)
    name = draw.choice(sorted(tensors.keys() - {"__metadata__"}))
    tensor = tensors.pop(name)
    size, way = tensor["data_offsets"][1] - tensor["data_offsets"][0], draw.randrange(4)
    if way == 0:
        tensors["x." + name] = tensor
    elif way == 1:
        tensors[name] = tensor | {"shape": [size // 4, 1]}
    elif way == 2:
        tensors[name] = tensor | {"dtype": "U8", "shape": [size]}
    else:
        tensors[name] = tensor | {"shape": tensor["shape"][::-1]}
    return join_safetensors(json.dumps(tensors).encode(), body)


def flipped_body(data: bytes, draw: random.Random) -> bytes:
    header, body = split_safetensors(data)
    return join_safetensors(header, flipped(body, draw))


def garbage(data: bytes, draw: random.Random) -> bytes:
    return draw.choice([b"", b"\x00" * 100, b"PK\x03\x04" + data[:50], b"\x80\x04.", draw.randbytes(200)])


BYTES: list[Mutation] = [flipped, resized, garbage]
JSON: list[Mutation] = [other_json, other_json, other_json, nested_json, flipped, resized]
SAFETENSORS: list[Mutation] = [other_header, other_header, other_header_length, other_tensors, flipped_body, *BYTES]


def damaged(data: bytes, ways: list[Mutation], index: int, draw: random.Random) -> bytes:
    """A damaged copy, each way in turn."""
    return ways[index % len(ways)](data, draw)
