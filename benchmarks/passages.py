"""What is a context worth to SmolLM2? The next 64 tokens of held-out passages, after their context in every form.

    bash run/make_corpus.sh
    python benchmarks/passages.py --model smollm2-ac --corpus build/corpus

From every domain come `--passages` passages of 256 + 65 tokens; the first token of the text is given to all forms, the
64 after it are scored. Perplexities have 95 % intervals by bootstrap over the passages, the same draws for all forms.
The gap is that of the compressor itself between no context and its base's full context; the control, vectors of
another passage of the domain, must close nothing of it. What as many of the last tokens are worth is measured in the
base and in the compressor, whose training has also changed how it reads them; forms are compared with them passage by
passage. Writes `passages.csv` and `passages.json`.
"""

import argparse
import json
import math
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


def nats(model: PreTrainedModel, text: torch.LongTensor, **inputs) -> torch.Tensor:
    """Summed cross-entropy of `text` `(rows, TEXT)` but its first token, the end of what is read; `(rows,)`."""
    logits = model(**inputs, use_cache=False, logits_to_keep=TEXT).logits[:, -TEXT:-1].float()
    return F.cross_entropy(logits.transpose(1, 2), text[:, 1:], reduction="none").sum(dim=1)


def summary(model: PreTrainedModel, context: torch.LongTensor, ratio: int) -> torch.Tensor:
    """Summary vectors of a context, one for `ratio` tokens."""
    length = model.config.segment_length
    return model.compress(context, segment_lengths=length, max_summary_length=length // ratio)


def after_vectors(model: PreTrainedModel, text: torch.LongTensor, vectors: torch.Tensor) -> torch.Tensor:
    return nats(model, text, input_ids=text, softprompt=vectors)


def after_tokens(model: PreTrainedModel, text: torch.LongTensor, context: torch.LongTensor) -> torch.Tensor:
    return nats(model, text, input_ids=torch.cat([context, text], dim=1))


def after_means(base: PreTrainedModel, text: torch.LongTensor, context: torch.LongTensor, kept: int) -> torch.Tensor:
    """After the means of the token embeddings over so many windows."""
    embed = base.get_input_embeddings()
    means, _ = window_means(embed(context), torch.ones_like(context[:1]), kept)
    return nats(base, text, inputs_embeds=torch.cat([means, embed(text)], dim=1))


def scores(
    model: PreTrainedModel, base: PreTrainedModel, passages: torch.LongTensor, ratios: list[int], baselines: bool
) -> dict[str, tuple[int, torch.Tensor]]:
    """Positions and nats `(rows,)` of every form of a context, by its name."""
    context, text = passages.split([CONTEXT, TEXT], dim=1)
    found = {NO_CONTEXT: (0, nats(model, text, input_ids=text))}
    for ratio in ratios:
        kept, vectors = CONTEXT // ratio, summary(model, context, ratio)
        found[f"summary vectors, {ratio}x"] = kept, after_vectors(model, text, vectors)
        found[f"vectors of another text, {ratio}x"] = kept, after_vectors(model, text, vectors.roll(1, dims=0))
        found[f"last {kept} tokens"] = kept, after_tokens(model, text, context[:, -kept:])
        if baselines:
            found[f"last {kept} tokens (base)"] = kept, after_tokens(base, text, context[:, -kept:])
            found[f"means of {ratio} embeddings (base)"] = kept, after_means(base, text, context, kept)
    last, ratio = model.config.segment_length, ratios[0]
    if baselines and last < CONTEXT:  # of a single segment, these are all vectors
        vectors = summary(model, context[:, -last:], ratio)
        found[f"vectors of the last segment (RMT), {ratio}x"] = last // ratio, after_vectors(model, text, vectors)
    if baselines:
        found["no context (base)"] = 0, nats(base, text, input_ids=text)
    found["full context"] = CONTEXT, after_tokens(model, text, context)
    return found | {FULL: (CONTEXT, after_tokens(base, text, context))}


def joined(parts: list[dict[str, tuple[int, torch.Tensor]]]) -> dict[str, tuple[int, torch.Tensor]]:
    """The scores of all parts, one behind the other."""
    names = {name: positions for name, (positions, _) in parts[0].items()}
    return {name: (positions, torch.cat([part[name][1] for part in parts])) for name, positions in names.items()}


def interval(values: torch.Tensor) -> tuple[float, float]:
    low, high = values.quantile(torch.tensor([0.025, 0.975], dtype=values.dtype)).tolist()
    return low, high


def table_rows(domain: str, found: dict[str, tuple[int, torch.Tensor]]) -> list[dict]:
    """A row for each form: perplexity, and the share of the gap that it closes, with their intervals."""
    count = len(found[FULL][1])
    draws = torch.randint(count, (DRAWS, count), generator=torch.Generator().manual_seed(0))
    nlls = {name: nll.double() / (TEXT - 1) for name, (_, nll) in found.items()}
    means = {name: (nll.mean(), nll[draws].mean(dim=1)) for name, nll in nlls.items()}
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
            | ahead_of_last_tokens(nlls, name, found[name][0], draws)
        )
    return rows


def ahead_of_last_tokens(nlls: dict[str, torch.Tensor], name: str, positions: int, draws: torch.Tensor) -> dict:
    """By how many nats per token a form is ahead of as many of the last tokens, passage by passage."""
    last = nlls.get(f"last {positions} tokens")
    if last is None:
        return {"ahead": "", "ahead low": "", "ahead high": ""}
    ahead = last - nlls[name]
    low, high = interval(ahead[draws].mean(dim=1))
    return {"ahead": float(ahead.mean()), "ahead low": low, "ahead high": high}


@torch.no_grad()
def measure(args: argparse.Namespace) -> list[dict]:
    base = load_base_model("smollm2", dtype=torch.float32).eval()
    model = load_autocompressor(args.model, dtype=torch.float32).eval()
    tokenizer = load_tokenizer(resolve_base("smollm2"))
    rows, everything = [], []
    for domain in args.domains:
        passages = read_passages(args.corpus / f"{domain}.jsonl", tokenizer, args.passages)
        batches = track(passages.split(args.batch), description=domain)
        found = joined([scores(model, base, part, args.ratios, not args.no_baselines) for part in batches])
        everything.append(found)
        rows += table_rows(domain, found)
    return rows + table_rows("all", joined(everything))


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
