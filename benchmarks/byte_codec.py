"""The codec of whole numbers beside that of float64, and the bundled byte model beside other compressors.

    python benchmarks/byte_codec.py                          # sizes, speeds, growth: 10 minutes on one thread
    python benchmarks/byte_codec.py --only sizes --files book.txt code.py
    python benchmarks/byte_codec.py --only speed --threads 2 --num_bytes 65536 --repeats 5

Sizes are of whole files, every one restored and compared. Speeds are of both codecs in turn, with the same model, the
one of whole numbers by default and with --fast, and their ratio is that of each round; beside them stand the size of
the file over that of float64, which here knows nothing of what repeats (as in version 2 of the file), and what one
byte costs at least. Growth is what bytes cost by the whole numbers over what they cost by the float model, in the same
streams and without matches.

zstd, brotli and zpaq are left out where they are not installed. Writes `byte_codec_*.csv` to --output_dir.
"""

import argparse
import time
from functools import partial
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import torch
from compressors import compressed, corpus_documents
from transformers.utils import logging

from auto_compressor import GRUByteConfig, GRUByteForCausalLM
from auto_compressor.byte_lm.bundled_model import load_bundled_byte_model
from auto_compressor.byte_lm.integer_codec import SPEEDS, cut_streams
from auto_compressor.byte_lm.integer_codec import compress_bytes as compress_integers
from auto_compressor.byte_lm.integer_codec import decompress_bytes as decompress_integers
from auto_compressor.byte_lm.integer_gru import IntegerGRU
from auto_compressor.files.bundled import BUNDLED_VALIDATION_TEXT
from auto_compressor.lossless import codec
from auto_compressor.lossless.codec import compress_bytes, decompress_bytes, resolve_num_streams
from measuring import print_table, seconds, write_rows


ROOT = Path(__file__).parents[1]
# Nothing of these was trained on; other books of the translation in validation.txt were.
OWN_FILES = ["README.md", "docs/training.md", "auto_compressor/autocompressor/modeling_autocompressor.py"]
PACKAGE_FILES = {
    "rich": "rich/console.py",
    "click": "click/core.py",
    "networkx": "networkx/algorithms/flow/mincost.py",
}
CORPUS_FILES = {"prose.jsonl": 2, "entries.jsonl": 2, "heldout.jsonl": 4}  # and how many documents of 10 kB and more
FLOAT_BYTES = 4
MEASURED_SPEEDS = ["normal", "fast"]


# Sizes


def held_out_files(corpus: Path) -> dict[str, bytes]:
    packages = {name: distribution(package).locate_file(name) for package, name in PACKAGE_FILES.items()}
    paths = {name: ROOT / name for name in OWN_FILES} | packages
    files = {name: Path(path).read_bytes() for name, path in paths.items()}
    return files | {"validation.txt": BUNDLED_VALIDATION_TEXT.read_bytes()} | corpus_documents(corpus, CORPUS_FILES)


def measure_sizes(files: dict[str, bytes]) -> list[dict]:
    """Bits per byte of whole files."""
    model, rows = load_bundled_byte_model(), []
    for name, data in files.items():
        start = time.perf_counter()
        blob = compress_integers(model, data)
        middle = time.perf_counter()
        if decompress_integers(model, blob) != data:
            raise RuntimeError(f"{name} did not come back.")
        rates = len(data) / (middle - start), len(data) / (time.perf_counter() - middle)
        row = {"file": name[-44:], "bytes": len(data), "ours": 8 * len(blob) / len(data)}
        row |= {other: 8 * size / len(data) for other, size, _ in compressed(data)}
        rows.append(row | {"compress, bytes/s": rates[0], "decompress, bytes/s": rates[1]})
    return rows


# Speed


