"""Stores of documents: what is compressed once comes back as it was, whatever kills the build, and is found."""

import json
import os
import pickle
import random
import re
import shutil
import weakref
from pathlib import Path
from threading import Event, Thread

import numpy as np
import pytest
import torch
from modeling_testing import tiny_autocompressor, variable_autocompressor
from tokenizers.normalizers import Replace
from torch.testing import assert_close
from transformers import AutoTokenizer

from auto_compressor.autocompressor import store as store_module
from auto_compressor.autocompressor.commands import store as commands
from auto_compressor.autocompressor.retrieval import QUESTION_PROMPT, fuse, load_index, rerank, search
from auto_compressor.autocompressor.store import Document, Listing, StoreError, StoreSettings, SummaryStore, pick
from auto_compressor.autocompressor.store_engines import Compressor, compress_here
from auto_compressor.cli.main import main
from auto_compressor.files.bundled import BUNDLED_TOKENIZER
from auto_compressor.files.documents import read_documents


WORDS = ["king", "land", "river", "stone", "bread", "ship", "lion", "garden", "wind", "sword"]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(BUNDLED_TOKENIZER)


@pytest.fixture(scope="module")
def model(tokenizer):
    model = tiny_autocompressor("llama", vocab_size=len(tokenizer), max_position_embeddings=512)
    model.config.segment_length = 16
    return model


