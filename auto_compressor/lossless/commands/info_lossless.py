"""`auto-compressor info` of a file that was compressed without loss."""

from ...cli.common import check_installed


def reads(blob: bytes) -> bool:
    from ...files.coded_file import LANGUAGE_MODEL_MAGIC

    return blob.startswith(LANGUAGE_MODEL_MAGIC)


def facts(blob: bytes, name: str) -> dict:
    from dataclasses import asdict

    check_installed("constriction", "constriction", "codec")

    from ..header import read_header

    header = read_header(blob, name)
    bits_per_byte = header.bits_per_byte if header.num_bytes else None
    return {"kind": "without loss, by a language model", **asdict(header), "bits_per_byte": bits_per_byte}