def measure_speed(model: GRUByteForCausalLM, name: str, data: bytes, repeats: int) -> list[dict]:
    """Medians of the float64 codec and of the other one at two of its speeds, and of the ratios of the rounds, after
    one round that does not count."""
    old = compress_bytes(model, data)
    new = {speed: compress_integers(model, data, speed=speed) for speed in MEASURED_SPEEDS}
    calls = {
        "compress": [
            partial(compress_bytes, model, data),
            *(partial(compress_integers, model, data, speed=speed) for speed in new),
        ],
        "decompress": [
            partial(decompress_bytes, model, old),
            *(partial(decompress_integers, model, blob) for blob in new.values()),
        ],
    }
    rows = []
    for what, codecs in calls.items():
        times = np.array([[seconds(call) for call in codecs] for _ in range(repeats + 1)][1:])
        rates = len(data) / np.median(times, axis=0)
        for place, (speed, blob) in enumerate(new.items(), 1):
            ratios = times[:, 0] / times[:, place]
            row = {"model": name, "speed": speed, "what": what, "bytes": len(data)}
            row |= {"float64, bytes/s": float(rates[0]), "whole numbers, bytes/s": float(rates[place])}
            row |= {"ratio": float(np.median(ratios)), "lowest": float(ratios.min()), "highest": float(ratios.max())}
            rows.append(row | {"file / float64's": len(blob) / len(old)} | floor(model, len(data), speed))
    return rows


def floor(model: GRUByteForCausalLM, num_bytes: int, speed: str) -> dict[str, float]:
    """Operations of a byte, and weights that are read for it if none stay in the caches: once for all streams."""
    size, blocks = model.config.hidden_size, model.config.num_blocks
    products = (4 * blocks - 1) * 3 * size**2 + 256 * size  # the first layer reads its inputs from a table
    return {
        "operations/byte": 2.0 * products,
        "weight bytes/byte": FLOAT_BYTES * products / resolve_num_streams(None, num_bytes, SPEEDS[speed]),
    }


class NoMatches:
    """In the place of [`Matches`]."""

    def mix(self, probs: torch.Tensor, streams: np.ndarray) -> torch.Tensor:
        return probs

    def learn(self, mixed: torch.Tensor, symbols: np.ndarray, streams: np.ndarray):
        pass


# Growth


@torch.no_grad()
def measure_growth(files: dict[str, bytes], num_bytes: int) -> list[dict]:
    """Bits per byte of the beginnings of files by the float model and by whole numbers, in the same streams."""
    model, rows = load_bundled_byte_model(), []
    whole = IntegerGRU(model)
    for name, data in files.items():
        data = data[:num_bytes]
        streams = cut_streams(data, max(1, len(data) // 1024)).long()
        targets = streams[:, 1:]
        logits = model(streams).logits[:, :-1, :256].double().log_softmax(dim=-1)
        weights = torch.from_numpy(whole.reader(len(streams)).read(streams)[:-1]).transpose(0, 1).double()
        shares = (weights / weights.sum(dim=-1, keepdim=True)).log()
        bits = [-float(each.gather(2, targets[..., None]).mean()) / np.log(2) for each in (logits, shares)]
        growth = {"growth, %": 100 * (bits[1] / bits[0] - 1)}
        rows.append({"file": name[-44:], "float": bits[0], "whole numbers": bits[1]} | growth)
    return rows


# All of it


def new_model() -> GRUByteForCausalLM:
    torch.manual_seed(0)
    return GRUByteForCausalLM(GRUByteConfig()).eval()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=["sizes", "speed", "growth"])
    parser.add_argument("--files", nargs="+", type=Path, help="files to compress (default: held-out ones)")
    parser.add_argument("--corpus", type=Path, default=ROOT / "build/corpus", help="what run/make_corpus.sh wrote")
    parser.add_argument("--num_bytes", type=int, default=2**15, help="of a text, for speed and growth")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output_dir", type=Path, default=Path("checkpoints/benchmark_byte_codec"))
    args = parser.parse_args()
    logging.disable_progress_bar()
    torch.set_num_threads(args.threads)
    codec.new_matches = lambda vocabulary, header: NoMatches()
    files = {str(path): path.read_bytes() for path in args.files or ()} or held_out_files(args.corpus)
    data = BUNDLED_VALIDATION_TEXT.read_bytes()[: args.num_bytes]
    models = {"GRUByteConfig(), 1.2 M, new": new_model, "bundled, 0.9 M": load_bundled_byte_model}
    tables = {
        "sizes": lambda: measure_sizes(files),
        "speed": lambda: [
            row for name, make in models.items() for row in measure_speed(make(), name, data, args.repeats)
        ],
        "growth": lambda: measure_growth(files, args.num_bytes),
    }
    args.output_dir.mkdir(parents=True, exist_ok=True)
    for name in [args.only] if args.only else tables:
        rows = tables[name]()
        print_table(f"{name}, {args.threads} threads", rows)
        write_rows(rows, args.output_dir / f"byte_codec_{name}.csv")


if __name__ == "__main__":
    main()
