"""What is a context worth to SmolLM2? The next 64 tokens of held-out passages, after their context in every form.

    bash run/make_corpus.sh
    python benchmarks/passages.py --model smollm2-ac --corpus build/corpus

From every domain come `--passages` passages of 256 + 65 tokens; the first token of the text is given to all forms, the
64 after it are scored. Perplexities have 95 % intervals by bootstrap over the passages, the same draws for all forms.
The gap is that of the compressor itself between no context and its base's full context; the control, vectors of
another passage of the domain, must close nothing of it. Writes `passages.csv`, `passages.json` and `passages.png`.
"""

import argparse
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from rich.progress import track
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from auto_compressor.autocompressor.bases import load_autocompressor
from auto_compressor.autocompressor.summaries import window_means
from auto_compressor.files.bases import load_base_model, resolve_base
from auto_compressor.files.loading import load_tokenizer
from measuring import print_table, write_rows


CONTEXT, TEXT = 256, 65
NO_CONTEXT, FULL = "no context", "full context (base)"
DRAWS = 2000


def read_passages(path: Path, tokenizer: PreTrainedTokenizerBase, number: int) -> torch.LongTensor:
    """The first passage of every document, then the second of every document, ...: `(number, CONTEXT + TEXT)`."""
    length = CONTEXT + TEXT
    documents = [json.loads(line)["text"] for line in path.open(encoding="utf-8")]
    ids = [tokenizer(text[: 12 * 8 * length], verbose=False)["input_ids"] for text in documents]
    starts = [(start, index) for index, one in enumerate(ids) for start in range(0, len(one) - length + 1, length)]
    passages = [ids[index][start : start + length] for start, index in sorted(starts)[:number]]
    if len(passages) < number:
        raise ValueError(f"{path} has {len(passages)} passages of {length} tokens, fewer than {number}.")
    return torch.tensor(passages)


def nats(model: PreTrainedModel, text: torch.LongTensor, **prefix) -> torch.Tensor:
    """Summed cross-entropy of all tokens but the first, `(rows, length)` -> `(rows,)`."""
    logits = model(text, use_cache=False, logits_to_keep=TEXT, **prefix).logits[:, -TEXT:-1].float()
    return F.cross_entropy(logits.transpose(1, 2), text[:, 1 - TEXT :], reduction="none").sum(dim=1)


