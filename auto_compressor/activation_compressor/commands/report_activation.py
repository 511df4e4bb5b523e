"""`auto-compressor report-activation`: a folder with what compressing a key/value cache costs and saves."""

import argparse
import csv
import io
import json
import math
from dataclasses import asdict
from pathlib import Path

from ...cli.common import (
    add_model_arguments,
    check_installed,
    load_model,
    load_with_tokenizer,
    progress_bar,
    read_text,
    token_ids,
)
from ...files.bundled import BUNDLED_VALIDATION_TEXT


NAME = "report-activation"
HELP = "compare ways to compress the key/value cache of a language model, and write a folder with table and pictures"

MERGING, INT8, TRAINED = "merging", "merging, int8 residuals", "merging, trained"
QUESTION_LENGTH, EXAMPLES, BATCH_SIZE = 32, 16, 4
# Facts in a context, by task.
RECALL_TASKS = {"passkey": 1, "key_value": 8}
# So that what is printed fits a terminal.
ONLY_IN_FILES = ("slots", "real ratio", "mass entropy", "NLL, full cache", "examples")
INTRODUCTION = (
    "Each context is compressed before its continuation is known, at once (one-shot) or after every segment while it"
    " is read (recursive). KL and top-1 agreement are to what the model says with the full cache, over all predicted"
    " tokens; NLL is that of the text; all in nats. Bytes are those of all tensors that the cache holds after the"
    " context."
)
PICTURES = {
    "quality.png": "Quality against bytes held",
    "clusters.png": "Clusters of keys",
    "attention.png": "What the continuation looks at",
}


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument(
        "--compressor", help="trained ActivationCompressor of the base model, to compare too: a folder or a hub name"
    )
    parser.add_argument(
        "--text",
        default=str(BUNDLED_VALIDATION_TEXT),
        help="UTF-8 text to compress and to continue (default: the bundled held-out one)",
    )
    parser.add_argument(
        "--ratios",
        type=float,
        nargs="+",
        default=[2, 4, 8, 16],
        help="compression ratios to compare, bytes of the full cache by those held (default: 2 4 8 16)",
    )
    parser.add_argument(
        "--context-length", type=int, default=1024, help="tokens that are compressed (default: %(default)s)"
    )
    parser.add_argument(
        "--continuation-length",
        type=int,
        default=128,
        help="tokens that are predicted after the compressed ones (default: %(default)s)",
    )
    parser.add_argument(
        "--max-texts",
        type=int,
        default=4,
        help="use only so many windows of the text, the first ones (default: %(default)s)",
    )
    parser.add_argument(
        "--segment-length",
        type=int,
        default=256,
        help="tokens between two compressions, where they are recursive (default: %(default)s)",
    )
    parser.add_argument(
        "--recall",
        type=int,
        nargs="?",
        const=EXAMPLES,
        metavar="EXAMPLES",
        help=f"also ask for numbers in the contexts of so many examples (without a number: {EXAMPLES})",
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder to write; made if it is not there")
    add_model_arguments(parser, "base model", dtype="float32")


def check_arguments(args: argparse.Namespace):
    """Raises an `OSError` or a `ValueError` for arguments that cannot work, before anything is loaded."""
    check_installed("matplotlib", "matplotlib", "viz")
    check_installed("sklearn", "scikit-learn", "viz")
    lowest = {"context_length": 1, "continuation_length": 2, "max_texts": 1, "segment_length": 1}
    if args.recall is not None:
        lowest["recall"] = BATCH_SIZE
    for name, least in lowest.items():
        if getattr(args, name) < least:
            raise ValueError(f"--{name.replace('_', '-')} must be {least} or more, got {getattr(args, name)}.")
    if args.recall is not None and args.recall % BATCH_SIZE:
        raise ValueError(f"--recall must be a multiple of {BATCH_SIZE}, got {args.recall}.")
    if not all(1 <= ratio < math.inf for ratio in args.ratios) or max(args.ratios) == 1:
        raise ValueError(f"--ratios must be 1 or more, and one of them above 1, got {args.ratios}.")
    if args.output.exists() and not args.output.is_dir():
        raise NotADirectoryError(f"--output {args.output} must be a folder, it is a file.")
    if not args.output.parent.is_dir():
        raise FileNotFoundError(f"--output {args.output}: there is no folder {args.output.parent}.")


def make_candidates(base_model, args: argparse.Namespace) -> dict:
    """The policies of the literature, and merging: untrained, with int8 residuals, and trained if there is one."""
    from ..cache_policies import POLICIES
    from ..modeling_activation_compressor import ActivationCompressor

    untrained = ActivationCompressor.from_base(base_model).eval()
    candidates = {MERGING: (untrained, None)}
    if args.compressor is not None:
        source = argparse.Namespace(model=args.compressor, device=args.device)
        candidates[TRAINED] = (load_model(source, "activation_compressor", option="--compressor"), None)
    candidates[INT8] = (ActivationCompressor.from_base(base_model, residual_int8=True).eval(), None)
    return candidates | {name: (untrained, policy) for name, policy in POLICIES.items()}


def cut_windows(input_ids, length: int, max_texts: int) -> list:
    """Consecutive windows `(1, length)` of a text."""
    windows = [window for window in input_ids.split(length, dim=1)[:max_texts] if window.shape[1] == length]
    if not windows:
        raise ValueError(f"The text must hold {length} tokens, it has {input_ids.shape[1]}.")
    return windows


def recall_datasets(base_model, tokenizer, text: str, args: argparse.Namespace) -> dict:
    """Examples of every task, by its name."""
    from ...evaluation.recall import RecallTask, recall_dataset
    from ..metrics import check_length

    if args.recall is None:
        return {}
    length = args.context_length + QUESTION_LENGTH
    check_length(base_model, length)
    tasks = [RecallTask(name, length, QUESTION_LENGTH, pairs=pairs) for name, pairs in RECALL_TASKS.items()]
    return {task.name: recall_dataset(task, tokenizer, "validation", args.recall, text=text) for task in tasks}


def look_inside(base_model, candidates: dict, text, args: argparse.Namespace) -> tuple[tuple, dict]:
    """
    Compresses one context by merging, untrained and trained, to the least ratio above 1. Returns what the last of them
    makes of the middle layer, and the shares of attention of each.
    """
    import torch

    from ..merging_cache import merging_attention
    from ..metrics import attention_shares, compress_copy, read_full

    ratio = min(ratio for ratio in args.ratios if ratio > 1)
    shares = {}
    with merging_attention(base_model), torch.no_grad():
        for name in (name for name in (MERGING, TRAINED) if name in candidates):
            compressor, _ = candidates[name]
            full = read_full(base_model, text[:, : args.context_length], compressor.config.observation_window)
            cache, compressed = compress_copy(full, candidates[name], ratio)
            inside = (cache, compressed, text[:, args.context_length :])
            shares[f"{name}, ratio {ratio:g}"] = attention_shares(base_model, compressor, *inside)
    return compressed[len(compressed) // 2], shares


def draw_pictures(results: dict, layer: tuple, shares: dict) -> dict[str, bytes]:
    """The pictures by file name."""
    from ..figures import draw_attention, draw_clusters, draw_quality, png_bytes

    figures = (draw_quality(results), draw_clusters(*layer), draw_attention(shares))
    return {name: png_bytes(figure) for name, figure in zip(PICTURES, figures, strict=True)}


def result_rows(results: dict) -> list[dict]:
    return [setting._asdict() | asdict(result) for setting, result in results.items()]


def csv_bytes(rows: list[dict]) -> bytes:
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue().encode()


def recall_rows(results: dict) -> list[dict]:
    names = ("mean_positions", "exact_match", "token_accuracy", "examples")
    return [setting._asdict() | {name: getattr(result, name) for name in names} for setting, result in results.items()]


def report_json(
    args: argparse.Namespace, base_model, results: dict, recall: dict, layer: tuple, shares: dict
) -> bytes:
    """Settings, the identity of the base, and all figures."""
    from ..figures import cluster_silhouettes
    from ..identity import model_fingerprint
    from ..metrics import SHARES

    names = ("model", "compressor", "text", "ratios", "context_length", "continuation_length", "max_texts")
    names += ("segment_length", "recall", "dtype")
    state, slots = layer
    silhouettes = cluster_silhouettes(state.keys[0, 0], slots.assignment[0, 0])
    own, shuffled = (None if math.isnan(value) else value for value in silhouettes)
    report = {
        "settings": {name: getattr(args, name) for name in names},
        "base": {"model_type": base_model.config.model_type, "fingerprint": model_fingerprint(base_model)},
        "quality": result_rows(results),
        "recall": {name: recall_rows(rows) for name, rows in recall.items()},
        "silhouette": {"layer": state.layer_idx, "head": 0, "slots": own, "shuffled": shuffled},
        "attention": {"columns": SHARES, "layers": {name: parts.tolist() for name, parts in shares.items()}},
    }
    return json.dumps(report, indent=2).encode()


def print_table(title: str, table):
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    header, rows = table
    columns = [index for index, column in enumerate(header) if column not in ONLY_IN_FILES]
    shown = Table(title=title, box=SIMPLE)
    for index in columns:
        shown.add_column(header[index], justify="left" if index in (0, 2) else "right")
    for row in rows:
        shown.add_row(*(row[index] for index in columns))
    Console().print(shown)


def run(args: argparse.Namespace):
    check_arguments(args)
    text = read_text(args.text)

    from ...files.bases import load_base_model
    from ...files.whole_files import whole_folder
    from ..metrics import compare_policies, compare_recall
    from ..page import quality_table, recall_table, report_page

    base_model, tokenizer = load_with_tokenizer(args, load_base_model)
    candidates = make_candidates(base_model, args)
    length = args.context_length + args.continuation_length
    texts = cut_windows(token_ids(tokenizer, text, base_model.device), length, args.max_texts)
    datasets = recall_datasets(base_model, tokenizer, text, args)
    with progress_bar() as progress:
        sizes = (args.ratios, args.context_length, args.segment_length)
        results = compare_policies(base_model, texts, candidates, *sizes, track=progress.track)
        asked = (QUESTION_LENGTH, candidates, args.ratios, None, BATCH_SIZE, progress.track)
        recall = {name: compare_recall(base_model, dataset, *asked) for name, dataset in datasets.items()}
    layer, shares = look_inside(base_model, candidates, texts[0], args)

    heading = f"Texts: {len(texts)}, of {args.context_length} + {args.continuation_length} tokens"
    tables = {heading: quality_table(results)}
    tables |= {
        f"Recall: {name}, {args.recall} examples, one-shot": recall_table(rows) for name, rows in recall.items()
    }
    page = report_page(f"Compressing the key/value cache of {args.model}", INTRODUCTION, tables, PICTURES)
    files = {
        "quality.csv": csv_bytes(result_rows(results)),
        "report.json": report_json(args, base_model, results, recall, layer, shares),
        **draw_pictures(results, layer, shares),
        "index.html": page.encode("utf-8", "replace"),
    }
    with whole_folder(args.output) as part:
        for name, data in files.items():
            (part / name).write_bytes(data)
    for heading, table in tables.items():
        print_table(heading, table)
