"""Training: arguments, data, and the trainer of AutoCompressors."""
