"""AutoCompressors: language models that compress their own context into summary vectors."""
