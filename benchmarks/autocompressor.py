"""AutoCompressor against the plain transformers model: training, generation, memory.

    python benchmarks/autocompressor.py                          # a small Llama and OPT on the CPU, minutes
    python benchmarks/autocompressor.py --device cuda --size 1b  # bfloat16 on a GPU

All sides run in turn, A B A B, in one process; ratios of medians are what counts. Writes `autocompressor.json` with
every figure to --output_dir.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM, PreTrainedModel

from auto_compressor import LlamaAutoCompressorModel, OPTAutoCompressorModel
from auto_compressor.autocompressor.segments import append_sum_tokens
from auto_compressor.cache_names import cache_of
from measuring import peak_bytes


SIZES = {
    "small": {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "vocab_size": 50272},
    "1b": {"hidden_size": 2048, "num_hidden_layers": 24, "num_attention_heads": 32, "vocab_size": 50272},
}
FAMILIES = {
    "llama": (LlamaConfig, LlamaForCausalLM, LlamaAutoCompressorModel, "intermediate_size"),
    "opt": (OPTConfig, OPTForCausalLM, OPTAutoCompressorModel, "ffn_dim"),
}
# What every kind of AutoCompressor has beside the plain model's config.
KINDS = {
    "plain": None,
    "fixed length": {"summary_length": 50},
    "variable length": {"compression_max_len": 8, "sum_token_id": 0, "eoc_token_id": 1},
}


@dataclass
class Setting:
    """One benchmark: sizes in tokens, repeats in runs."""

    family: str
    size: str
    device: str
    segments: int
    segment_length: int
    context_length: int
    new_tokens: int
    repeats: int

    @property
    def length(self) -> int:
        return self.segments * self.segment_length

    @property
    def compressed_segments(self) -> list[int]:
        return [1536] * (self.context_length // 1536)


def build(setting: Setting, kind: str) -> PreTrainedModel:
    """A model with random weights; all kinds have equal weights of the base and positions for the whole context."""
    config_class, plain_class, compressor_class, feed_forward = FAMILIES[setting.family]
    sizes = SIZES[setting.size]
    longest = max(setting.length, setting.context_length) + setting.new_tokens + 64
    fields = sizes | {feed_forward: 4 * sizes["hidden_size"], "max_position_embeddings": longest}
    torch.manual_seed(0)
    if kind == "plain":
        model = plain_class(config_class(**fields))
    else:
        model = compressor_class(compressor_class.config_class(**fields, **KINDS[kind]))
    return model.to(setting.device, torch.bfloat16 if setting.device == "cuda" else torch.float32)


def synchronize(setting: Setting):
    if setting.device == "cuda":
        torch.cuda.synchronize()


def random_ids(setting: Setting, length: int) -> torch.LongTensor:
    return torch.randint(3, SIZES[setting.size]["vocab_size"], (1, length), device=setting.device)


def train(model: PreTrainedModel, kind: str, ids: torch.LongTensor, setting: Setting):
    """One forward and backward pass."""
    if kind == "plain":
        loss = model(ids, labels=ids, use_cache=False).loss
    else:
        inputs, lengths = {"input_ids": ids, "labels": ids}, [setting.segment_length] * setting.segments
        if kind == "variable length":
            inputs, lengths = append_sum_tokens(inputs, lengths, model.config.sum_token_id)
        loss = model(**inputs, segment_lengths=lengths, use_cache=False, skip_logits=True).loss
    loss.backward()
    model.zero_grad()


def in_turn(setting: Setting, runs: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Seconds of every run, A B A B, after one warm-up each."""
    seconds = {name: [] for name in runs}
    for repeat in range(setting.repeats + 1):
        for name, run in runs.items():
            synchronize(setting)
            start = time.perf_counter()
            run()
            synchronize(setting)
            if repeat > 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def peak_memory(setting: Setting, run: Callable[[], object]) -> int:
    """Bytes of tensors that a run holds at its peak, beyond those that were there before (gradients included)."""
    if setting.device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated() - before
    return peak_bytes(run)


