"""run/make_corpus.sh, offline: packages of our making lie where it keeps what it has fetched."""

import csv
import gzip
import io
import json
import os
import random
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import zlib
from pathlib import Path

import corpus_text
import make_corpus
import pytest
from corpus_sources import HELD_OUT_DOMAINS, NO_DOCUMENT, SOURCES, Source


ROOT = Path(__file__).parents[1]
SMALL = [
    Source("systems", "manual", "MIT", r"/docs/.*\.html$", "pypi"),
    Source("science", "guide", "BSD-3-Clause", r"/docs/.*\.rst$", "pypi"),
    Source("prose", "tales", "public-domain", r"/docs/.*\.html$", "pypi"),
    Source("entries", "lexicon", "GFDL-1.1+", r"/dictd/", "pypi"),
]
NOUNS = "river engine garden letter window harbour mountain kettle library soldier captain compiler lantern".split()
VERBS = "carries follows answers measures remembers repairs considers describes".split()


def sentences(seed, count=40):
    """English that is the same for one seed; eight words in a row have a name that no other seed has there."""
    chosen = random.Random(str(seed))

    def name():
        return "".join(chosen.choices("abcdefghijklmnopqrstuvwxyz", k=8))

    made = [
        f"The {chosen.choice(NOUNS)} {name()} of the {chosen.choice(NOUNS)} {chosen.choice(VERBS)} what is in"
        f" {name()} of the {chosen.choice(NOUNS)}s, and {name()} of them {chosen.choice(VERBS)} that."
        for _ in range(count)
    ]
    return [" ".join(made[start : start + 4]) for start in range(0, count, 4)]


def page(paragraphs):
    menu = "<div class='navheader'><a>Prev</a> <a>Up</a> <a>Next</a></div>"
    body = "".join(f"<p>{text}</p>\n" for text in paragraphs)
    return f"<html><head><title>T</title></head><body>{menu}<h1>A heading¶</h1>{body}<p>Made by us.</p></body></html>"


def add_package(downloads, name, files):
    (downloads / "pypi").mkdir(parents=True, exist_ok=True)
    with tarfile.open(downloads / "pypi" / f"{name}-1.0.tar.gz", "w:gz") as tar:
        for path, data in files.items():
            member = tarfile.TarInfo(f"{name}-1.0/{path}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def dictionary(texts):
    """The two files of a dict database."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"

    def digits(number):
        return (digits(number // 64) if number >= 64 else "") + alphabet[number % 64]

    data, lines = "", ["00databaseshort\tA\tB"]
    for number, text in enumerate(texts):
        lines.append(f"word{number}\t{digits(len(data))}\t{digits(len(text))}")
        data += text
    return {"dictd/lex.dict.dz": gzip.compress(data.encode()), "dictd/lex.index": "\n".join(lines).encode()}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Has the packages of SMALL; some documents are there twice, or partly in another."""
    monkeypatch.setattr(make_corpus, "MIN_HELD_OUT", 20_000)
    monkeypatch.setattr(make_corpus, "MIN_PASSAGES", 8)
    monkeypatch.setattr(make_corpus, "HELD_OUT_SHARE", 0.3)
    downloads = tmp_path / "corpus" / "downloads"
    manual = {f"docs/{number}.html": page(sentences(f"manual {number}")).encode() for number in range(30)}
    manual["docs/copy.html"] = page(sentences("manual 3")).upper().replace("</P>", "</p>").encode()
    manual["docs/single.html"] = page(sentences("manual 4") + sentences("manual 5")).encode()
    manual["LICENSE"] = b"Do what you like."
    guide = {f"docs/{number}.rst": "\n\n".join(sentences(f"guide {number}")).encode() for number in range(20)}
    tales = {f"docs/{number}.html": page(sentences(f"tales {number}")).encode() for number in range(20)}
    quoted = [sentences(f"manual {number}")[0] for number in range(10, 20)]
    tales["docs/quoting.html"] = page(sentences("tales q") + quoted).encode()
    for name, files in [("manual", manual), ("guide", guide), ("tales", tales)]:
        add_package(downloads, name, files)
    meanings = (" ".join(sentences(f"entry {number}", 12)) for number in range(60))
    add_package(downloads, "lexicon", dictionary(f"word\n\n   {meaning}\n" for meaning in meanings))
    return tmp_path / "corpus"


def rows(folder, name):
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def words_of(text):
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[place : place + 8]) for place in range(len(words) - 7)}


