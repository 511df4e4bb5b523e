"""Makes a corpus of long English documents from packages of Debian and PyPI: run/make_corpus.sh starts it."""

import argparse
import csv
import gzip
import hashlib
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from itertools import compress
from pathlib import Path

import numpy as np
from corpus_sources import HELD_OUT_DOMAINS, NO_DOCUMENT, SOURCES, Source
from corpus_text import entries, html_blocks, markdown_blocks, pod_blocks, rest_blocks, sword_chapters, texts

from auto_compressor.files.whole_files import whole_file, write_whole


SHINGLE = 8  # words that count as one when documents are compared
MAX_SEEN = 0.5  # share of the shingles of a document that earlier ones may have
MAX_IN_TRAINING = 0.05  # share of the shingles of a held-out document that the training text may have
HELD_OUT_SHARE = 0.04  # of the documents, by the hash of what they are called
MIN_HELD_OUT = 1_000_000  # characters of a held-out domain
PASSAGE, MIN_PASSAGES = 2500, 200  # characters of a passage, and how many a held-out domain has
LICENSE = r"^(?:usr/share/doc/[^/]+/copyright|[^/]+/(?:LICEN[CS]E|COPYING)[^/]*)$"
READERS: dict[str, Callable[[str], list[str]]] = {
    ".htm": html_blocks,
    ".html": html_blocks,
    ".page": html_blocks,
    ".md": markdown_blocks,
    ".pod": pod_blocks,
    ".rst": rest_blocks,
    ".txt": rest_blocks,
}


@dataclass
class Package:
    """What was fetched for a source, and what came out of it."""

    name: str
    version: str
    kind: str
    license: str
    domain: str
    sha256: str
    documents: int = 0
    characters: int = 0


@dataclass(frozen=True)
class Document:
    text: str
    source: str
    domain: str
    license: str


# Packages


def output_of(*command: str, cwd: Path | None = None) -> str:
    """What a command prints; an `OSError` with its last words if it fails."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    if done.returncode != 0:
        raise OSError(f"{' '.join(command[:3])}: {(done.stderr.strip() or 'no message').splitlines()[-1]}")
    return done.stdout


@cache
def debian_names() -> list[str]:
    return output_of("apt-cache", "pkgnames").split()


def debian_name(pattern: str, names: Iterable[str]) -> str:
    """The package of the greatest number that fits."""
    found = [name for name in names if re.fullmatch(pattern, name)]
    if not found:
        raise OSError("no such package")
    return max(found, key=lambda name: [int(digits) for digits in re.findall(r"\d+", name)])


@contextmanager
def new_file(folder: Path) -> Iterator[Path]:
    """Yields an empty folder; the one file that is in it at the end moves into `folder`, whole."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".part-") as part:
        os.chmod(part, 0o777)  # apt-get gives up its rights as root
        yield Path(part)
        for path in Path(part).iterdir():
            os.replace(path, folder / path.name)


def fetch_debian(source: Source, folder: Path) -> tuple[Path, str, str]:
    cached = [path for path in folder.glob("*.deb") if re.fullmatch(source.package, path.name.split("_")[0])]
    if not cached:
        name = debian_name(source.package, debian_names())
        with new_file(folder) as part:
            output_of("apt-get", "download", name, cwd=part)
        cached = list(folder.glob(f"{name}_*.deb"))
    path = max(cached)
    return path, *output_of("dpkg-deb", "-W", "--showformat=${Package}\t${Version}", str(path)).split("\t")


def fetch_pypi(source: Source, folder: Path) -> tuple[Path, str, str]:
    pattern = f"{source.package}-*.tar.gz"
    if not list(folder.glob(pattern)):
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        with new_file(folder) as part:
            output_of(*pip, "--no-binary", source.package, "--dest", str(part), source.package)
    path = max(folder.glob(pattern))
    return path, *path.name.removesuffix(".tar.gz").rsplit("-", 1)


@contextmanager
def opened(path: Path) -> Iterator[tarfile.TarFile]:
    if path.suffix != ".deb":
        with tarfile.open(path, "r|*") as tar:
            yield tar
        return
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", path], stdout=subprocess.PIPE) as process:
        with tarfile.open(fileobj=process.stdout, mode="r|") as tar:
            yield tar
        process.stdout.read()  # what is behind the end of the archive


def members(path: Path, pattern: str) -> dict[str, bytes]:
    """The files of a package whose paths hold the pattern, in the order of their paths, uncompressed."""
    found = {}
    with opened(path) as tar:
        for member in tar:
            name = member.name.removeprefix("./").removesuffix(".gz")
            if member.isfile() and re.search(pattern, name):
                data = tar.extractfile(member).read()
                found[name] = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    return dict(sorted(found.items()))


# Documents


