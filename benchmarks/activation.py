"""A compressed key/value cache beside the full one: bytes held, time to read a text, and time per generated token.

    python benchmarks/activation.py                       # texts of 2,048 to 32,768 tokens, 3 minutes on one thread
    python benchmarks/activation.py --lengths 2048 4096 --ratio 4

The model is a small Llama with random weights, on which neither times nor bytes depend. The full cache is the
`DynamicCache` of transformers with plain sdpa attention. What is compared is measured in turn in one process. How well
a text is continued after it is another matter: `auto-compressor report-activation` measures that.

Needs matplotlib. Writes `activation.csv` and `activation.png` to --output_dir.
"""

import argparse
import time
from pathlib import Path
from statistics import median

import matplotlib
import torch
from rich.console import Console
from rich.progress import track
from transformers import Cache, DynamicCache, LlamaConfig, LlamaForCausalLM

from auto_compressor import ActivationCompressor
from auto_compressor.cache_names import as_cache
from measuring import print_table, seconds, write_rows


matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402


SIZES = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4, "num_attention_heads": 4}
SIZES |= {"num_key_value_heads": 2, "vocab_size": 2048, "max_position_embeddings": 2**17}
FULL, ONE_SHOT, RECURSIVE = "full cache", "compressed once", "compressed every {} tokens"


def cache_bytes(cache: Cache) -> int:
    """Bytes of all tensors that a cache holds."""
    if not isinstance(cache, DynamicCache):
        return cache.num_bytes
    return sum(
        tensor.numel() * tensor.element_size() for layer in cache.layers for tensor in (layer.keys, layer.values)
    )


def read_full(model: LlamaForCausalLM, ids: torch.LongTensor) -> DynamicCache:
    cache = DynamicCache(config=model.config)
    model.model(ids, **as_cache(cache))
    return cache


def caches_of(
    model: LlamaForCausalLM, compressor: ActivationCompressor, length: int, segment_length: int
) -> tuple[dict[str, Cache], dict[str, float]]:
    """The caches of a text, and the seconds that reading it into them took."""
    ids = torch.randint(model.config.vocab_size, (1, length))
    reads = {
        FULL: lambda: read_full(model, ids),
        ONE_SHOT: lambda: compressor.compress(model, ids),
        RECURSIVE.format(segment_length): lambda: compressor.compress(model, ids, segment_length=segment_length),
    }
    caches, times = {}, {}
    for name, read in reads.items():
        start = time.perf_counter()
        caches[name] = read()
        times[name] = time.perf_counter() - start
    return caches, times


def decode_times(
    model: LlamaForCausalLM, compressor: ActivationCompressor, caches: dict[str, Cache], num_tokens: int
) -> dict[str, float]:
    """Median seconds per token, all caches in turn."""
    token, found = torch.zeros(1, 1, dtype=torch.long), {name: [] for name in caches}
    for _ in range(num_tokens):
        found[FULL].append(seconds(lambda: model(token, **as_cache(caches[FULL]))))
        with compressor.attach(model):
            for name in list(caches)[1:]:
                found[name].append(seconds(lambda name=name: model(token, **as_cache(caches[name]))))
    return {name: median(times[2:]) for name, times in found.items()}


@torch.no_grad()
def measure(
    model: LlamaForCausalLM, compressor: ActivationCompressor, length: int, segment_length: int, num_tokens: int
) -> list[dict]:
    """A row for every cache of a text of this length."""
    caches, read_times = caches_of(model, compressor, length, segment_length)
    held = {name: cache_bytes(cache) for name, cache in caches.items()}
    times = decode_times(model, compressor, caches, num_tokens)
    return [
        {
            "tokens": length,
            "cache": name,
            "bytes": held[name],
            "times fewer": held[FULL] / held[name],
            "read, s": read_times[name],
            "read, full = 1": read_times[name] / read_times[FULL],
            "decode, ms/token": 1000 * times[name],
            "decode, full = 1": times[name] / times[FULL],
        }
        for name in caches
    ]


def plot(rows: list[dict], path: Path):
    """Bytes, reading and decoding over the length of the text."""
    figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    for axis, column in zip(axes, ("bytes", "read, s", "decode, ms/token"), strict=True):
        for name in dict.fromkeys(row["cache"] for row in rows):
            points = [(row["tokens"], row[column]) for row in rows if row["cache"] == name]
            axis.plot(*zip(*points, strict=True), "o-", label=name)
        axis.set(xscale="log", yscale="log", xlabel="tokens of the text", title=column)
        axis.set_xscale("log", base=2)
        axis.grid(alpha=0.3, which="both")
    axes[0].legend()
    figure.savefig(path, dpi=150)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[2048, 4096, 8192, 16384, 32768])
    parser.add_argument("--ratio", type=float, default=8.0)
    parser.add_argument("--segment_length", type=int, default=1024)
    parser.add_argument("--num_tokens", type=int, default=30, help="tokens that are generated after every text")
    parser.add_argument("--output_dir", type=Path, default=Path("checkpoints/benchmark_activation"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES)).eval()
    compressor = ActivationCompressor.from_base(model, compression_ratio=args.ratio).eval()
    rows = []
    for length in track(args.lengths, "Reading and decoding", console=Console(stderr=True)):
        rows += measure(model, compressor, length, args.segment_length, args.num_tokens)
    print_table(f"Compression {args.ratio:g}x, one thread", rows)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    write_rows(rows, args.output_dir / "activation.csv")
    plot(rows, args.output_dir / "activation.png")


if __name__ == "__main__":
    main()
