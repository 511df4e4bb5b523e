"""`auto-compressor export-prompt`: summary vectors and a prompt as the embeddings that vLLM reads."""

import argparse
from pathlib import Path

from ...cli.common import add_model_arguments, check_output, load_with_tokenizer, print_facts, read_text, token_ids


NAME = "export-prompt"
HELP = "write summary vectors and a prompt after them as the prompt_embeds of vLLM"


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument("softprompt", help="file of `auto-compressor summarize`, made by the same model")
    parser.add_argument("--prompt", required=True, help="text after the summary vectors; - reads standard input")
    parser.add_argument("-o", "--output", type=Path, required=True, help="file to write, of one tensor")
    add_model_arguments(parser)


def run(args: argparse.Namespace):
    from ..bases import load_autocompressor
    from ..serving import export_prompt

    check_output(args.output)
    prompt = read_text("-") if args.prompt == "-" else args.prompt
    if not prompt:
        raise ValueError("--prompt must not be empty.")
    model, tokenizer = load_with_tokenizer(args, load_autocompressor)
    input_ids = token_ids(tokenizer, prompt, model.device)
    embeds = export_prompt(model, input_ids, args.softprompt, args.output)
    facts = {
        "file": str(args.output),
        "summary vectors": f"{len(embeds) - input_ids.shape[1]:,}",
        "tokens of the prompt": f"{input_ids.shape[1]:,}",
        "dtype": str(embeds.dtype).removeprefix("torch."),
    }
    print_facts(facts)