def summary(model: PreTrainedModel, context: torch.LongTensor, ratio: int) -> torch.Tensor:
    """Summary vectors of a context, one for `ratio` tokens."""
    length = model.config.segment_length
    return model.compress(context, segment_lengths=length, max_summary_length=length // ratio)


def forms(
    model: PreTrainedModel, base: PreTrainedModel, ratios: list[int], baselines: bool
) -> Iterator[tuple[str, int, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]]:
    """Name, positions and nats of every form of a context; the functions map context and text to `(rows,)`."""
    yield NO_CONTEXT, 0, lambda context, text: nats(model, text)
    for ratio in ratios:
        kept = CONTEXT // ratio

        def after_summary(context, text, ratio=ratio):
            return nats(model, text, softprompt=summary(model, context, ratio))

        def after_other(context, text, ratio=ratio):
            return nats(model, text, softprompt=summary(model, context, ratio).roll(1, dims=0))

        def after_last(context, text, kept=kept):
            return nats(base, torch.cat([context[:, -kept:], text], dim=1))

        def after_pooled(context, text, kept=kept):
            embed = base.get_input_embeddings()
            pooled, _ = window_means(embed(context), torch.ones_like(context[:1]), kept)
            embeds = torch.cat([pooled, embed(text)], dim=1)
            logits = base(inputs_embeds=embeds, use_cache=False, logits_to_keep=TEXT).logits[:, :-1]
            return F.cross_entropy(logits.transpose(1, 2), text[:, 1:], reduction="none").sum(dim=1)

        yield f"summary vectors, {ratio}x", kept, after_summary
        yield f"vectors of another text, {ratio}x", kept, after_other
        if baselines:
            yield f"last {kept} tokens (base)", kept, after_last
            yield f"means of {ratio} embeddings (base)", kept, after_pooled
    if baselines:
        last = model.config.segment_length

        def after_last_segment(context, text):
            return nats(model, text, softprompt=summary(model, context[:, -last:], ratios[0]))

        yield f"vectors of the last segment (RMT), {ratios[0]}x", last // ratios[0], after_last_segment
        yield "no context (base)", 0, lambda context, text: nats(base, text)
    yield FULL, CONTEXT, lambda context, text: nats(base, torch.cat([context, text], dim=1))


def interval(values: torch.Tensor) -> tuple[float, float]:
    low, high = values.quantile(torch.tensor([0.025, 0.975], dtype=values.dtype)).tolist()
    return low, high


def table_rows(domain: str, found: dict[str, tuple[int, torch.Tensor]]) -> list[dict]:
    """A row for each form: perplexity, and the share of the gap that it closes, with their intervals."""
    count = len(found[FULL][1])
    draws = torch.randint(count, (DRAWS, count), generator=torch.Generator().manual_seed(0))
    means = {name: (nll.mean() / (TEXT - 1), nll[draws].mean(dim=1) / (TEXT - 1)) for name, (_, nll) in found.items()}
    (none, none_draws), (full, full_draws) = means[NO_CONTEXT], means[FULL]
    rows = []
    for name, (mean, drawn) in means.items():
        low, high = interval(drawn.exp())
        share_low, share_high = interval(100 * (none_draws - drawn) / (none_draws - full_draws))
        rows.append(
            {
                "domain": domain,
                "context": name,
                "positions": found[name][0],
                "nats": float(mean),
                "perplexity": math.exp(mean),
                "low": low,
                "high": high,
                "gap %": float(100 * (none - mean) / (none - full)),
                "gap low": share_low,
                "gap high": share_high,
            }
        )
    return rows


@torch.no_grad()
def measure(args: argparse.Namespace) -> list[dict]:
    base = load_base_model("smollm2", dtype=torch.float32).eval()
    model = load_autocompressor(args.model, dtype=torch.float32).eval()
    tokenizer = load_tokenizer(resolve_base("smollm2"))
    rows, everything = [], {}
    for domain in args.domains:
        passages = read_passages(args.corpus / f"{domain}.jsonl", tokenizer, args.passages)
        found = {}
        asked = forms(model, base, args.ratios, not args.no_baselines)
        for name, positions, score in track([*asked], description=domain):
            batches = [score(part[:, :CONTEXT], part[:, CONTEXT:]) for part in passages.split(args.batch)]
            found[name] = positions, torch.cat(batches).double()
            everything[name] = (
                (positions, torch.cat([everything[name][1], found[name][1]])) if name in everything else found[name]
            )
        rows += table_rows(domain, found)
    return rows + table_rows("all", everything)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="AutoCompressor of SmolLM2")
    parser.add_argument("--corpus", type=Path, default=Path("build/corpus"))
    parser.add_argument("--domains", nargs="+", default=["heldout", "prose", "entries"])
    parser.add_argument("--passages", type=int, default=200)
    parser.add_argument("--ratios", type=int, nargs="+", default=[8, 4, 16])
    parser.add_argument("--batch", type=int, default=10)
    parser.add_argument("--no-baselines", action="store_true", help="the compressor's rows and full context only")
    parser.add_argument("--output_dir", type=Path, default=Path("checkpoints/benchmarks"))
    args = parser.parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    rows = measure(args)
    print_table(f"The next {TEXT - 1} tokens after {CONTEXT}, {args.passages} passages of each domain", rows)
    write_rows(rows, args.output_dir / "passages.csv")
    (args.output_dir / "passages.json").write_text(json.dumps({"model": args.model, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
