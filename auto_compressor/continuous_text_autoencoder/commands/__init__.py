"""Sub-commands of `auto-compressor`, in the order in which they are listed."""

from . import (
    compress_text,
    decompress_text,
    filtered_test_set,
    random_test_set,
    reconstruction_accuracy,
    token_statistics,
    view_errors,
)


TITLE = "Continuous text autoencoder"
COMMANDS = (
    token_statistics,
    filtered_test_set,
    random_test_set,
    reconstruction_accuracy,
    view_errors,
)
COMPRESS = {"continuous_text_autoencoder": compress_text}
DECOMPRESS = {"continuous_text_autoencoder": decompress_text}
