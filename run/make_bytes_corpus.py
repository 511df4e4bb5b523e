"""Makes what run/pretrain_bytes.sh trains on: text, source code and Markdown, all under permissive licences."""

import argparse
import hashlib
import json
import re
import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from auto_compressor.files.bundled import BUNDLED_TRAIN_TEXT
from auto_compressor.files.whole_files import write_whole


# Documents of a corpus with other licences are left out.
PERMISSIVE = {
    "Apache-2.0",
    "Apache-2.0 with LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ImageMagick",
    "MIT",
    "MIT or Apache-2.0",
    "PSF-2.0",
    "PostgreSQL",
    "public-domain",
    "public-domain and BSD-2-Clause",
}
# licence -> installed packages under it
PACKAGES = {
    "Apache-2.0": "accelerate aiohttp datasets evaluate huggingface_hub nltk peft pyarrow requests"
    " sentencepiece tensorboard transformers",
    "BSD-2-Clause": "mkdocs Pygments",
    "BSD-3-Clause": "click fsspec httpx Jinja2 joblib Markdown mpmath networkx pandas scikit-learn scipy sympy torch"
    " torchao uvicorn Werkzeug",
    "MIT": "anyio attrs bitsandbytes charset-normalizer constriction fastapi fonttools lm_eval markdown-it-py"
    " more-itertools mypy narwhals pip pydantic pymdown-extensions pyparsing pytest rich ruff setuptools tomlkit typer"
    " urllib3",
    "Apache-2.0 and MIT": "gradio gradio_client",
    "BSD-3-Clause and others": "numpy",
}
HELD_OUT = ("anyio", "attrs", "click", "fsspec", "httpx", "networkx", "requests", "rich", "Werkzeug")
PACKAGE_BYTES, TEXT_BYTES = 450_000, 14_000_000  # that are taken of a package at most, and of the corpus
MIN_BYTES, MAX_BYTES = 1_000, 200_000  # of a document
IS_DATA = re.compile(r"(?:^|/)(?:_vendor|generated|unicode\w*|.*_data|tables?)(?:/|\.py$)")


def documents_of(package: Distribution) -> Iterator[tuple[str, str, bytes]]:
    """Domain, path and bytes of the documents of an installed package, its description among them."""
    description = str(package.metadata.get_payload() or "")
    yield "markdown", "README.md", description.encode("utf-8", "surrogateescape")
    for path in package.files or ():
        domain = {".py": "code", ".md": "markdown"}.get(path.suffix)
        if domain and not path.is_absolute() and ".." not in path.parts and not IS_DATA.search(str(path)):
            yield domain, str(path), Path(package.locate_file(path)).read_bytes()


def order(row: dict[str, str]) -> bytes:
    return hashlib.sha256(row["source"].encode()).digest()


def first_bytes(rows: list[dict[str, str]], most: int) -> list[dict[str, str]]:
    """Rows in the order of the hashes of their names, as many as have so many characters."""
    kept, size = [], 0
    for row in sorted(rows, key=order):
        size += len(row["text"])
        if size > most:
            break
        kept.append(row)
    return kept


def rows_of(name: str, license: str) -> list[dict[str, str]]:
    """All Markdown of a package, and a part of its code."""
    rows = []
    for domain, path, data in documents_of(distribution(name)):
        text = data.decode("utf-8", "replace")
        if MIN_BYTES <= len(data) <= MAX_BYTES and "�" not in text:
            rows.append({"text": text, "source": f"{name}/{path}", "domain": domain, "license": license})
    code = [row for row in rows if row["domain"] == "code"]
    return first_bytes(code, PACKAGE_BYTES) + [row for row in rows if row["domain"] != "code"]


def prose(corpus: Path) -> list[dict[str, str]]:
    """Documents of the corpus under permissive licences, and the bundled text."""
    with (corpus / "train.jsonl").open(encoding="utf-8") as file:
        rows = [row for row in map(json.loads, file) if row["license"] in PERMISSIVE]
    books = BUNDLED_TRAIN_TEXT.read_text().split("\n\n")
    facts = {"domain": "prose", "license": "public-domain"}
    chapters = [{"text": text, "source": f"bundled/{number}", **facts} for number, text in enumerate(books)]
    return first_bytes(rows, TEXT_BYTES) + chapters


def write_rows(path: Path, rows: list[dict[str, str]]):
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in sorted(rows, key=order)]
    write_whole(path, "".join(lines).encode())
    for domain in sorted({row["domain"] for row in rows}):
        sizes = [len(row["text"]) for row in rows if row["domain"] == domain]
        print(f"{path.name}: {domain}, {len(sizes)} documents, {sum(sizes) / 1e6:.1f} MB")


def make_bytes_corpus(corpus: Path):
    training, held_out = prose(corpus), []
    for license, names in PACKAGES.items():
        for name in names.split():
            (held_out if name in HELD_OUT else training).extend(rows_of(name, license))
    write_rows(corpus / "bytes_train.jsonl", training)
    write_rows(corpus / "bytes_heldout.jsonl", held_out)


def main(*arguments: str):
    parser = argparse.ArgumentParser(prog="make_bytes_corpus.py", description=__doc__)
    parser.add_argument("corpus", type=Path, help="folder that run/make_corpus.sh wrote; two files are added")
    args = parser.parse_args(arguments)
    try:
        make_bytes_corpus(args.corpus)
    except (OSError, ValueError, PackageNotFoundError) as error:
        sys.exit(f"make_bytes_corpus.py: error: {error}")


if __name__ == "__main__":
    main(*sys.argv[1:])
