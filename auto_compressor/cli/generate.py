"""`auto-compressor generate`: text after a prompt and, before it, summary vectors."""

import argparse

from .common import add_model_arguments, load_model, read_text, token_ids


NAME = "generate"
HELP = "continue a prompt, with the summary vectors of a text before it"


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument("--prompt", required=True, help="text to continue; - reads standard input")
    parser.add_argument("--softprompt", help="file of `auto-compressor summarize`, made by the same model")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default)")
    parser.add_argument("--top-p", type=float, default=1.0, help="sample from the most likely tokens of this mass")
    parser.add_argument("--seed", type=int, default=0, help="of sampling")
    add_model_arguments(parser)


def sampling_options(args: argparse.Namespace) -> dict:
    if not 0 <= args.temperature < float("inf"):
        raise ValueError(f"--temperature must be 0 or more, and finite, got {args.temperature}.")
    if not 0 < args.top_p <= 1:
        raise ValueError(f"--top-p must be above 0 and at most 1, got {args.top_p}.")
    if args.temperature == 0:
        return {"do_sample": False}
    return {"do_sample": True, "temperature": args.temperature, "top_p": args.top_p}


def run(args: argparse.Namespace):
    if args.max_new_tokens < 1:
        raise ValueError(f"--max-new-tokens must be 1 or more, got {args.max_new_tokens}.")
    options = sampling_options(args)
    prompt = read_text("-") if args.prompt == "-" else args.prompt
    if not prompt:
        raise ValueError("--prompt must not be empty.")
    model, tokenizer = load_model(args)

    from transformers import TextStreamer, set_seed

    from ..softprompts import load_softprompt

    softprompt = load_softprompt(args.softprompt, model).vectors if args.softprompt else None
    input_ids = token_ids(tokenizer, prompt, model.device)
    set_seed(args.seed)
    model.generate(
        input_ids,
        attention_mask=input_ids.new_ones(input_ids.shape),
        softprompt=softprompt,
        max_new_tokens=args.max_new_tokens,
        pad_token_id=model.config.pad_token_id,
        streamer=TextStreamer(tokenizer, skip_special_tokens=True),
        **options,
    )
