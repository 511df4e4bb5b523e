"""Which book is it from? A classifier of frozen latents against classifiers of tokens, at equal training compute.

A text of 128 tokens is from one of the nine books of the bundled training text, of which every fifth chapter is held
out, for the autoencoder as well. One small transformer reads it as

- 128 learned token embeddings,
- 32 positions of four learned token embeddings each, which is as short as the latents, with nothing known before,
- 32 frozen latents of a continuous text autoencoder, normalised or as they are.

Compute is the floating point operations of training that PyTorch counts (`torch.utils.flop_counter`), forward and
backward; for latents, those of encoding the training texts once come out of the same budget. The training of the
autoencoder, which is made once for every use, is not counted.

    python benchmarks/latents_downstream.py                     # trains the autoencoder, about 2 minutes
    python benchmarks/latents_downstream.py --model FOLDER
"""

import argparse
import itertools
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoTokenizer, get_cosine_schedule_with_warmup
from transformers.utils import logging

from auto_compressor import ContinuousTextAutoencoder, ContinuousTextAutoencoderConfig
from auto_compressor.files.bundled import BUNDLED_TOKENIZER, BUNDLED_TRAIN_TEXT
from measuring import write_rows


VOCAB_SIZE = 2048  # of the bundled tokenizer
LENGTH, BATCH_SIZE = 128, 16
HELD_OUT = 5  # every so many chapters one
HIDDEN_SIZE, NUM_LAYERS, NUM_HEADS = 64, 2, 4
AUTOENCODER = {
    "architecture": "chunk",
    "embedding_size": 128,
    "hidden_size": 256,
    "latent_dim": 64,
    "kl_clip": 0.5,
    "tie_word_embeddings": True,
}


@dataclass(frozen=True)
class Texts:
    """Tokens of texts, `(texts, LENGTH)`, and the number of the book of each, `(texts,)`."""

    ids: torch.LongTensor
    books: torch.LongTensor


def read_books() -> tuple[Texts, Texts, list[str]]:
    """Texts to train on and to test on, cut from chapters without their headings, and the names of the books."""
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED_TOKENIZER)
    chapters = re.findall(r"^([\w ]+) \d+\n(.+)$", BUNDLED_TRAIN_TEXT.read_text(encoding="utf-8"), flags=re.MULTILINE)
    names = list(dict.fromkeys(name for name, _ in chapters))
    parts: tuple[list, list] = ([], [])
    for number, (name, text) in enumerate(chapters):
        ids = torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False).input_ids)
        windows = ids[: len(ids) // LENGTH * LENGTH].view(-1, LENGTH)
        parts[number % HELD_OUT == HELD_OUT - 1].append((windows, torch.full((len(windows),), names.index(name))))
    train, test = (Texts(*map(torch.cat, zip(*part, strict=True))) for part in parts)
    return train, test, names


# The autoencoder


def train_autoencoder(ids: torch.LongTensor, num_steps: int) -> ContinuousTextAutoencoder:
    """Trains on the tokens of all texts, in windows that begin anywhere."""
    torch.manual_seed(0)
    model = ContinuousTextAutoencoder(ContinuousTextAutoencoderConfig(vocab_size=VOCAB_SIZE, **AUTOENCODER))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.1)
    schedule = get_cosine_schedule_with_warmup(optimizer, min(100, num_steps), num_steps)
    stream = ids.flatten()
    for _ in track(range(num_steps), "Training the autoencoder", console=Console(stderr=True)):
        starts = torch.randint(len(stream) - LENGTH + 1, (BATCH_SIZE, 1))
        batch = stream[starts + torch.arange(LENGTH)]
        model(batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return model.eval()


@torch.no_grad()
def encode(model: ContinuousTextAutoencoder, ids: torch.LongTensor) -> torch.Tensor:
    return torch.cat([model.encode(part).mean for part in ids.split(64)])


@torch.no_grad()
def token_accuracy(model: ContinuousTextAutoencoder, ids: torch.LongTensor) -> float:
    return float(torch.cat([model.reconstruct(part) == part for part in ids.split(64)]).float().mean())


# The classifiers


class GroupedEmbedding(nn.Module):
    """Embeds tokens, `(batch, length)`, some of them to a position: `(batch, length / group, HIDDEN_SIZE)`."""

    def __init__(self, group: int):
        super().__init__()
        self.group = group
        self.embedding = nn.Embedding(VOCAB_SIZE, HIDDEN_SIZE)
        self.projection = nn.Linear(group * HIDDEN_SIZE, HIDDEN_SIZE)

    def forward(self, ids: torch.LongTensor) -> torch.Tensor:
        return self.projection(self.embedding(ids).unflatten(1, (-1, self.group)).flatten(2))


class Classifier(nn.Module):
    """A transformer without causal mask, and a linear layer on the mean of its positions."""

    def __init__(self, embedding: nn.Module, num_positions: int, num_classes: int):
        super().__init__()
        self.embedding = embedding
        self.positions = nn.Parameter(torch.randn(num_positions, HIDDEN_SIZE) * 0.02)
        layer = nn.TransformerEncoderLayer(
            HIDDEN_SIZE, NUM_HEADS, 4 * HIDDEN_SIZE, dropout=0.1, batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, NUM_LAYERS, enable_nested_tensor=False)
        self.head = nn.Linear(HIDDEN_SIZE, num_classes)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(self.embedding(inputs) + self.positions).mean(dim=1))


