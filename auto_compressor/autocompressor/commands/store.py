"""`auto-compressor store`: many documents compressed once, kept on disk, searched and read."""

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

from ...cli.common import (
    add_budget_argument,
    add_dataset_arguments,
    add_device_argument,
    add_dtype_argument,
    check_installed,
    load_with_tokenizer,
    print_facts,
    progress_bar,
)


NAME = "store"
HELP = "compress many documents once into a store on disk; search it, add to it, check it"


def add_arguments(parser: argparse.ArgumentParser):
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    for name, (run_action, add_options, text) in ACTIONS.items():
        action = actions.add_parser(name, help=text, description=text)
        add_options(action)
        action.set_defaults(run_action=run_action)


def add_document_options(parser: argparse.ArgumentParser):
    parser.add_argument(
        "data",
        help="documents: a txt, md, rst or html file is one; of a jsonl, csv or parquet file every row is one; or a"
        " folder of such files, or a dataset of the hub",
    )
    add_dataset_arguments(parser, "a dataset of the hub")
    parser.add_argument(
        "--engine",
        default="datasets",
        choices=["datasets", "ray"],
        help="who calls the model: datasets, in this process, or ray, with an actor for each device (default:"
        " %(default)s)",
    )
    parser.add_argument("--actors", type=int, default=2, help="actors of --engine ray (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=8, help="texts side by side (default: %(default)s)")
    parser.add_argument(
        "--shard-size", type=int, default=64, help="documents that are written at a time (default: %(default)s)"
    )
    add_device_argument(parser)
    add_dtype_argument(parser)


def add_build_options(parser: argparse.ArgumentParser):
    add_document_options(parser)
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the store; goes on with one")
    parser.add_argument("--model", required=True, help="AutoCompressor: a folder or a hub name")
    parser.add_argument("--segment-length", type=int, help="tokens per segment (default: as the model was trained)")
    add_budget_argument(parser)


def add_add_options(parser: argparse.ArgumentParser):
    add_document_options(parser)
    add_store_option(parser)
    parser.add_argument("--model", help="the AutoCompressor that made the store, if it was moved since")


def add_store_option(parser: argparse.ArgumentParser):
    parser.add_argument("--store", type=Path, required=True, help="folder of the store")


def add_remove_options(parser: argparse.ArgumentParser):
    parser.add_argument(
        "names", nargs="+", metavar="DOCUMENT", help="source or id, as `store info --list` prints them"
    )
    add_store_option(parser)


def add_info_options(parser: argparse.ArgumentParser):
    add_store_option(parser)
    parser.add_argument("--list", action="store_true", help="print a line for each document too")


def add_verify_options(parser: argparse.ArgumentParser):
    add_store_option(parser)
    parser.add_argument("--repair", action="store_true", help="take documents out whose vectors or rows are damaged")


def add_search_options(parser: argparse.ArgumentParser):
    parser.add_argument("question", help="what is looked for")
    add_store_option(parser)
    parser.add_argument("--top", type=int, default=3, help="most documents to find (default: %(default)s)")
    parser.add_argument(
        "--rerank",
        type=int,
        default=0,
        metavar="N",
        help="order the first N of BM25 by how likely the question is after their summary vectors",
    )
    parser.add_argument("--model", help="the AutoCompressor that made the store, for --rerank, if it was moved since")
    add_device_argument(parser)
    add_dtype_argument(parser)


def run(args: argparse.Namespace):
    args.run_action(args)


def make_compressor(args: argparse.Namespace, settings):
    """The model with its tokenizer, in the process that calls it."""
    from ..bases import load_autocompressor
    from ..store_engines import Compressor

    model, tokenizer = load_with_tokenizer(args, load_autocompressor)
    return Compressor(model, tokenizer, settings, args.batch_size)


def shards(args: argparse.Namespace, documents: Iterable, compressor, settings) -> Iterator:
    from ..store_engines import compress_here, compress_with_ray

    if args.engine == "datasets":
        return compress_here(documents, lambda: compressor, settings, args.shard_size)
    make = partial(make_compressor, args, settings)
    return compress_with_ray(documents, make, settings, args.shard_size, args.actors)


def check_numbers(args: argparse.Namespace):
    for name in ("actors", "batch_size", "shard_size"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be 1 or more, got {getattr(args, name)}.")
    if args.engine == "ray":
        check_installed("ray", "ray", "ray")


def reader(args: argparse.Namespace, folder: Path) -> Callable[[], Iterator]:
    """What reads the documents from the first to the last; a `ValueError` if the store is among them."""
    from ...files.documents import read_documents
    from ..store import Document

    if folder.resolve().is_relative_to(Path(args.data).resolve()):
        raise ValueError(f"The store {folder} must lie outside of its documents, {args.data}.")

    def read() -> Iterator[Document]:
        pairs = read_documents(args.data, args.text_column, args.dataset_config_name, args.split)
        return (Document(*pair) for pair in pairs)

    return read


def fill(store, args: argparse.Namespace, read: Callable[[], Iterator], listing, compressor):
    """Compresses the documents of a listing that a store lacks: they are read again, a shard at a time."""
    from ..store import pick

    store.clean()
    left, before = store.missing(listing), len(store)
    new = len(left)
    with progress_bar() as bar:
        task = bar.add_task("Compressing documents", total=new)
        for shard in shards(args, pick(read(), left), compressor, store.settings):
            store.write(*shard)
            bar.advance(task, len(shard[0]))
    check_unchanged(left)
    # Also where a run that was killed had not come so far.
    outdated = store.outdated(listing)
    store.remove(outdated)
    counts = {"documents read": listing.count, "of them new": new, "taken out": len(outdated), "before": before}
    print_store(store, {name: f"{count:,}" for name, count in counts.items()})


def check_unchanged(left: dict[str, str]):
    """Raises a `ValueError` for documents that were listed and then not found: no new text takes their places."""
    if left:
        names = ", ".join(sorted(left.values())[:5]) + (", ..." if len(left) > 5 else "")
        raise ValueError(f"These documents changed while they were read, start again to add them: {names}.")


def print_store(store, more: dict[str, str] | None = None):
    facts = {name: f"{value:,.1f}" if name == "ratio" else f"{value:,}" for name, value in store.facts().items()}
    settings = store.settings
    made = {
        "store": str(store.folder),
        "model": f"{settings.model_name} ({settings.model_type}, {settings.fingerprint[:16]})",
        "segments": f"{settings.segment_length} tokens to {settings.max_summary_length} vectors at most",
    }
    print_facts(made | facts | (more or {}))


def build(args: argparse.Namespace):
    from ..store import Listing, StoreSettings, SummaryStore

    check_numbers(args)
    read = reader(args, args.output)
    compressor = make_compressor(args, None)
    listing = Listing(read(), compressor.has_tokens)
    settings = StoreSettings.of_model(compressor.model, args.segment_length, args.max_summary_length)
    compressor.settings = settings
    fill(SummaryStore.create(args.output, settings), args, read, listing, compressor)


def add(args: argparse.Namespace):
    from ..store import Listing, SummaryStore

    check_numbers(args)
    store = SummaryStore(args.store)
    read = reader(args, args.store)
    args.model = args.model or store.settings.model_name
    compressor = make_compressor(args, store.settings)
    store.check_model(compressor.model)
    listing = Listing(read(), compressor.has_tokens)
    fill(store, args, read, listing, compressor)


def remove(args: argparse.Namespace):
    from ..store import SummaryStore

    store = SummaryStore(args.store)
    ids = store.select(args.names)
    store.remove(ids)
    store.clean()
    print_store(store, {"removed documents": f"{len(ids):,}"})


def info(args: argparse.Namespace):
    from ..store import SummaryStore

    store = SummaryStore(args.store)
    print_store(store)
    if args.list:
        for row in store.rows.values():
            print(f"{row.id}  {row.tokens:>8,} tokens  {row.vectors:>6,} vectors  {row.source}")


def verify(args: argparse.Namespace):
    """Raises a `ValueError` that counts what is wrong, after a line for each."""
    from ..store import SummaryStore, take_out_damaged_rows

    problems: list[tuple[str | None, str]] = []
    if args.repair:
        problems += [(None, problem) for problem in take_out_damaged_rows(args.store)]
    store = SummaryStore(args.store)
    problems += store.problems()
    for _, problem in problems:
        print(problem)
    if args.repair:
        store.remove(id for id, _ in problems if id is not None)
        store.clean()
        print(f"{len(problems):,} problems are taken out: `store build` makes the documents anew.")
    elif problems:
        raise ValueError(f"The store {args.store} has {len(problems)} problems; `--repair` takes them out.")
    print(f"{len(store):,} documents are as they were saved.")


def search_store(args: argparse.Namespace):
    check_installed("bm25s", "bm25s", "store")

    from ..bases import load_autocompressor
    from ..retrieval import rerank, search
    from ..store import SummaryStore

    if args.rerank < 0:
        raise ValueError(f"--rerank must be 0 or more, got {args.rerank}.")
    store = SummaryStore(args.store)
    found = search(store, args.question, max(args.top, args.rerank))
    if args.rerank > 0:
        args.model = args.model or store.settings.model_name
        model, tokenizer = load_with_tokenizer(args, load_autocompressor)
        first, rest = found[: args.rerank], found[args.rerank :]
        found = [*rerank(store, first, args.question, model, tokenizer), *rest]
    print_found(found[: args.top])


def print_found(found: list, file=None):
    for each in found:
        begin = " ".join(each.document.text.split())[:80]
        print(f"{each.score:8.3f}  {each.document.source}  {begin}", file=file or sys.stdout)


ACTIONS = {
    "build": (build, add_build_options, "compress documents into a new store, or go on with one"),
    "add": (add, add_add_options, "compress further documents; one whose source is there already takes its place"),
    "remove": (remove, add_remove_options, "take documents out"),
    "info": (info, add_info_options, "what a store holds, and which model made it"),
    "verify": (verify, add_verify_options, "whether everything is as it was saved"),
    "search": (search_store, add_search_options, "documents that have most words in common with a question (BM25)"),
}
