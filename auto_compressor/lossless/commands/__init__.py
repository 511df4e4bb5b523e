"""What `auto-compressor compress` and `decompress` do with language models, and `info` with their files."""
