"""What `auto-compressor compress` and `decompress` do with language models of bytes."""

from ...lossless.commands import compress_lossless, decompress_lossless


TITLE = "Byte language models"
COMMANDS = ()
COMPRESS = dict.fromkeys(("adaptive_byte", "gru_byte"), compress_lossless)
DECOMPRESS = dict.fromkeys(("adaptive_byte", "gru_byte"), decompress_lossless)