# Documents


def test_html_without_what_is_around_it():
    blocks = corpus_text.html_blocks(
        "<head><title>No</title></head><body><nav><p>Menu</p></nav><div class='navheader'><div>Prev</div> Next</div>"
        "<h1>One &amp; two<a class='headerlink' href='#x'>¶</a></h1><p>Soft <b>words</b>,\n  wrapped.<p>Next"
        "<pre>if x:\n    y</pre><table class='toc'><tr><td>1</td></tr></table><script>x()</script><p>Last."
    )
    assert blocks == ["One & two", "Soft words, wrapped.", "Next", "if x:\n    y", "Last."]


def test_rest_without_its_marks():
    text = (
        "=====\nTitle\n=====\n\n.. _label:\n.. toctree::\n   :maxdepth: 2\n\n   other\n\n.. note::\n\n   Use"
        " :class:`~a.Queue` or ``b``\n   with `a link <http://x>`_, *now*.\n\n"
        "Last::\n\n    if x:\n\n        y\n\nOr::\n\n* one\n  line\n* two"
    )
    assert corpus_text.rest_blocks(text) == [
        "Title",
        "Use a.Queue or b with a link, now.",
        "Last:",
        "    if x:",
        "        y",
        "Or:",
        "* one line",
        "* two",
    ]


def test_pod_and_markdown_without_their_marks():
    pod = "=head1 NAME\n\nA C<short> L<text|perlop> with B<I<both>>.\n\n    my $x;\n\n=over 4\n\n=item one\n\n=back\n"
    assert corpus_text.pod_blocks(pod) == ["NAME", "A short text with both.", "    my $x;", "one"]
    markdown = "# Name <a id='x'></a>\n\nA [link](there.md) to\n{ref}`code`.\n\n"
    markdown += "| a | b |\n|---|---|\n\n```sh\nls\n\nls\n```\nEnd."
    assert corpus_text.markdown_blocks(markdown) == ["Name", "A link to code.", "ls\n\nls", "End."]


def test_sword_modules_are_inflated():
    chapters = ["First psalm.<br />\n<br />It is short.", "<title>Second</title>One more."]
    packed = [zlib.compress(chapter.encode()) for chapter in chapters]
    places = struct.pack("<III", 0, len(packed[0]), 0) + struct.pack("<III", len(packed[0]), len(packed[1]), 0)
    found = list(corpus_text.sword_chapters(places, b"".join(packed)))
    assert found == [["First psalm.", "It is short."], ["Second", "One more."]]


def test_menus_and_frames_go():
    prose = sentences("own")
    menu = ["Home", "Up", "Contents", "A heading"]
    assert corpus_text.without_lists([*menu, *prose, *menu]) == ["A heading", *prose]
    documents = [[*sentences(number), "This page was made by us."] for number in range(5)]
    assert all(len(blocks) == 10 for blocks in corpus_text.without_frames(documents))
    assert len(corpus_text.without_frames(documents[:3])[0]) == 11
    headed = [["Description", *sentences(number)] for number in range(4)] + [
        sentences(number) for number in range(4, 9)
    ]
    assert corpus_text.without_frames(headed) == headed
    assert corpus_text.texts([["Title", "Title", *prose]]) == ["\n\n".join(["Title", *prose])]


@pytest.mark.parametrize(
    "text",
    [
        "\n\n".join(sentences(1, 8)),
        "\n\n".join(f"x{n} = call(y[{n}], '{n}') + {{{n}}};" for n in range(200)),
        "\n\n".join(["Das ist ein langer Satz auf Deutsch, der hier nicht hineingehört."] * 60),
        "\n\n".join(["the name of the option"] * 200),
    ],
    ids=["short", "code", "German", "no sentences"],
)
def test_what_is_no_prose(text):
    assert not corpus_text.is_prose(text)


