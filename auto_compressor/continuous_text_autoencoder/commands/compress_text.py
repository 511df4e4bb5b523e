"""`auto-compressor compress` with a ContinuousTextAutoencoder: a text into latents."""

import argparse
import time

from ...cli.common import (
    check_output,
    load_model,
    load_tokenizer,
    print_facts,
    read_text,
    token_ids,
)


KIND = "continuous text autoencoders: text to latents, from which most of it comes back"


def add_options(parser: argparse.ArgumentParser):
    """What `compress` takes for these models beside file, output, model and device."""


def load_with_its_tokenizer(args: argparse.Namespace):
    """Returns the ContinuousTextAutoencoder of `--model` and the tokenizer beside it, which must be its own."""
    from ..modeling_continuous_text_autoencoder import check_tokenizer

    model, tokenizer = load_model(args, "continuous_text_autoencoder"), load_tokenizer(args.model)
    check_tokenizer(tokenizer, model.config.vocab_size)
    return model, tokenizer


def run(args: argparse.Namespace):
    import torch

    from ..latents import save_latents

    if str(args.output) == "-":
        raise ValueError("--output must be a file, latents are not written to standard output.")
    check_output(args.output)
    text = read_text(args.file)
    model, tokenizer = load_with_its_tokenizer(args)
    input_ids = token_ids(tokenizer, text, model.device).long()  # (1, length)
    start = time.perf_counter()
    with torch.no_grad():
        latents = model.encode(input_ids).mean  # (1, latent_length, latent_dim)
        right = (model.decode_tokens(latents)[:, : input_ids.shape[1]] == input_ids).double().mean()
    seconds = time.perf_counter() - start
    save_latents(args.output, latents, model, num_tokens=input_ids.shape[1])
    facts = {
        "tokens": f"{input_ids.shape[1]:,}",
        "latents": f"{latents.shape[1]:,}",
        "tokens per latent": f"{input_ids.shape[1] / latents.shape[1]:.1f}",
        "bytes of text / of latents": f"{len(text.encode()):,} / {latents.numel() * latents.element_size():,}",
        "tokens that come back": f"{right:.2%}",
        "file": str(args.output),
        "seconds (tokens/s)": f"{seconds:.1f} ({input_ids.shape[1] / seconds:,.0f})",
    }
    print_facts(facts)
