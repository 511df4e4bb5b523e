"""Which documents of a store a question is about, and their summary vectors as one softprompt."""

import hashlib
import shutil
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..files.whole_files import remove_left_over, whole_folder
from .store import StoredDocument, SummaryStore


# Sachan et al., "Improving Passage Retrieval with Zero-Shot Question Generation", EMNLP 2022, section 2.2, which the
# AutoCompressors' re-ranking follows (paper, section 6).
QUESTION_PROMPT = "\nPlease write a question based on this passage.\n"


@dataclass(frozen=True)
class Found:
    """A document that was found, and its score: the more, the better."""

    document: StoredDocument
    score: float


def load_index(store: SummaryStore):
    """
    The BM25 index over the texts of a store, in the order of its rows; made once for what the store holds. `None` for
    texts without a word.
    """
    import bm25s

    named = hashlib.sha256("".join(store.rows).encode()).hexdigest()[:16]
    folder: Path = store.folder / "bm25" / named
    with suppress(FileNotFoundError):  # not made yet, or another process takes it out
        return bm25s.BM25.load(folder, mmap=True)
    tokens = tokens_of(document.text for document in store.documents())
    if not tokens.vocab:
        return None
    index = bm25s.BM25()
    index.index(tokens, show_progress=False)
    with whole_folder(folder) as part:
        index.save(part)
        index = bm25s.BM25.load(part, mmap=True)
    remove_others(folder)
    return index


def remove_others(folder: Path):
    """Removes the indexes of what the store held before, but not what another process is writing."""
    for name in {path.name.partition(".")[0] for path in folder.parent.iterdir()} - {folder.name}:
        shutil.rmtree(folder.parent / name, ignore_errors=True)
        remove_left_over(folder.parent / name)


def tokens_of(texts: Iterable[str]):
    import bm25s

    return bm25s.tokenize(texts, stopwords="en", show_progress=False)


def search(store: SummaryStore, question: str, top: int) -> list[Found]:
    """
    The documents that a question has most words in common with, by BM25, the best first; none without a common word.

    Raises:
        ValueError: for a store without documents, or `top` below 1.
    """
    if top < 1:
        raise ValueError(f"`top` must be 1 or more, got {top}.")
    if not len(store):
        raise ValueError(f"The store {store.folder} must hold documents, it has none.")
    index, ids = load_index(store), list(store.rows)
    if index is None:
        return []
    numbers, scores = index.retrieve(tokens_of([question]), k=min(top, len(ids)), show_progress=False)
    best = zip(numbers[0].tolist(), scores[0].tolist(), strict=True)
    return [Found(store.document(ids[number]), score) for number, score in best if score > 0]


def fuse(store: SummaryStore, found: list[Found], model: PreTrainedModel) -> torch.Tensor:
    """
    The summary vectors of documents one behind the other, `(1, vectors, width)`, the best nearest to the text; of no
    documents no vectors.

    Each was compressed alone; the paper calls this fused summaries (section 6).
    """
    store.check_model(model)
    parts = [store.vectors(each.document.id) for each in reversed(found)]
    vectors = torch.cat(parts) if parts else torch.empty(0, store.settings.width)
    return vectors[None].to(model.device, model.get_input_embeddings().weight.dtype)


@torch.no_grad()
def rerank(
    store: SummaryStore,
    found: list[Found],
    question: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> list[Found]:
    """
    The same documents by the likelihood of the question after their summary vectors, in nats per token (paper,
    section 6): no document is read again.
    """
    prompt = tokenizer(QUESTION_PROMPT, add_special_tokens=False, return_tensors="pt").input_ids
    asked = tokenizer(question, add_special_tokens=False, return_tensors="pt").input_ids
    ids = torch.cat([prompt, asked], dim=1).to(model.device)  # (1, prompt + question)
    scored = []
    for each in found:
        logits = model(ids, softprompt=fuse(store, [each], model), use_cache=False).logits
        predicted = logits[0, prompt.shape[1] - 1 : -1].float()  # (question, vocab)
        score = -F.cross_entropy(predicted, ids[0, prompt.shape[1] :])
        scored.append(Found(each.document, float(score)))
    return sorted(scored, key=lambda each: each.score, reverse=True)


__all__ = ["Found", "fuse", "rerank", "search"]
