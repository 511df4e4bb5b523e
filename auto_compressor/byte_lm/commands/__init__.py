"""What `auto-compressor compress` and `decompress` do with language models of bytes."""

from ...lossless.commands import compress_lossless, decompress_lossless


TITLE = "Byte language models"
COMMANDS = ()
COMPRESS = dict.fromkeys(("adaptive_byte", "gru_byte"), compress_lossless)
CODECS = {"gru_byte": "integer_codec"}  # in place of the one for any language model
DECOMPRESS = dict.fromkeys(("adaptive_byte", "gru_byte"), decompress_lossless)