def benchmark_training(setting: Setting) -> dict[str, dict[str, float]]:
    models, ids = {kind: build(setting, kind).train() for kind in KINDS}, random_ids(setting, setting.length)
    runs = {kind: lambda kind=kind: train(models[kind], kind, ids, setting) for kind in KINDS}
    seconds = in_turn(setting, runs)
    return {
        kind: {
            "training tokens/s": setting.length / statistics.median(seconds[kind]),
            "training peak MB": peak_memory(setting, runs[kind]) / 1e6,
        }
        for kind in KINDS
    }


def held_bytes(cache) -> int:
    """Bytes of all keys and values of a cache, and of the softprompt if it remembers one."""
    tensors = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
    tensors += [cache.softprompt] if getattr(cache, "softprompt", None) is not None else []
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@torch.no_grad()
def benchmark_generation(setting: Setting) -> dict[str, dict[str, float]]:
    """Time to the first token and tokens per second after it, with the context as tokens and as summary vectors."""
    plain, compressor = build(setting, "plain").eval(), build(setting, "fixed length").eval()
    context, prompt = random_ids(setting, setting.context_length), random_ids(setting, 32)
    softprompt = compressor.compress(context, segment_lengths=setting.compressed_segments)
    inputs = {
        "plain": (plain, {"input_ids": torch.cat([context, prompt], dim=1)}),
        "fixed length": (compressor, {"input_ids": prompt, "softprompt": softprompt}),
    }

    def generate(side: str, new_tokens: int):
        model, arguments = inputs[side]
        return model.generate(
            **arguments,
            do_sample=False,
            min_new_tokens=new_tokens,
            max_new_tokens=new_tokens,
            return_dict_in_generate=True,
        )

    first = in_turn(setting, {side: lambda side=side: generate(side, 1) for side in inputs})
    whole = in_turn(setting, {side: lambda side=side: generate(side, setting.new_tokens) for side in inputs})
    compress = {
        "compress": lambda: compressor.compress(context, segment_lengths=setting.compressed_segments),
    }
    compress_seconds = statistics.median(in_turn(setting, compress)["compress"])
    results = {}
    for side in inputs:
        to_first, to_last = statistics.median(first[side]), statistics.median(whole[side])
        results[side] = {
            "time to first token, ms": 1000 * to_first,
            "generated tokens/s": (setting.new_tokens - 1) / (to_last - to_first),
            "KV cache held, MB": held_bytes(cache_of(generate(side, 1))) / 1e6,
            "one-time compression, ms": 1000 * compress_seconds if side != "plain" else 0.0,
        }
    return results


def report(title: str, results: dict[str, dict[str, float]]):
    compressors = [kind for kind in results if kind != "plain"]
    table = Table("measure", *results, *(f"{kind} / plain" for kind in compressors), title=title)
    for name, plain in results["plain"].items():
        values = [f"{figures[name]:,.1f}" for figures in results.values()]
        ratios = [f"{results[kind][name] / plain:.3f}" if plain else "-" for kind in compressors]
        table.add_row(name, *values, *ratios)
    Console().print(table)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--size", default="small", choices=list(SIZES))
    parser.add_argument("--family", nargs="+", default=list(FAMILIES), choices=list(FAMILIES))
    parser.add_argument("--segments", type=int, default=4, help="segments of a training sequence")
    parser.add_argument("--segment_length", type=int, default=512, help="tokens per segment in training")
    parser.add_argument("--context_length", type=int, default=6144, help="tokens of context in generation")
    parser.add_argument("--new_tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output_dir", type=Path, default=Path("checkpoints/benchmarks"))
    args = vars(parser.parse_args())
    families, output_dir = args.pop("family"), args.pop("output_dir")

    figures = {}
    for family in families:
        setting = Setting(family=family, **args)
        training, generation = benchmark_training(setting), benchmark_generation(setting)
        report(f"{family}, training on {setting.length} tokens in {setting.segments} segments", training)
        report(f"{family}, generation after {setting.context_length} tokens of context", generation)
        figures[family] = {"setting": vars(setting), "training": training, "generation": generation}
    output_dir.mkdir(parents=True, exist_ok=True)
    (output_dir / "autocompressor.json").write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
