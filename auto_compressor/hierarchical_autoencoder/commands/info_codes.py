"""`auto-compressor info` of a file of codes."""


def reads(blob: bytes) -> bool:
    from ...files.coded_file import CODES_MAGIC

    return blob.startswith(CODES_MAGIC)


def facts(blob: bytes, name: str) -> dict:
    from ..codec import read_header

    header = read_header(blob, name)
    return {"kind": "codes of a hierarchical autoencoder", "version": header.version, **header.facts()}
