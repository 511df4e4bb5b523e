"""Hostile text on every page that the package writes: what is text stays text."""

import json
from collections.abc import Callable, Iterator
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import torch
from hypothesis import strategies as st
from transformers import AutoTokenizer

from auto_compressor.activation_compressor.metrics import Fidelity, Setting
from auto_compressor.activation_compressor.page import quality_table, recall_table, report_page
from auto_compressor.continuous_text_autoencoder.accuracy_report import ERROR_CASES_FILE, write_report
from auto_compressor.continuous_text_autoencoder.error_viewer import (
    DIFFS,
    ErrorCases,
    note_html,
    show_case,
    summary_html,
)
from auto_compressor.evaluation.borders import PatchLevel, TextBorders
from auto_compressor.evaluation.borders_page import borders_page
from auto_compressor.evaluation.recall import RecallResult
from auto_compressor.files.bundled import BUNDLED_TOKENIZER

from .cases import Case, require_right, share
from .models import make_model
from .mutations import drawn


HARMLESS = "In the beginning\nthere was a king"
FRAGMENTS = ["<script>alert(1)</script>", "</pre>", '"><img src=x onerror=alert(1)>', "' onmouseover='a", "<!--"]
FRAGMENTS += ["-->", "]]>", "&lt;script&gt;", "&amp", "</style><b>", "</title>", "<svg/onload=a>", "\x00", "\u202e"]
FRAGMENTS += ["\n", "\r\n", "javascript:a", "`${a}`", "{{a}}", "<", ">", "&", '"', "'", "\ufeff", "\u2028", "a king"]
FRAGMENTS += ["<a href=//x>"]
TEXTS = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=8), min_size=1, max_size=8).map("".join).filter(bool)


class Skeleton(HTMLParser):
    """The elements of a page with the names of their attributes, and whatever is neither element nor text."""

    def __init__(self, page: str):
        super().__init__()
        self.parts: set[str] = set()
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]):
        self.parts |= {tag, *(f"{tag} {name}" for name, _ in attrs)}

    def handle_comment(self, data: str):
        self.parts.add("a comment")

    def unknown_decl(self, data: str):
        self.parts.add("a declaration")

    handle_pi = handle_comment


# Elements and their attributes, as the pages have them.
ELEMENTS = {
    "html": "lang",
    "head": "",
    "meta": "charset name content",
    "title": "",
    "style": "",
    "body": "",
    "main": "",
}
ELEMENTS |= {"h1": "", "h2": "", "p": "class", "div": "class", "span": "class", "b": "class title", "i": "class"}
ELEMENTS |= {"table": "", "tr": "", "th": "", "td": "", "svg": "viewbox role aria-label", "path": "class d"}
ELEMENTS |= {"polyline": "class points", "text": "class x y", "img": "src alt", "pre": "", "del": "", "ins": ""}
ELEMENTS |= {"details": "", "summary": ""}
ALLOWED = {*ELEMENTS, *(f"{tag} {name}" for tag, names in ELEMENTS.items() for name in names.split())}


def check_page(make: Callable[[str], str], text: str):
    """A page has no parts but those that the package writes, and all text is Unicode."""
    page = make(text)
    found = Skeleton(page).parts - ALLOWED
    require_right(not found, f"the page has {sorted(found)}")
    page.encode()


def borders(text: str) -> str:
    data = text.encode("utf-8", "surrogateescape")
    levels = [PatchLevel(list(range(0, len(data), step)), 1.5) for step in (1, 2, 6)]
    return borders_page(TextBorders(text, data, [3.0] * len(data), levels, text), text)


def activation(text: str) -> str:
    setting = Setting(text, text, 2.0)
    tables = {text: quality_table({setting: Fidelity(*[1.0] * 11)})}
    tables["recall"] = recall_table({setting: RecallResult(text, 1, 1, 1, 1, 1)})
    return report_page(text, text, tables, {text: text})


def viewer(path: Path, text: str) -> str:
    """All that the viewer shows of a file of two cases, of a hostile name too."""
    path = path.with_name(text.replace("/", "").replace("\x00", "")[:50] + ".jsonl")
    case = {"token_accuracy": 0.5, "correct_tokens": 1, "total_tokens": 2, "original_text_full": text}
    rows = [case | {"original_text_decoded": HARMLESS, "generated_text": text}]
    rows += [case | {"original_text_decoded": text, "generated_text": text[::-1]}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return shown(path) + note_html(text)


def shown(path: Path) -> str:
    cases = ErrorCases(path)
    return summary_html(cases) + "".join(show_case(cases, number, by) for number in (1, 2) for by in DIFFS)


def report(folder: Path, text: str) -> str:
    """What the viewer shows of a report of a model that gets everything wrong."""
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED_TOKENIZER)
    texts = [(text, tokenizer(text or " ", add_special_tokens=False).input_ids)]
    write_report(folder / "report", make_model("continuous_text_autoencoder"), tokenizer, lambda: texts)
    return shown(folder / "report" / ERROR_CASES_FILE)


def pages(folder: Path, count: int, seed: int) -> Iterator[Case]:
    """Borders, activation and error pages of texts that try to be more than text."""
    makers = {"borders page": borders, "activation page": activation}
    makers |= {"error viewer": partial(viewer, folder / "x"), "accuracy report": partial(report, folder)}
    torch.manual_seed(seed)
    for place, (kind, make) in enumerate(makers.items()):
        for text in (HARMLESS, *drawn(TEXTS, share(count, place, len(makers)), seed)):
            path = folder / "text"
            path.write_text(text, encoding="utf-8", newline="")
            yield Case(kind, partial(check_page, make, text), path, path.stat().st_size, errors=())
