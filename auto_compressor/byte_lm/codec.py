"""Files without loss of language models of bytes, by the names that they had when no other models made some."""

from ..lossless.codec import compress_bytes
from ..lossless.header import LosslessHeader as ByteLMHeader
from ..lossless.header import read_header
from .integer_codec import decompress_bytes


__all__ = ["ByteLMHeader", "compress_bytes", "decompress_bytes", "read_header"]
