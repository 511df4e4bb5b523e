"""`auto-compressor decompress` with a ContinuousTextAutoencoder: the text of latents."""

import argparse

from ...cli.common import check_files, load_model, load_tokenizer, write_bytes


KIND = "continuous text autoencoders"


def add_options(parser: argparse.ArgumentParser):
    """What `decompress` takes for these models beside file, output, model and device."""


def run(args: argparse.Namespace):
    from ..latents import load_latents
    from ..modeling_continuous_text_autoencoder import check_tokenizer

    if args.file == "-":
        raise ValueError("FILE must be a file of latents, they are not read from standard input.")
    check_files(args)
    model = load_model(args, "continuous_text_autoencoder")
    tokenizer = load_tokenizer(args.model)
    check_tokenizer(tokenizer, model.config.vocab_size)
    latents, num_tokens = load_latents(args.file, model)
    tokens = model.decode_tokens(latents)[0, :num_tokens]  # (num_tokens,)
    write_bytes(args.output, tokenizer.decode(tokens, clean_up_tokenization_spaces=False).encode())