def test_clean_prose():
    assert corpus_text.is_prose("\n\n".join(sentences(1)))
    assert (
        corpus_text.clean("[rule.of.syntax]")
        == corpus_text.clean("(1994-12-12)")
        == corpus_text.clean("Prev5.4. Of X")
        == ""
    )
    assert corpus_text.clean("so\u00adft\u200b and\u00a0hard ¶\n") == "soft and hard"


@pytest.mark.parametrize("path", ["html/genindex.html", "release-notes.html", "x/COPYING.html", "_sources/a.txt"])
def test_files_that_are_no_documents(path):
    assert re.search(NO_DOCUMENT, f"/{path}") and not re.search(NO_DOCUMENT, "/html/indexes-in-use/sql-select.html")


# Selection


def test_shares_are_those_of_a_slow_count():
    texts = [" ".join(sentences("a")), " ".join(sentences("b")), " ".join(sentences("a")[:5] + sentences("c"))]
    shares = make_corpus.shares_seen([make_corpus.shingles(text) for text in texts])
    earlier = words_of(texts[0]) | words_of(texts[1])
    expected = len(words_of(texts[2]) & earlier) / len(words_of(texts[2]))
    assert shares[0] == 0 and abs(shares[2] - expected) < 1e-9 and expected > 0.2


def test_the_corpus(folder, capsys):
    make_corpus.make_corpus(folder, 0.05, SMALL)
    files = {name: rows(folder, name) for name in ("train", "heldout", *HELD_OUT_DOMAINS)}
    domains = {name: {row["domain"] for row in found} for name, found in files.items()}
    assert domains["train"] == domains["heldout"] == {"systems", "science"}
    assert all(row["domain"] == name for name in HELD_OUT_DOMAINS for row in files[name])
    everything = [row for part in files.values() for row in part]
    assert len({row["source"] for row in everything}) == len(everything) == len({row["text"] for row in everything})
    assert all(list(row) == ["text", "source", "domain", "license"] for row in everything)
    assert not re.search(r"Prev|¶|Made by us", "".join(row["text"] for row in everything))
    sources = {row["source"].split("/docs/")[-1] for row in everything if "manual" in row["source"]}
    assert "single.html" not in sources and len(sources & {"copy.html", "3.html"}) == 1
    assert not any(row["source"].endswith("quoting.html") for row in files["prose"])

    training = set().union(*(words_of(row["text"]) for row in files["train"]))
    for name in ("heldout", *HELD_OUT_DOMAINS):
        assert all(len(words_of(row["text"]) & training) <= 0.05 * len(words_of(row["text"])) for row in files[name])

    printed = capsys.readouterr().out
    assert printed.strip() in (folder / "README.md").read_text() and "public-domain" in printed
    assert (folder / "licenses" / "manual.txt").read_text() == "Do what you like."
    with (folder / "manifest.csv").open() as file:
        manifest = {row["name"]: row for row in csv.DictReader(file)}
    assert manifest["tales"]["version"] == "1.0" and manifest["tales"]["documents"] == "20"
    assert sum(int(row["characters"]) for row in manifest.values()) == sum(len(row["text"]) for row in everything)
    with (folder / "corpus.csv").open() as file:
        assert sum(int(row["documents"]) for row in csv.DictReader(file) if row["domain"] != "all") == len(everything)


