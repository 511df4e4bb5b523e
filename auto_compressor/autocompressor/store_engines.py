"""How the documents of a store are compressed: batch by batch on this machine, or by Ray on a cluster.

Both engines call the same function on the same batches, columns in and columns out; only who calls it differs.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from datasets.utils.logging import disable_progress_bar
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .store import Document, StoreSettings


Columns = dict[str, list]
Shard = tuple[list[Document], list[torch.Tensor], list[int]]
CPUS_PER_ACTOR = 0.5  # Ray's own tasks need a share of every CPU: two actors of 1 on two CPUs would never start


class Compressor:
    """
    Compresses columns of texts to columns of vectors, as bytes: their numbers differ.

    Args:
        model (`PreTrainedModel`), tokenizer (`PreTrainedTokenizerBase`): An AutoCompressor in evaluation mode.
        settings ([`StoreSettings`]): How.
        batch_size (`int`): Texts that are read side by side.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, settings: StoreSettings, batch_size: int
    ):
        self.model, self.tokenizer, self.settings, self.batch_size = model, tokenizer, settings, batch_size

    def __call__(self, columns: Columns) -> Columns:
        """`source` and `text` -> the same with `tokens` and `vectors`, in the order of the texts' lengths."""
        sources, texts = list(columns["source"]), list(columns["text"])
        ids = [self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids for text in texts]
        order = sorted(range(len(ids)), key=lambda index: len(ids[index]))  # little padding
        vectors: list[bytes] = []
        for start in range(0, len(order), self.batch_size):
            vectors += self.compress([ids[index] for index in order[start : start + self.batch_size]])
        return {
            "source": [sources[index] for index in order],
            "text": [texts[index] for index in order],
            "tokens": [len(ids[index]) for index in order],
            "vectors": vectors,
        }

    def has_tokens(self, text: str) -> bool:
        """Whether there is something to compress: a tokenizer may delete all. The beginning mostly tells."""
        parts = (text[:100], text)
        return any(self.tokenizer(part, add_special_tokens=False, verbose=False).input_ids for part in parts)

    def compress(self, ids: list[list[int]]) -> list[bytes]:
        """The vectors of each text; rows are padded on the right, so that their segments are those of each alone."""
        longest = max(map(len, ids))
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in ids])  # (rows, longest)
        padded = torch.tensor([row + [0] * (longest - len(row)) for row in ids])
        vectors, kept = self.model.compress(
            padded.to(self.model.device),
            mask.to(self.model.device),
            segment_lengths=self.settings.segment_length,
            max_summary_length=self.settings.max_summary_length,
            return_attention_mask=True,
        )
        rows = zip(vectors.cpu(), kept.bool().cpu(), strict=True)
        return [row[seen].contiguous().view(torch.uint8).numpy().tobytes() for row, seen in rows]


def shards_of(documents: Iterable[Document], size: int) -> Iterator[list[Document]]:
    """The documents, so many at a time."""
    documents = iter(documents)
    while shard := list(islice(documents, size)):
        yield shard


def columns_of(shard: list[Document]) -> Columns:
    return {"source": [document.source for document in shard], "text": [document.text for document in shard]}


def read_columns(columns: Columns, settings: StoreSettings) -> Shard:
    """What a [`Compressor`] returned, as documents, vectors `(vectors, width)` and tokens of each."""
    documents = [Document(*pair) for pair in zip(columns["source"], columns["text"], strict=True)]
    dtype = getattr(torch, settings.dtype)
    buffers = (np.frombuffer(part, np.uint8).copy() for part in columns["vectors"])
    vectors = [torch.from_numpy(buffer).view(dtype).view(-1, settings.width) for buffer in buffers]
    return documents, vectors, [int(count) for count in columns["tokens"]]


def compress_here(
    documents: Iterable[Document], make: Callable[[], Compressor], settings: StoreSettings, shard_size: int
) -> Iterator[Shard]:
    """The shards, one at a time, by `datasets.Dataset.map` in this process."""
    disable_progress_bar()
    compressor = make()
    for shard in shards_of(documents, shard_size):
        # Without a fingerprint given, `datasets` would make one of the model's weights.
        options = {"batched": True, "batch_size": None, "new_fingerprint": shard[0].id}
        done = Dataset.from_dict(columns_of(shard)).map(compressor, **options)
        yield read_columns(done.to_dict(), settings)


def compress_with_ray(
    documents: Iterable[Document],
    make: Callable[[], Compressor],
    settings: StoreSettings,
    shard_size: int,
    num_actors: int,
) -> Iterator[Shard]:
    """
    The shards as they are done, by Ray Data with an actor for each device, or half a CPU each.

    Texts wait in Ray's object store, which goes on on disk when it is full: this process holds those of one shard.
    """
    import pyarrow
    import ray

    class Actor:
        def __init__(self):
            self.compressor = make()

        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            return self.compressor(batch)

    resources = {"num_gpus": 1} if torch.cuda.is_available() else {"num_cpus": CPUS_PER_ACTOR}
    ray.init(ignore_reinit_error=True, include_dashboard=False, log_to_driver=False)
    blocks = [ray.put(pyarrow.table(columns_of(shard))) for shard in shards_of(documents, shard_size)]
    if not blocks:
        return
    done = ray.data.from_arrow_refs(blocks).map_batches(
        Actor, batch_size=shard_size, concurrency=num_actors, **resources
    )
    for batch in done.iter_batches(batch_size=None, batch_format="numpy"):
        yield read_columns({name: list(values) for name, values in batch.items()}, settings)


__all__ = ["Compressor", "compress_here", "compress_with_ray"]