@dataclass(frozen=True)
class Input:
    """What a classifier reads, `(texts, ...)`, how it embeds that, and the operations that went into making it."""

    train: torch.Tensor
    test: torch.Tensor
    embedding: Callable[[], nn.Module]
    num_positions: int
    flops: int = 0


def count_flops(function: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def make_inputs(model: ContinuousTextAutoencoder, train: Texts, test: Texts) -> dict[str, Input]:
    stride = model.config.total_stride
    flops = count_flops(lambda: encode(model, train.ids))
    latents = [encode(model, texts.ids) for texts in (train, test)]
    normalized = [model.normalize_latents(part) for part in latents]
    num_latents = LENGTH // stride

    def project() -> nn.Module:
        return nn.Linear(model.config.latent_dim, HIDDEN_SIZE)

    return {
        "tokens": Input(train.ids, test.ids, lambda: nn.Embedding(VOCAB_SIZE, HIDDEN_SIZE), LENGTH),
        f"tokens, {stride} to a position": Input(train.ids, test.ids, lambda: GroupedEmbedding(stride), num_latents),
        "latents, normalised": Input(*normalized, project, num_latents, flops),
        "latents": Input(*latents, project, num_latents, flops),
    }


def training_step(
    model: Classifier, optimizer: torch.optim.Optimizer, inputs: torch.Tensor, books: torch.Tensor
) -> None:
    F.cross_entropy(model(inputs), books).backward()
    optimizer.step()
    optimizer.zero_grad()


def batch_indices(num_texts: int):
    """Batches of all texts in a random order, again and again."""
    while True:
        yield from torch.randperm(num_texts)[: num_texts // BATCH_SIZE * BATCH_SIZE].view(-1, BATCH_SIZE)


def step_flops(model: Classifier, given: Input, books: torch.Tensor) -> int:
    inputs, books = given.train[:BATCH_SIZE], books[:BATCH_SIZE]
    flops = count_flops(lambda: F.cross_entropy(model(inputs), books).backward())
    model.zero_grad()
    return flops


def train_classifier(given: Input, train: Texts, test: Texts, budget: int, seed: int) -> dict[str, float]:
    """Trains for as many steps as the budget, in floating point operations, allows; returns its figures."""
    torch.manual_seed(seed)
    model = Classifier(given.embedding(), given.num_positions, int(train.books.max()) + 1)
    num_steps = (budget - given.flops) // step_flops(model, given, train.books)
    if num_steps < 1:
        raise ValueError(f"--gflops must be more than the {given.flops / 1e9:.0f} that encoding takes.")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    schedule = get_cosine_schedule_with_warmup(optimizer, num_steps // 10, num_steps)
    start = time.perf_counter()
    for index in itertools.islice(batch_indices(len(train.ids)), num_steps):
        training_step(model, optimizer, given.train[index], train.books[index])
        schedule.step()
    seconds = time.perf_counter() - start
    with torch.no_grad():
        guesses = model.eval()(given.test).argmax(dim=-1)
    return {"steps": num_steps, "seconds": seconds, "accuracy": float((guesses == test.books).float().mean())}


# All of it


def compare(inputs: dict[str, Input], train: Texts, test: Texts, budgets: list[int], seeds: range) -> list[dict]:
    rows = []
    runs = list(itertools.product(budgets, inputs.items()))
    for budget, (name, given) in track(runs, "Training classifiers", console=Console(stderr=True)):
        results = [train_classifier(given, train, test, budget, seed) for seed in seeds]
        figures = {key: mean(result[key] for result in results) for key in results[0]}
        spread = stdev(result["accuracy"] for result in results)
        row = {"gflops": budget / 1e9, "input": name, "positions": given.num_positions, "steps": int(figures["steps"])}
        shares = {"accuracy": figures["accuracy"], "standard_deviation": spread}
        rows.append(row | {"seconds": figures["seconds"]} | shares)
    return rows


def print_rows(rows: list[dict], title: str):
    table = Table(*rows[0], title=title)
    for row in rows:
        table.add_row(*(f"{value:,.3g}" if isinstance(value, float) else str(value) for value in row.values()))
    Console(width=120).print(table)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="ContinuousTextAutoencoder of the bundled tokenizer (default: one is trained)")
    parser.add_argument("--autoencoder_steps", type=int, default=800)
    parser.add_argument("--gflops", type=float, nargs="+", default=[150, 300], help="budgets of one training")
    parser.add_argument("--seeds", type=int, default=2, help="trainings of each kind, 2 or more")
    parser.add_argument("--output_dir", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    train, test, names = read_books()
    if args.model:
        model = ContinuousTextAutoencoder.from_pretrained(args.model).eval()
    else:
        model = train_autoencoder(train.ids, args.autoencoder_steps)
    inputs = make_inputs(model, train, test)
    budgets = [int(gflops * 1e9) for gflops in args.gflops]
    rows = compare(inputs, train, test, budgets, range(args.seeds))
    majority = float((test.books == train.books.mode().values).float().mean())
    title = f"{len(names)} books, {len(train.ids):,} texts to train on, {len(test.ids):,} to test on"
    print_rows(rows, title)
    encoding = f"Encoding the training texts takes {inputs['latents'].flops / 1e9:.1f} GFLOPs of each budget."
    Console().print(
        f"The most frequent book: {majority:.1%}. {encoding} Held-out tokens that come back from the latents:"
        f" {token_accuracy(model, test.ids):.2%}."
    )
    write_rows(rows, args.output_dir / "latents_downstream.csv")


if __name__ == "__main__":
    main()