def decoded(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode("latin-1")


def read_documents(files: dict[str, bytes]) -> Iterator[tuple[str, list[str]]]:
    """Names and blocks of the documents in files."""
    for name, data in files.items():
        stem, ending = os.path.splitext(name)
        if ending == ".index":
            passages = entries(files[f"{stem}.dict.dz"], decoded(data))
            yield from ((f"{name}#{number}", blocks) for number, blocks in enumerate(passages))
        elif ending in (".czs", ".bzs"):
            chapters = sword_chapters(data, files[f"{stem}{ending[:-1]}z"])
            yield from ((f"{name}#{number}", blocks) for number, blocks in enumerate(chapters))
        elif ending in READERS and not re.search(NO_DOCUMENT, f"/{name}"):
            yield name, READERS[ending](decoded(data))


def documents_of(source: Source, package: Package, files: dict[str, bytes]) -> list[Document]:
    """Those that are prose, short ones first: of pages and the same pages on one, the pages are kept."""
    named = list(read_documents({name: data for name, data in files.items() if re.search(source.files, name)}))
    found = zip((name for name, _ in named), texts([blocks for _, blocks in named]), strict=True)
    kept = sorted((len(text), name, text) for name, text in found if text)
    return [Document(text, f"{package.name}/{name}", source.domain, source.license) for _, name, text in kept]


# Selection


def shingles(text: str) -> np.ndarray:
    """Hashes of all runs of `SHINGLE` words, `(words - SHINGLE + 1,)`, each once."""
    words = re.findall(r"\w+", text.lower())
    numbers = np.array([word_number(word) for word in words], dtype=np.uint64)
    length = max(0, len(words) - SHINGLE + 1)
    hashes = np.zeros(length, dtype=np.uint64)
    for place in range(SHINGLE):
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + numbers[place : place + length]
    return np.unique(hashes ^ (hashes >> np.uint64(29)))


@cache
def word_number(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest())


def shares_seen(hashes: list[np.ndarray]) -> np.ndarray:
    """The share of each document's shingles that an earlier document has, `(documents,)`."""
    owners = np.repeat(np.arange(len(hashes)), [len(part) for part in hashes])
    _, first, places = np.unique(np.concatenate(hashes), return_index=True, return_inverse=True)
    seen = owners[first[places]] < owners
    totals = np.bincount(owners, minlength=len(hashes))
    return np.bincount(owners, weights=seen, minlength=len(hashes)) / np.maximum(totals, 1)


def share_in(training: np.ndarray, own: np.ndarray) -> float:
    """The share of `own` that is in `training`, which is sorted."""
    places = np.minimum(np.searchsorted(training, own), len(training) - 1)
    return float((training[places] == own).mean())


def digest(document: Document) -> bytes:
    return hashlib.sha256(document.source.encode()).digest()


def is_held_out(document: Document) -> bool:
    return int.from_bytes(digest(document)[:4]) < HELD_OUT_SHARE * 2**32


def split(documents: list[Document]) -> dict[str, list[Document]]:
    """
    The documents by the name of their file, in the order of the hashes of their names.

    A document of which earlier ones have most is left out, and a held-out one of which the training text has a little.
    """
    hashes = [shingles(document.text) for document in documents]
    new = shares_seen(hashes) <= MAX_SEEN
    files: dict[str, list[Document]] = {name: [] for name in ("train", "heldout", *HELD_OUT_DOMAINS)}
    held_out, training = [], []
    for document, own in compress(zip(documents, hashes, strict=True), new):
        if document.domain in HELD_OUT_DOMAINS or is_held_out(document):
            held_out.append((document, own))
        else:
            files["train"].append(document)
            training.append(own)
    seen = np.unique(np.concatenate(training))
    for document, own in held_out:
        if share_in(seen, own) <= MAX_IN_TRAINING:
            files[document.domain if document.domain in HELD_OUT_DOMAINS else "heldout"].append(document)
    return {name: sorted(found, key=digest) for name, found in files.items()}


# Output


def facts(name: str, domain: str, documents: list[Document]) -> dict[str, str]:
    """A row of the table; licences are those of one domain."""
    return {
        "file": f"{name}.jsonl",
        "domain": domain,
        "documents": f"{len(documents)}",
        "MB": f"{sum(len(document.text) for document in documents) / 1e6:.1f}",
        "passages": f"{sum(len(document.text) // PASSAGE for document in documents)}",
        "licenses": ", ".join(sorted({document.license for document in documents})) if domain != "all" else "",
    }


def table(files: dict[str, list[Document]]) -> list[dict[str, str]]:
    rows = []
    for name, documents in files.items():
        domains = sorted({document.domain for document in documents})
        for domain in domains:
            rows.append(facts(name, domain, [document for document in documents if document.domain == domain]))
        if len(domains) > 1:
            rows.append(facts(name, "all", documents))
    return rows


def markdown(rows: list[dict[str, str]]) -> str:
    lines = [" | ".join(rows[0]), " | ".join("---" for _ in rows[0]), *(" | ".join(row.values()) for row in rows)]
    return "\n".join(f"| {line} |" for line in lines)


def write_csv(path: Path, rows: list[dict]):
    with whole_file(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_files(output: Path, files: dict[str, list[Document]], packages: list[Package]):
    for name, documents in files.items():
        lines = "".join(json.dumps(asdict(document), ensure_ascii=False) + "\n" for document in documents)
        write_whole(output / f"{name}.jsonl", lines.encode())
    write_csv(output / "corpus.csv", table(files))
    write_csv(output / "manifest.csv", [asdict(package) for package in packages])
    sums = {f"{name}.jsonl": hashlib.sha256((output / f"{name}.jsonl").read_bytes()).hexdigest() for name in files}
    write_whole(output / "README.md", readme(files, packages, sums).encode())


def readme(files: dict[str, list[Document]], packages: list[Package], sums: dict[str, str]) -> str:
    rows = [{k: str(v) for k, v in asdict(p).items() if k != "sha256"} for p in packages]
    digests = "\n".join(f"    {digest}  {name}" for name, digest in sums.items())
    return f"""# A corpus of long English documents

Made by `run/make_corpus.sh` from the packages below. Each row of the files has `text`, `source` (package and path),
`domain` and `license`. Documents keep the licences of their packages; `licenses/` has their own words.

{markdown(table(files))}

SHA-256:

{digests}

## Packages

{markdown(rows)}
"""


def check_sizes(files: dict[str, list[Document]], megabytes: float):
    size = sum(len(document.text) for document in files["train"]) / 1e6
    if size < megabytes:
        raise ValueError(f"the training text must have {megabytes:g} MB (--megabytes), got {size:.1f}")
    for name in HELD_OUT_DOMAINS:
        lengths = [len(document.text) for document in files[name]]
        passages = sum(length // PASSAGE for length in lengths)
        if sum(lengths) < MIN_HELD_OUT or passages < MIN_PASSAGES:
            raise ValueError(
                f"{name}.jsonl must have {MIN_HELD_OUT / 1e6:g} MB, and {MIN_PASSAGES} passages of {PASSAGE}"
                f" characters, got {sum(lengths) / 1e6:.2f} MB and {passages} passages"
            )


def say(text: str):
    print(text, file=sys.stderr, flush=True)


def fetch_all(sources: list[Source], output: Path) -> list[tuple[Source, Path, Package]]:
    fetched = []
    for number, source in enumerate(sources, 1):
        fetch = fetch_debian if source.kind == "debian" else fetch_pypi
        try:
            path, name, version = fetch(source, output / "downloads" / source.kind)
        except OSError as error:
            say(f"[{number}/{len(sources)}] {source.package} is left out: {error}")
            continue
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        package = Package(name, version, source.kind, source.license, source.domain, digest)
        fetched.append((source, path, package))
        say(f"[{number}/{len(sources)}] fetched {name} {version}, {path.stat().st_size / 1e6:.1f} MB")
    return fetched


def copy_license(folder: Path, package: Package, files: dict[str, bytes]):
    found = [data for name, data in files.items() if re.search(LICENSE, name)]
    if found:
        folder.mkdir(exist_ok=True)
        write_whole(folder / f"{package.name}.txt", b"\n".join(found))


def read_all(fetched: list[tuple[Source, Path, Package]], output: Path) -> list[Document]:
    documents, start = [], time.monotonic()
    for number, (source, path, package) in enumerate(fetched, 1):
        files = members(path, f"{source.files}|{LICENSE}")
        copy_license(output / "licenses", package, files)
        own = documents_of(source, package, files)
        documents += own
        left = (time.monotonic() - start) / number * (len(fetched) - number)
        size = sum(len(document.text) for document in own) / 1e6
        say(f"[{number}/{len(fetched)}] {package.name}: {len(own)} documents, {size:.1f} MB; about {left:.0f} s left")
    return documents


def make_corpus(output: Path, megabytes: float, sources: list[Source]):
    output.mkdir(parents=True, exist_ok=True)
    fetched = fetch_all(sources, output)
    files = split(read_all(fetched, output))
    check_sizes(files, megabytes)
    kept = [document for documents in files.values() for document in documents]
    for _, _, package in fetched:
        own = [len(document.text) for document in kept if document.source.startswith(f"{package.name}/")]
        package.documents, package.characters = len(own), sum(own)
    write_files(output, files, [package for _, _, package in fetched])
    print(markdown(table(files)))


def main(*arguments: str):
    parser = argparse.ArgumentParser(prog="make_corpus.sh")
    parser.add_argument("--output", type=Path, default=Path("build/corpus"), help="folder (default: build/corpus)")
    parser.add_argument("--megabytes", type=float, default=50, help="least size of train.jsonl in MB (default: 50)")
    args = parser.parse_args(arguments)
    try:
        make_corpus(args.output, args.megabytes, SOURCES)
    except (OSError, ValueError, tarfile.TarError) as error:
        sys.exit(f"make_corpus.sh: error: {error}")


if __name__ == "__main__":
    main(*sys.argv[1:])
