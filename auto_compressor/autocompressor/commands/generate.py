"""`auto-compressor generate`: text after a prompt and, before it, summary vectors."""

import argparse
import sys
from pathlib import Path

from ...cli.common import add_model_arguments, check_installed, load_with_tokenizer, read_text, token_ids


NAME = "generate"
HELP = "continue a prompt; an AutoCompressor can read the summary vectors of a text before it"


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument("--prompt", required=True, help="text to continue; - reads standard input")
    parser.add_argument(
        "--chat",
        action="store_true",
        help="write the prompt in the chat template of the model; of --prompt - every line is a turn of a"
        " conversation, whose older turns become summary vectors",
    )
    parser.add_argument("--system", help="system prompt of --chat")
    parser.add_argument("--softprompt", help="file of `auto-compressor summarize`, made by the same model")
    parser.add_argument("--store", type=Path, help="folder of `auto-compressor store build`, made by the same model")
    parser.add_argument(
        "--top",
        type=int,
        default=3,
        help="documents of --store, those that BM25 finds for the prompt, whose summary vectors are read (default:"
        " %(default)s)",
    )
    parser.add_argument(
        "--segment-length",
        type=int,
        help="cut the prompt and compress all but its last segment (default: as an AutoCompressor was trained)",
    )
    parser.add_argument(
        "--max-new-tokens", type=int, default=64, help="most tokens to generate (default: %(default)s)"
    )
    parser.add_argument(
        "--temperature", type=float, default=0.0, help="temperature of sampling; 0 takes the likeliest token (default)"
    )
    parser.add_argument(
        "--top-p",
        type=float,
        default=1.0,
        help="sample from the likeliest tokens that have this probability together (default: all)",
    )
    parser.add_argument(
        "--top-k", type=int, default=0, help="sample from so many of the likeliest tokens; 0 is all (default)"
    )
    parser.add_argument(
        "--num-beams",
        type=int,
        default=1,
        help="beams of beam search, whose text is printed at the end (default: 1, no beam search)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of sampling (default: %(default)s)")
    add_model_arguments(parser, "AutoCompressor or another causal language model")


def generation_options(args: argparse.Namespace) -> dict:
    for name in ("max_new_tokens", "num_beams"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be 1 or more, got {getattr(args, name)}.")
    if not 0 <= args.temperature < float("inf"):
        raise ValueError(f"--temperature must be 0 or more, and finite, got {args.temperature}.")
    if not 0 < args.top_p <= 1:
        raise ValueError(f"--top-p must be above 0 and at most 1, got {args.top_p}.")
    if args.top_k < 0:
        raise ValueError(f"--top-k must be 0 or more, got {args.top_k}.")
    options = {"max_new_tokens": args.max_new_tokens, "num_beams": args.num_beams, "do_sample": args.temperature > 0}
    if args.temperature > 0:
        options |= {"temperature": args.temperature, "top_p": args.top_p, "top_k": args.top_k}
    return options


def segment_options(segment_length: int | None, model) -> dict:
    """How the prompt is cut, where it is; a `ValueError` for models that make no summary vectors."""
    makes_summaries = getattr(model.config, "max_vectors", 0) > 0
    if segment_length is not None and not makes_summaries:
        raise ValueError(f"--segment-length needs an AutoCompressor, --model is a {model.config.model_type}.")
    if segment_length is not None and segment_length < 1:
        raise ValueError(f"--segment-length must be 1 or more, got {segment_length}.")
    length = segment_length or (model.config.segment_length if makes_summaries else None)
    return {} if length is None else {"segment_lengths": length}


def check_autocompressor(option: str, model):
    """Raises a `ValueError` for an option that another language model does not take."""
    from ..modeling_autocompressor import AutoCompressorMixin

    if not isinstance(model, AutoCompressorMixin):
        raise ValueError(f"{option} needs an AutoCompressor, --model is a {model.config.model_type}.")


def softprompt_options(path: str | None, model) -> dict:
    """What only an AutoCompressor takes."""
    from ..softprompts import load_softprompt

    if path is None:
        return {}
    check_autocompressor("--softprompt", model)
    return {"softprompt": load_softprompt(path, model).vectors}


def store_options(args: argparse.Namespace, prompt: str, model) -> dict:
    """The summary vectors of the documents that the prompt is about; says on standard error which they are."""
    from ..retrieval import fuse, search
    from ..store import SummaryStore
    from .store import print_found

    check_autocompressor("--store", model)
    store = SummaryStore(args.store)
    store.check_model(model)
    found = search(store, prompt, args.top)
    print(f"Documents of {args.store} whose summary vectors are read ({len(found)}):", file=sys.stderr)
    print_found(found, sys.stderr)
    return {"softprompt": fuse(store, found, model)}


def converse(args: argparse.Namespace, turns: list[str], model, tokenizer, options: dict):
    """Prints what the assistant says to each turn."""
    from ..chat import Chat

    check_autocompressor("--chat", model)
    chat = Chat(model, tokenizer, system=args.system, softprompt=options.pop("softprompt", None))
    for turn in turns:
        print(chat.answer(turn, **options), flush=True)


def run(args: argparse.Namespace):
    from ..bases import load_language_model

    options = generation_options(args)
    if args.system is not None and not args.chat:
        raise ValueError("--system needs --chat.")
    if args.store is not None:
        check_installed("bm25s", "bm25s", "store")
        if args.softprompt is not None:
            raise ValueError("Give one of --softprompt and --store, not both.")
    prompt = read_text("-") if args.prompt == "-" else args.prompt
    if not prompt:
        raise ValueError("--prompt must not be empty.")
    model, tokenizer = load_with_tokenizer(args, load_language_model)

    from transformers import TextStreamer, set_seed

    options |= softprompt_options(args.softprompt, model)
    if args.store is not None:
        options |= store_options(args, prompt, model)
    set_seed(args.seed)
    if args.chat:
        turns = [line for line in prompt.splitlines() if line.strip()] if args.prompt == "-" else [prompt]
        return converse(args, turns, model, tokenizer, options)
    options |= segment_options(args.segment_length, model)
    input_ids = token_ids(tokenizer, prompt, model.device)
    streamer = TextStreamer(tokenizer, skip_special_tokens=True)
    sequences = model.generate(
        input_ids,
        attention_mask=input_ids.new_ones(input_ids.shape),
        pad_token_id=model.config.pad_token_id,
        streamer=streamer if args.num_beams == 1 else None,
        **options,
    )
    if args.num_beams > 1:
        print(tokenizer.decode(sequences[0], skip_special_tokens=True))