@pytest.fixture(scope="module")
def folder(model, tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def text_of(index: int) -> str:
    rng = random.Random(index)
    return " ".join(["The", WORDS[index % len(WORDS)], *rng.choices(WORDS, k=rng.randint(3, 60))]) + "."


@pytest.fixture
def documents(tmp_path) -> Path:
    """Eight files and the four rows of another."""
    path = tmp_path / "documents"
    (path / "deep").mkdir(parents=True)
    for index in range(8):
        (path / ("deep" if index % 2 else ".") / f"{index}.txt").write_text(text_of(index))
    rows = [json.dumps({"text": text_of(index)}) for index in range(8, 12)]
    (path / "rows.jsonl").write_text("\n".join(rows) + "\n")
    (path / "empty.md").write_text(" \n")
    return path


@pytest.fixture
def build(documents, folder, tmp_path):
    def build(*options, data=documents, store=tmp_path / "store"):
        command = ["store", "build", data, "-o", store, "--model", folder, "--shard-size", 5, "--batch-size", 3]
        return main([str(part) for part in (*command, *options)])

    return build


@pytest.fixture
def store(fill, tmp_path):
    return fill(tmp_path / "store")


@pytest.fixture
def fill(documents, model, tokenizer):
    """What `build` does, without loading the model."""

    def fill(folder: Path) -> SummaryStore:
        settings = StoreSettings.of_model(model)
        store = SummaryStore.create(folder, settings)
        store.clean()
        read = [Document(*pair) for pair in read_documents(str(documents))]
        listing = Listing(read)
        missing = pick(read, store.missing(listing))
        for shard in compress_here(missing, lambda: Compressor(model, tokenizer, settings, 5), settings, 5):
            store.write(*shard)
        store.remove(store.outdated(listing))
        return SummaryStore(folder)

    return fill


def sources(store: SummaryStore) -> list[str]:
    return sorted(row.source for row in store.rows.values())


EVERYTHING = sorted(["0.txt", "2.txt", "4.txt", "6.txt", *(f"deep/{n}.txt" for n in (1, 3, 5, 7))])
EVERYTHING = sorted([*EVERYTHING, *(f"rows.jsonl:{n}" for n in (1, 2, 3, 4))])


# What is in it


def test_documents_are_files_and_rows(documents, store):
    assert sources(store) == EVERYTHING
    texts = dict(read_documents(str(documents)))
    assert {each.source: each.text for each in store.documents()} == {name: texts[name] for name in EVERYTHING}
    assert len(set(store.shard_of.values())) == 3


def test_vectors_are_those_of_each_document_alone(model, tokenizer, store):
    for row in store.rows.values():
        text = store.document(row.id).text
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
        alone = model.compress(ids)[0]
        assert_close(store.vectors(row.id), alone, rtol=1e-4, atol=1e-4)
        assert (row.tokens, row.vectors, row.ratio) == (ids.shape[1], len(alone), ids.shape[1] / len(alone))


def test_a_variable_number_of_vectors(tokenizer, tmp_path):
    model = variable_autocompressor("llama", torch.float32, vocab_size=len(tokenizer), max_position_embeddings=512)
    settings = StoreSettings.of_model(model, segment_length=8)
    store = SummaryStore.create(tmp_path / "store", settings)
    documents = [Document(str(index), text_of(index)) for index in range(4)]
    for shard in compress_here(documents, lambda: Compressor(model, tokenizer, settings, 4), settings, 4):
        store.write(*shard)
    for row in store.rows.values():
        ids = tokenizer(store.document(row.id).text, add_special_tokens=False, return_tensors="pt").input_ids
        assert_close(store.vectors(row.id), model.compress(ids, segment_lengths=8)[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtypes(dtype, build, tmp_path):
    assert build("--dtype", dtype) == 0
    store = SummaryStore(tmp_path / "store")
    assert {store.vectors(id).dtype for id in store.rows} == {getattr(torch, dtype)}
    facts = store.facts()
    assert facts["bytes of vectors"] == facts["vectors"] * 24 * (4 if dtype == "float32" else 2)


def test_fewer_vectors_and_other_segments(build, tmp_path):
    assert build("--segment-length", 8, "--max-summary-length", 2) == 0
    store = SummaryStore(tmp_path / "store")
    assert all(row.vectors == 2 * -(-row.tokens // 8) for row in store.rows.values())
    assert store.facts()["ratio"] == pytest.approx(4, rel=0.2)


def test_documents_without_tokens_are_passed_over(build, documents, folder, tmp_path, capsys):
    """As those of white space are, and each time."""
    tokenizer, other = AutoTokenizer.from_pretrained(folder), tmp_path / "model"
    tokenizer.backend_tokenizer.normalizer = Replace("\u200b", "")
    shutil.copytree(folder, other)
    tokenizer.save_pretrained(other)
    assert build("--model", other) == 0
    (documents / "0.txt").write_text("\u200b")
    (documents / "2.txt").write_text("\u200b" * 200 + "A new ship.")
    assert build("--model", other) == 0 and build("--model", other) == 0
    assert re.search(r"of them new +│ 0 ", capsys.readouterr().out)
    assert sources(SummaryStore(tmp_path / "store")) == sorted(set(EVERYTHING) - {"0.txt"})


# What is in memory


class CountedText(str):
    """A text of which one can say whether it is still in memory."""


@pytest.mark.parametrize("command", ["build", "add"])
def test_texts_are_read_a_shard_at_a_time(command, build, documents, folder, store, monkeypatch):
    """What is listed, and what was compressed, is let go of."""
    references, seen = [], []

    def read(*args):
        for source, text in read_documents(*args):
            references.append(weakref.ref(counted := CountedText(text)))
            yield source, counted
            del text, counted

    def compress(compressor, columns):
        seen.append((len(references), sum(reference() is not None for reference in references)))
        return whole(compressor, columns)

    whole = Compressor.__call__
    monkeypatch.setattr("auto_compressor.files.documents.read_documents", read)
    monkeypatch.setattr(Compressor, "__call__", compress)
    if command == "build":
        assert build(store=store.folder.parent / "new") == 0
    else:
        store.remove(list(store.rows))
        add = ["store", "add", documents, "--store", store.folder, "--model", folder]
        assert main([str(part) for part in [*add, "--shard-size", 5]]) == 0
    # All 13 are listed before; then 5 of those with words are read at a time. The one without is the tenth.
    assert [read for read, _ in seen] == [13 + 5, 13 + 11, 13 + 13]
    assert max(alive for _, alive in seen) <= 6


def test_a_store_holds_no_texts(store):
    """It reads them from its files, one by one."""
    texts = [document.text for document in store.documents()]
    assert len(texts) == len(store) and not any(text.encode() in pickle.dumps(vars(store)) for text in texts)
    assert [store.document(id).text for id in store.rows] == texts
    assert store.facts()["bytes of texts"] == sum(map(len, texts))


def test_the_index_is_read_where_it_lies(store):
    search(store, "lion", 1)
    assert isinstance(load_index(store).scores["data"], np.memmap)


def test_documents_that_another_process_took_out(store):
    """While one that has the store open reads on: no text is taken for that of another document."""
    other, gone = SummaryStore(store.folder), store.select(["0.txt"])[0]
    kept = next(id for id in store.rows if id != gone and store.shard_of[id] == store.shard_of[gone])
    text = store.document(kept).text
    other.remove([gone])
    assert store.document(kept).text == text
    with pytest.raises(StoreError, match="another process took it out"):
        store.document(gone)
    with pytest.raises(StoreError, match="has changed while the store was read"):
        list(store.documents())
    store.refresh()
    assert [document.id for document in store.documents()] == list(store.rows) == list(other.rows)


def test_both_engines_make_the_same(build, tmp_path):
    pytest.importorskip("ray")
    assert build() == 0 and build("--engine", "ray", store=tmp_path / "ray") == 0
    here, there = SummaryStore(tmp_path / "store"), SummaryStore(tmp_path / "ray")
    assert here.rows.keys() == there.rows.keys() and here.shard_of == there.shard_of
    for id in here.rows:
        assert_close(here.vectors(id), there.vectors(id), rtol=1e-4, atol=1e-4)


# Going on, adding, taking out


def test_nothing_is_done_twice(build, store, monkeypatch, capsys):
    times = {path: path.stat().st_mtime_ns for path in store.shards.iterdir()}
    monkeypatch.setattr(Compressor, "compress", None)
    assert build() == 0
    assert re.search(r"of them new +│ 0 ", capsys.readouterr().out)
    assert {path: path.stat().st_mtime_ns for path in store.shards.iterdir()} == times


class Killed(BaseException):
    """As a signal, it is no error that anything expects."""


@pytest.mark.parametrize("survived", range(7))
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_build_that_is_killed_goes_on(survived, after, fill, monkeypatch, tmp_path):
    """Before or after the store's first file, or any file of its three shards."""
    count, store = 0, fill(tmp_path / "whole")

    def write(path, data):
        nonlocal count
        count += 1
        if after:
            whole(path, data)
        if count > survived:
            raise Killed
        if not after:
            whole(path, data)

    whole, killed = store_module.write_whole, tmp_path / "killed"
    monkeypatch.setattr(store_module, "write_whole", write)
    with pytest.raises(Killed):
        fill(killed)
    monkeypatch.setattr(store_module, "write_whole", whole)
    again = fill(killed)
    assert again.rows == store.rows
    assert len([*again.shards.iterdir()]) == 2 * len(set(again.shard_of.values()))
    assert [*again.problems()] == []
    for id in store.rows:
        assert_close(again.vectors(id), store.vectors(id), rtol=1e-4, atol=1e-4)


def test_add_takes_the_place_of_what_changed(documents, build, tmp_path):
    build()
    store = SummaryStore(tmp_path / "store")
    (documents / "0.txt").write_text("The lion came back.")
    (documents / "new.txt").write_text("A new ship.")
    assert main(["store", "add", str(documents), "--store", str(store.folder)]) == 0
    changed = SummaryStore(store.folder)
    assert sources(changed) == sorted([*EVERYTHING, "new.txt"])
    assert {each.text for each in changed.documents() if each.source == "0.txt"} == {"The lion came back."}
    assert [*changed.problems()] == []


@pytest.mark.parametrize("change", [lambda path: path.write_text("A third ship."), Path.unlink])
def test_what_changes_while_it_is_read_keeps_its_old_text(change, documents, build, store, monkeypatch, capsys):
    """The others are stored; the next build stores it too."""

    def fill(*args):
        change(documents / "0.txt")
        return whole(*args)

    (documents / "0.txt").write_text("A second ship.")
    (documents / "new.txt").write_text("A new ship.")
    whole = commands.fill
    monkeypatch.setattr(commands, "fill", fill)
    assert build() == 1
    assert "These documents changed while they were read, start again to add them: 0.txt." in capsys.readouterr().err
    left = SummaryStore(store.folder)
    assert sources(left) == sorted([*EVERYTHING, "new.txt"])
    assert [each.text for each in left.documents() if each.source == "0.txt"] == [text_of(0)]


@pytest.mark.parametrize("names", [["0.txt"], ["0.txt", "deep/1.txt", "rows.jsonl:4"], EVERYTHING])
def test_remove(names, store):
    assert main(["store", "remove", *names, "--store", str(store.folder)]) == 0
    left = SummaryStore(store.folder)
    assert sources(left) == sorted(set(EVERYTHING) - set(names))
    assert [*left.problems()] == []


@pytest.mark.parametrize("survived", [0, 1])
def test_a_removal_that_is_killed(survived, store, monkeypatch):
    """Either nothing has changed, or the documents are gone; what is left is whole."""
    count, whole = 0, store_module.write_whole

    def write(path, data):
        nonlocal count
        count += 1
        if count > survived:
            raise Killed
        whole(path, data)

    monkeypatch.setattr(store_module, "write_whole", write)
    with pytest.raises(Killed):
        store.remove(store.select(["0.txt"]))
    left = SummaryStore(store.folder)
    assert sources(left) == sorted(set(EVERYTHING) - ({"0.txt"} if survived else set()))
    assert [*left.problems()] == []


def test_other_settings_or_another_model_do_not_go_on(documents, build, store, tokenizer, tmp_path, capsys):
    assert build("--segment-length", 8) == 1
    assert "was made otherwise: `segment_length` is 16, not 8" in capsys.readouterr().err
    other = tiny_autocompressor("llama", seed=1, vocab_size=len(tokenizer))
    other.save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    add = ["store", "add", documents, "--store", store.folder, "--model", tmp_path / "other"]
    assert main([str(part) for part in add]) == 1
    assert "`model` has other weights" in capsys.readouterr().err


# Damage


def test_verify_finds_what_is_damaged(store, capsys):
    command = ["store", "verify", "--store", str(store.folder)]
    assert main(command) == 0
    assert "12 documents are as they were saved." in capsys.readouterr().out
    first, second, third = sorted(store.shards.glob("*.safetensors"))
    data = bytearray(first.read_bytes())
    data[-1] ^= 1
    first.write_bytes(data)
    second.unlink()
    third.with_name("left.safetensors").write_bytes(third.read_bytes())
    assert main(command) == 1
    said = capsys.readouterr()
    lost = [id for id in store.rows if store.shard_of[id] == second.stem]
    assert said.out.count("the SHA-256 of the vectors") == 1 and "a killed run left it" in said.out
    assert said.out.count("missing or damaged") == len(lost)
    assert f"has {len(lost) + 2} problems" in said.err
    damaged = [id for id in store.rows if store.shard_of[id] == first.stem]
    with pytest.raises(StoreError, match="is another one"):
        for id in damaged:
            store.vectors(id)
    with pytest.raises(StoreError, match="are lost"):
        store.vectors(next(id for id in store.rows if store.shard_of[id] == second.stem))


@pytest.mark.parametrize("text", ["", "[]", '{"format": "other"}', "{}", '{"format": "auto_compressor.store.v1"}'])
def test_settings_that_are_none(text, store, capsys):
    (store.folder / "store.json").write_text(text)
    assert main(["store", "info", "--store", str(store.folder)]) == 1
    assert "store.json" in capsys.readouterr().err


BAD_ROW = '{"id": "a", "source": "b", "text": "c", "tokens": 1, "vectors": 0, "sha256": "d"}\n'


@pytest.mark.parametrize("text", ["no json\n", "{}\n", "[]\n", BAD_ROW])
def test_rows_that_are_none(text, store, capsys):
    damaged = next(store.shards.glob("*.jsonl"))
    damaged.write_text(text)
    assert main(["store", "info", "--store", str(store.folder)]) == 1
    assert "must hold a row for each document; `store verify --repair` takes it out" in capsys.readouterr().err
    assert main(["store", "verify", "--repair", "--store", str(store.folder)]) == 0
    left = SummaryStore(store.folder)
    assert sorted(left.rows) == sorted(id for id in store.rows if store.shard_of[id] != damaged.stem)
    assert [*left.problems()] == []


def test_repair_of_a_folder_that_is_no_store(tmp_path, capsys):
    other = tmp_path / "shards" / "a.jsonl"
    other.parent.mkdir()
    other.write_text("no json")
    assert main(["store", "verify", "--repair", "--store", str(tmp_path)]) == 1
    assert "is no store" in capsys.readouterr().err and other.exists()


def test_repair_and_build(build, store, capsys):
    """What is damaged is taken out, and made anew by the command that built the store."""
    first, second, _ = sorted(store.shards.glob("*.safetensors"))
    data = bytearray(first.read_bytes())
    data[-1] ^= 1
    first.write_bytes(data)
    second.unlink()
    assert main(["store", "verify", "--store", str(store.folder), "--repair"]) == 0
    assert [*SummaryStore(store.folder).problems()] == []
    assert build() == 0
    again = SummaryStore(store.folder)
    assert again.rows.keys() == store.rows.keys() and [*again.problems()] == []


# Several at once


def test_two_that_write_at_once(store):
    """Each knows what the other has written since, whatever it knew when it began."""
    first, second = SummaryStore(store.folder), SummaryStore(store.folder)
    new = [Document(f"new {index}", f"New text {index}.") for index in range(3)]
    vectors = [torch.randn(2, 24) for _ in new]
    first.write(new[:2], vectors[:2], [5, 5])
    second.clean()
    second.write(new[1:], vectors[1:], [5, 5])
    second.remove(second.select(["0.txt"]))
    first.remove(first.select(["2.txt", "deep/1.txt"]))
    left = SummaryStore(store.folder)
    names = set(EVERYTHING) - {"0.txt", "2.txt", "deep/1.txt"} | {each.source for each in new}
    assert sources(left) == sorted(names) and [*left.problems()] == []
    assert_close(left.vectors(new[1].id), vectors[1])
    assert len({row.id for rows in left.rows_of.values() for row in rows}) == sum(map(len, left.rows_of.values()))


def test_verify_waits_for_a_shard_that_is_being_written(store):
    """Its vectors are there before its rows are."""

    def write_rows(*args):
        has_vectors.set()
        looked_at.wait(10)
        whole_write(*args)

    def seen_problems():
        yield from whole_seen()
        looked_at.set()

    writer, has_vectors, looked_at = SummaryStore(store.folder), Event(), Event()
    whole_write, whole_seen = writer.write_rows, store.seen_problems
    writer.write_rows, store.seen_problems = write_rows, seen_problems
    thread = Thread(target=writer.write, args=([Document("new", "New text.")], [torch.zeros(1, 24)], [2]))
    thread.start()
    has_vectors.wait(10)
    assert [*store.problems()] == []
    thread.join()


@pytest.mark.parametrize("step", ["version", "read_shard"])
def test_a_shard_that_is_taken_out_while_a_store_is_opened(step, store, monkeypatch):
    def vanish(path, *args):
        if path == gone:
            path.unlink(missing_ok=True)
        return whole(path, *args)

    gone, whole = store.rows_file(store.shard_of[store.select(["0.txt"])[0]]), getattr(store_module, step)
    monkeypatch.setattr(store_module, step, vanish)
    left = SummaryStore(store.folder)
    assert sorted(left.rows) == sorted(id for id in store.rows if store.shard_of[id] != gone.stem)
    left.refresh()
    assert gone.stem not in left.versions
    with pytest.raises(StoreError, match="another process took it out"):
        store.document(store.select(["0.txt"])[0])


def test_a_document_of_two_shards_is_removed_from_both(store):
    document = Document("new", "New text.")
    for shard in ("a", "b"):
        store.write_vectors(shard, {document.id: torch.zeros(1, 24)})
        row = store_module.StoredDocument(document.id, "new", "New text.", 2, 1, "0" * 64)
        store.write_rows(shard, [row])
    store.remove([document.id])
    assert sources(SummaryStore(store.folder)) == EVERYTHING


def test_what_a_file_no_longer_has_is_taken_out(documents, build, tmp_path):
    """Rows that are gone, a text that became empty, and an old text that a killed run had left beside the new one."""
    build()
    store = SummaryStore(tmp_path / "store")
    (documents / "rows.jsonl").write_text(json.dumps({"text": text_of(8)}) + "\n")
    (documents / "0.txt").write_text(" ")
    store.write([Document("2.txt", "An old text.")], [torch.zeros(1, 24)], [3])
    assert build() == 0
    left = SummaryStore(tmp_path / "store")
    gone = {"0.txt", "rows.jsonl:2", "rows.jsonl:3", "rows.jsonl:4"}
    assert sources(left) == sorted(set(EVERYTHING) - gone) and [*left.problems()] == []
    assert [each.text for each in left.documents() if each.source == "2.txt"] == [text_of(2)]


def test_splits_and_configurations_of_a_dataset_stay_beside_each_other(store, monkeypatch):
    monkeypatch.setattr("auto_compressor.files.documents.stream_rows", lambda *args, **options: [{"text": "A ship."}])
    for config, split in [(None, "train"), (None, "test"), ("en", "train"), ("de", "train")]:
        read = [Document(*pair) for pair in read_documents("user/data", "text", config, split)]
        assert store.outdated(Listing(read)) == []
        store.write(read, [torch.zeros(1, 24)], [3])
    names = ["user/data:de:train:1", "user/data:en:train:1", "user/data:test:1", "user/data:train:1"]
    assert sources(store) == sorted([*EVERYTHING, *names])


# Searching and reading


def test_search_finds_the_words(store, capsys):
    counts = {each.source: each.text.lower().count("lion") for each in store.documents()}
    found = search(store, "Where is the lion?", 12)
    assert {each.document.source for each in found} == {name for name, count in counts.items() if count}
    assert [each.score for each in found] == sorted((each.score for each in found), reverse=True)
    assert search(store, "zebra", 3) == []
    assert main(["store", "search", "lion", "--store", str(store.folder), "--top", "1"]) == 0
    assert found[0].document.source in capsys.readouterr().out
    # The index is that of what the store holds now.
    store.remove([found[0].document.id])
    assert found[0].document not in [each.document for each in search(SummaryStore(store.folder), "lion", 12)]
    assert len([*(store.folder / "bm25").iterdir()]) == 1


@pytest.mark.parametrize("changed", [False, True])
def test_two_that_search_at_once(changed, store, monkeypatch):
    """The second makes its index while that of the first is written, but not at its place."""

    def save(index, part):
        whole(index, part)
        monkeypatch.setattr(bm25s.BM25, "save", whole)
        if changed:
            second.remove(second.select(["0.txt"]))
        second_found.extend(search(second, "lion", 3))

    bm25s = pytest.importorskip("bm25s")
    second, second_found, whole = SummaryStore(store.folder), [], bm25s.BM25.save
    monkeypatch.setattr(bm25s.BM25, "save", save)
    assert load_index(store) is not None and second_found
    assert len([*(store.folder / "bm25").iterdir()]) == 1


def test_a_search_whose_shard_another_process_takes_out(store, monkeypatch, capsys):
    """An error of one line says what happened; the next search finds what is left."""

    def documents(self):
        other.remove(gone)
        return whole(self)

    pytest.importorskip("bm25s")
    other, whole = SummaryStore(store.folder), SummaryStore.documents
    gone = [row.id for row in [*store.rows_of.values()][-1]]
    monkeypatch.setattr(SummaryStore, "documents", documents)
    command = ["store", "search", "lion", "--store", str(store.folder)]
    assert main(command) == 1
    error = capsys.readouterr().err.strip()
    assert error.endswith(".jsonl has changed while the store was read: another process writes to it.")
    assert len(error.splitlines()) == 1
    assert main(command) == 0


def test_texts_without_a_word(store):
    store.remove(list(store.rows))
    store.write([Document("signs", "!!! ???")], [torch.zeros(1, 24)], [3])
    assert search(store, "lion", 3) == []


@torch.no_grad()
def test_fused_vectors_have_the_best_nearest_to_the_text(model, store):
    found = search(store, "lion", 3)
    fused = fuse(store, found, model)
    parts = [store.vectors(each.document.id) for each in reversed(found)]
    assert_close(fused, torch.cat(parts)[None])
    assert fuse(store, [], model).shape == (1, 0, 24)
    other = tiny_autocompressor("llama", seed=1, vocab_size=model.config.vocab_size)
    with pytest.raises(ValueError, match="`model` has other weights"):
        fuse(store, found, other)


@torch.no_grad()
def test_rerank_is_the_likelihood_of_the_question(model, tokenizer, store):
    found, question = search(store, "lion", 4), " Where is the lion?"
    ranked = rerank(store, found, question, model, tokenizer)
    assert {each.document for each in ranked} == {each.document for each in found}
    assert [each.score for each in ranked] == sorted((each.score for each in ranked), reverse=True)
    texts = (QUESTION_PROMPT, question)
    prompt, asked = (tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids for text in texts)
    ids = torch.cat([prompt, asked], dim=1)
    labels = ids.clone()
    labels[:, : prompt.shape[1]] = -100
    for each in ranked:
        loss = model(ids, labels=labels, softprompt=store.vectors(each.document.id)[None]).loss
        assert each.score == pytest.approx(-float(loss), rel=1e-4)


def test_generate_reads_the_documents_that_it_names(folder, model, tokenizer, store, capsys):
    prompt = "The lion and the ship"
    command = ["generate", "--model", str(folder), "--prompt", prompt, "--max-new-tokens", "5"]
    assert main([*command, "--store", str(store.folder), "--top", "2"]) == 0
    said = capsys.readouterr()
    found = search(store, prompt, 2)
    assert all(each.document.source in said.err for each in found)
    ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt").input_ids
    expected = model.generate(
        ids, softprompt=fuse(store, found, model), max_new_tokens=5, segment_lengths=16, pad_token_id=0
    )
    assert said.out.strip() == tokenizer.decode(expected[0], skip_special_tokens=True).strip()
    assert main([*command, "--store", str(store.folder), "--softprompt", "x"]) == 1
    assert "not both" in capsys.readouterr().err


# Bad input


def test_bad_input(build, store, folder, documents, tmp_path, capsys):
    (tmp_path / "nothing").mkdir()
    (tmp_path / "latin").mkdir()
    (tmp_path / "latin" / "a.txt").write_bytes(b"caf\xe9")
    name, new = str(store.folder), ["-o", tmp_path / "x", "--model", folder]
    cases = {
        "must hold files that end in": ["store", "build", tmp_path / "nothing", *new],
        "must be UTF-8 text, byte 3": ["store", "build", tmp_path / "latin", *new],
        "must be a store, or empty": ["store", "build", documents, "-o", tmp_path / "latin", "--model", folder],
        "must lie outside of its documents": ["store", "build", documents, "-o", documents / "x", "--model", folder],
        "is no store": ["store", "info", "--store", tmp_path / "nothing"],
        "has no document 'z.txt'": ["store", "remove", "z.txt", "--store", name],
        "`top` must be 1 or more, got 0": ["store", "search", "a", "--store", name, "--top", 0],
        "--shard-size must be 1 or more": ["store", "add", documents, "--store", name, "--shard-size", 0],
        "`max_summary_length` must be 1 or more": ["store", "build", documents, *new, "--max-summary-length", 0],
    }
    for message, command in cases.items():
        assert main([str(part) for part in command]) == 1, command
        assert message in capsys.readouterr().err
    assert [*SummaryStore(store.folder).problems()] == []
    assert not any(folder.exists() for folder in (tmp_path / "x", documents / "x"))


def test_a_file_whose_name_is_not_utf8(build, documents, tmp_path, capsys):
    (documents / os.fsdecode(b"caf\xe9.txt")).write_text("A ship.")
    assert build() == 1
    assert r"must be UTF-8, got 'caf\udce9.txt'" in capsys.readouterr().err
    assert not (tmp_path / "store").exists()


def test_no_documents_to_search(store):
    store.remove(list(store.rows))
    with pytest.raises(ValueError, match="must hold documents, it has none"):
        search(store, "lion", 3)
