"""Sub-commands of `auto-compressor`, in the order in which they are listed."""

from . import decode, encode, info_codes


TITLE = "Hierarchical byte autoencoder"
COMMANDS = (encode, decode)
COMPRESS = {"hierarchical_autoencoder": encode}
DECOMPRESS = {"hierarchical_autoencoder": decode}
INFO = info_codes