def test_the_same_packages_make_the_same_corpus(folder, tmp_path):
    """In a process of its own, from packages whose files lie in another order."""
    make_corpus.make_corpus(folder, 0.05, SMALL)
    again = tmp_path / "again" / "downloads" / "pypi"
    again.mkdir(parents=True)
    for path in (folder / "downloads" / "pypi").iterdir():
        with tarfile.open(path) as old, tarfile.open(again / path.name, "w:gz") as new:
            for member in reversed(old.getmembers()):
                new.addfile(member, old.extractfile(member))
    code = (
        "import make_corpus, test_corpus, pathlib, sys; make_corpus.HELD_OUT_SHARE, make_corpus.MIN_HELD_OUT = 0.3, 0;"
        "make_corpus.MIN_PASSAGES = 0; make_corpus.make_corpus(pathlib.Path(sys.argv[1]), 0.05, test_corpus.SMALL)"
    )
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "run", ROOT / "tests")))
    environment = os.environ | {"PYTHONPATH": paths, "PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-c", code, tmp_path / "again"], check=True, capture_output=True, env=environment)
    for name in ("train", "heldout", *HELD_OUT_DOMAINS, "corpus"):
        (path,) = folder.glob(f"{name}.*")
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb")
def test_debian_packages_are_read(tmp_path):
    (tmp_path / "tree" / "DEBIAN").mkdir(parents=True)
    control = "Package: book-doc-12\nVersion: 1:2.0\nArchitecture: all\nMaintainer: a <a@b.c>\nDescription: a book\n"
    (tmp_path / "tree" / "DEBIAN" / "control").write_text(control)
    docs = tmp_path / "tree" / "usr" / "share" / "doc" / "book"
    docs.mkdir(parents=True)
    (docs / "one.html.gz").write_bytes(gzip.compress(page(sentences(1)).encode()))
    (docs / "copyright").write_text("Free.")
    folder = tmp_path / "debian"
    folder.mkdir()
    subprocess.run(["dpkg-deb", "--build", tmp_path / "tree", folder / "book-doc-12_2_all.deb"], check=True)
    source = Source("systems", r"book-doc-\d+", "MIT", r"\.html$")
    path, name, version = make_corpus.fetch_debian(source, folder)
    assert (name, version) == ("book-doc-12", "1:2.0")
    package = make_corpus.Package(name, version, "debian", "MIT", "systems", "")
    (document,) = make_corpus.documents_of(source, package, make_corpus.members(path, source.files))
    assert document.source == "book-doc-12/usr/share/doc/book/one.html" and "The" in document.text


def test_the_newest_package_of_a_name():
    names = ["postgresql-doc-9", "postgresql-doc-15", "postgresql-doc"]
    assert make_corpus.debian_name(r"postgresql-doc-\d+", names) == "postgresql-doc-15"
    with pytest.raises(OSError, match="no such package"):
        make_corpus.debian_name("absent", names)


# Failures


def test_what_cannot_be_fetched_is_left_out(folder, capsys, monkeypatch):
    monkeypatch.setattr(make_corpus, "output_of", lambda *command, **options: (_ for _ in ()).throw(OSError("no way")))
    absent = Source("systems", "absent", "MIT", r"\.rst$", "pypi")
    make_corpus.make_corpus(folder, 0.05, [absent, *SMALL])
    assert "[1/5] absent is left out: no way\n" in capsys.readouterr().err


def test_too_little_text_is_one_line(folder, monkeypatch):
    monkeypatch.setattr(make_corpus, "SOURCES", SMALL)
    with pytest.raises(SystemExit, match=r"^make_corpus.sh: error: .* must have 3 MB \(--megabytes\), got 0"):
        make_corpus.main("--output", str(folder), "--megabytes", "3")
    monkeypatch.setattr(make_corpus, "MIN_PASSAGES", 10_000)
    with pytest.raises(SystemExit, match=r"error: prose.jsonl must have .* 10000 passages of 2500 characters, got"):
        make_corpus.main("--output", str(folder), "--megabytes", "0.01")
    assert sorted(path.name for path in folder.iterdir()) == ["downloads", "licenses"]


def test_the_sources():
    assert {source.domain for source in SOURCES} > set(HELD_OUT_DOMAINS)
    assert len({(source.kind, source.package) for source in SOURCES}) == len(SOURCES) >= 50
    assert all(source.license and re.compile(source.files) for source in SOURCES)
