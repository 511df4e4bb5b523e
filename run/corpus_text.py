"""Plain English text from the files of packages: HTML, reStructuredText, Markdown, pod, dict and SWORD databases.

A document is a list of blocks, each a paragraph, a heading, an item of a list or a piece of code. What is no prose is
left out by rules that look at blocks and documents, not at packages:

- runs of short blocks that end no sentence, which are menus, indexes and tables (`without_lists`);
- blocks that are in many documents of one package, which are frames around its pages (`without_frames`);
- documents that are short, or of which little is letters, sentences or frequent English words (`is_prose`).
"""

import re
import struct
import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from html.parser import HTMLParser
from itertools import groupby


MIN_CHARACTERS = 2000  # of a document
MIN_LETTERS = 0.78  # share of letters and spaces among its characters
MIN_SENTENCES = 0.5  # share of its characters in blocks of 8 words or more that end as sentences do
MIN_STOP_WORDS = 0.22  # share of the words below among its words
MIN_MENU = 4  # short blocks in a row that are a menu
MIN_FRAME = 4  # documents that a frame is in, and at least FRAME_SHARE of them
FRAME_SHARE = 0.04
MIN_PASSAGE = 3000  # characters of entries of a dictionary that make one document

STOP_WORDS = frozenset(
    "a all also an and any are as at be been but by can do for from had has have he her his if in into is it its may"
    " more must no not of on one only or other our out shall she should so some such than that the their them then"
    " there these they this those to up was we were what when which who will with would you your".split()
)
INVISIBLE = dict.fromkeys(map(ord, "\u00ad\u200b\u200c\u200d\u2060\ufeff¶"))
NOTE = re.compile(
    r"\s*\.\. (?:note|warning|tip|important|caution|attention|hint|seealso|admonition|version(?:added|changed)"
    r"|deprecated)::"
)
RULE = re.compile(r"\s*([^\w\s])\1{2,}\s*")  # under a heading
ENDS_SENTENCE = re.compile(r"""[.!?:;]['")\]»”’]*$""")


class Page(HTMLParser):
    """
    The blocks of an HTML page, or of an XML page with the same names of elements, without what is around them.

    Attributes:
        blocks (`list[str]`): Paragraphs, headings, items, cells and code, in the order of the page.
    """

    BLOCK = frozenset(
        "p div li dt dd h1 h2 h3 h4 h5 h6 td th tr table ul ol dl pre blockquote section article main body br hr"
        " figure figcaption title item note steps page screen".split()
    )
    DROP = frozenset(
        "script style head nav header footer form button select svg math noscript aside iframe object info".split()
    )
    DROP_CLASS = re.compile(
        r"(?:^|[\s_-])(?:nav(?:igation|bar|header|footer)?|sidebar|sphinxsidebar\w*|related|toc\w*|breadcrumbs?|headerlink"
        r"|footer|header_navigation|nav_\w+|contents|menu|topsection|langs?|docnav|copyright|index|footnotes?|anchor)"
        r"(?:$|[\s_-])",
        re.IGNORECASE,
    )
    EMPTY = frozenset("area base br col embed hr img input link meta source track wbr".split())

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.blocks: list[str] = []
        self.parts: list[str] = []
        self.dropped, self.depth, self.code = "", 0, 0  # the element that is left out, and how deep it is in itself

    def end_block(self):
        text = "".join(self.parts)
        text = text.strip("\n").expandtabs() if self.code else " ".join(text.split())
        if text.strip():
            self.blocks.append(text)
        self.parts = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]):
        if self.dropped:
            self.depth += tag == self.dropped
            return
        marks = " ".join(value or "" for name, value in attributes if name in ("class", "id", "role"))
        marks = re.sub(r"\bwy-\S+", "", marks)  # a theme that has "nav" in the names of what is around its text
        is_link = tag == "a" and not any(name == "class" for name, _ in attributes)
        marked = tag not in ("body", "html", "main") and not is_link and self.DROP_CLASS.search(marks)
        if tag not in self.EMPTY and (tag in self.DROP or marked):
            self.dropped, self.depth = tag, 1
        elif tag in self.BLOCK and not (self.code and tag == "br"):
            self.end_block()
            self.code += tag == "pre"
        elif tag == "br":
            self.parts.append("\n")

    def handle_endtag(self, tag: str):
        if self.dropped:
            self.depth -= tag == self.dropped
            self.dropped = self.dropped if self.depth else ""
        elif tag in self.BLOCK:
            self.end_block()
            self.code = max(0, self.code - (tag == "pre"))

    def handle_data(self, text: str):
        if not self.dropped:
            self.parts.append(text)


def html_blocks(text: str) -> list[str]:
    page = Page()
    page.feed(text)
    page.close()
    page.end_block()
    return page.blocks


def plain_inline(text: str) -> str:
    """reStructuredText without the marks of roles, links, code and emphasis."""
    text = re.sub(r":[\w:.+-]+:`[~!]?([^`<]*?)(?:\s*<[^`>]*>)?`", r"\1", text)
    text = re.sub(r"`([^`<]+?)\s*<[^`>]*>`__?", r"\1", text)
    text = re.sub(r"``?([^`]+)``?_{0,2}", r"\1", text)
    text = re.sub(r"\|(\w[^|\n]*)\|_?", r"\1", text)
    return re.sub(r"(?<![\w*])\*{1,2}([^*\s](?:[^*]*[^*\s])?)\*{1,2}(?![\w*])", r"\1", text)


def without_directives(lines: Iterable[str]) -> Iterator[str]:
    """The lines of reStructuredText without comments, targets and directives; notes and the like stay."""
    hidden = None  # the indentation of what is left out
    for line in lines:
        indent = len(line) - len(line.lstrip())
        if note := NOTE.match(line):
            hidden = None
            yield line[note.end() :]
        elif hidden is None or (line.strip() and indent <= hidden):
            hidden = indent if re.match(r"\s*\.\.(\s|$)", line) else None
            if hidden is None:
                yield "" if RULE.fullmatch(line) else line


def paragraphs(text: str) -> Iterator[str]:
    """What empty lines and items of lists set apart, each on one line; code behind `::` or `>>>` keeps its lines."""
    is_code = False
    for block in re.split(r"\n\s*\n|\n(?=\s*[*-] )", text):
        block = block.strip("\n")
        is_code = block.lstrip().startswith(">>>") or (is_code and block.startswith("   "))
        if block.strip():
            yield block if is_code else re.sub("::$", ":", plain_inline(" ".join(block.split())))
        is_code = is_code or block.endswith("::")


def rest_blocks(text: str) -> list[str]:
    text = re.sub(r"^\s*:[\w -]+:.*\n?", "", text.expandtabs(), flags=re.MULTILINE)  # options and fields
    return list(paragraphs("\n".join(without_directives(text.splitlines()))))


def pod_blocks(text: str) -> list[str]:
    text = re.sub(r"^=(?:begin|for)\b.*?^=(?:end\b.*|cut)$", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"^=(?:head\d|item)\s*", "", text, flags=re.MULTILINE)
    text = re.sub(r"^=\w+.*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"L<(?:([^<>|]*)\|)?([^<>]*)>", lambda link: link[1] or link[2], text)
    text = re.sub(r"[XZ]<[^<>]*>", "", text)
    text = re.sub(r"[BCFIS]<<+\s(.*?)\s>>+", r"\1", text)
    for _ in range(3):  # formats within formats
        text = re.sub(r"[BCFIS]<([^<>]*)>", r"\1", text)
    text = text.replace("E<gt>", ">").replace("E<lt>", "<")
    blocks = [block for block in re.split(r"\n\s*\n", text) if block.strip()]
    return [block.strip("\n") if block.startswith((" ", "\t")) else " ".join(block.split()) for block in blocks]


def markdown_blocks(text: str) -> list[str]:
    blocks: list[str] = []
    for number, part in enumerate(re.split(r"^\s*(?:```|~~~).*$", text, flags=re.MULTILINE)):
        if number % 2:  # between fences
            blocks.append(part.strip("\n"))
            continue
        part = re.sub(r"<!--.*?-->|</?\w[^>\n]*>|^\(.*\)=$|\{[\w:-]+\}(?=`)", "", part, flags=re.DOTALL | re.MULTILINE)
        part = re.sub(r"!?\[([^\]\n]*)\]\([^)\n]*\)", r"\1", part)
        blocks += paragraphs(re.sub(r"^#+\s*|^\s*\|.*$", "", part, flags=re.MULTILINE))
    return blocks


def entries(data: bytes, index: str) -> Iterator[list[str]]:
    """Passages of a dict database: entries in the order of the database, until there are enough characters."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"

    def number(digits: str) -> int:
        value = 0
        for digit in digits:
            value = value * 64 + alphabet.index(digit)
        return value

    rows = (line.split("\t") for line in index.splitlines() if not line.startswith("00"))
    places = sorted({(number(row[1]), number(row[2])) for row in rows})
    passage: list[str] = []
    for start, length in places:
        entry = data[start : start + length].decode("utf-8", "replace")
        entry = re.sub(r"[{}]", "", entry)
        passage += [" ".join(block.split()) for block in re.split(r"\n\s*\n", entry) if block.strip()]
        if sum(map(len, passage)) >= MIN_PASSAGE:
            yield passage
            passage = []


def sword_chapters(blocks: bytes, data: bytes) -> Iterator[list[str]]:
    """The compressed blocks of a SWORD module, each the commentary on a chapter or a book, as blocks of text."""
    for start, length, _ in struct.iter_unpack("<III", blocks):
        chapter = zlib.decompress(data[start : start + length]).decode("utf-8", "replace")
        chapter = re.sub(r"<br\s*/?>|</?p\b[^>]*>|</?div\b[^>]*>|</?title\b[^>]*>|\n\s*\n", "<p>", chapter)
        yield html_blocks(chapter)


def clean(block: str) -> str:
    """Without what is not seen, and without blocks that only name a rule, the date of an entry or the next page."""
    if re.fullmatch(r"\[[\w.-]+\]|\(\d{4}-\d\d-\d\d\)|(?:Prev|Next|Previous|Up|Home)(?:\d.*)?", block):
        return ""
    block = unicodedata.normalize("NFC", block).translate(INVISIBLE).replace("\u00a0", " ")
    return "\n".join(line.rstrip() for line in block.splitlines()).strip("\n")


def is_sentence(block: str) -> bool:
    return len(block.split()) >= 8 and ENDS_SENTENCE.search(block) is not None


def is_short(block: str) -> bool:
    return len(block.split()) < 8 and not (ENDS_SENTENCE.search(block) and len(block.split()) > 3)


def without_lists(blocks: Iterable[str]) -> list[str]:
    kept: list[str] = []
    for short, run in groupby(blocks, is_short):
        run = list(run)
        kept += run[-1:] if short and len(run) >= MIN_MENU else run  # the last one is the heading of what follows
    while kept and is_short(kept[-1]):
        kept.pop()
    return kept


def without_frames(documents: list[list[str]]) -> list[list[str]]:
    """A word or two, as a heading or a link, are a frame only where most documents have them."""
    counts = Counter(block for blocks in documents for block in set(blocks))
    least = max(MIN_FRAME, FRAME_SHARE * len(documents))
    most = max(MIN_FRAME, len(documents) / 2)
    return [
        [block for block in blocks if counts[block] < (least if len(block.split()) > 2 else most)]
        for blocks in documents
    ]


def is_prose(text: str) -> bool:
    blocks = text.split("\n\n")
    words = re.findall(r"[a-z]+", text.lower())
    letters = sum(character.isalpha() or character == " " for character in text)
    sentences = sum(len(block) for block in blocks if is_sentence(block))
    stop_words = sum(word in STOP_WORDS for word in words)
    return (
        len(text) >= MIN_CHARACTERS
        and letters >= MIN_LETTERS * len(text)
        and sentences >= MIN_SENTENCES * len(text)
        and stop_words >= MIN_STOP_WORDS * len(words)
    )


def texts(documents: list[list[str]]) -> list[str]:
    """The documents of one package as text, blocks apart by an empty line; "" for one that is no prose."""
    cleaned = [list(filter(None, map(clean, blocks))) for blocks in documents]
    once = [[block for block, _ in groupby(blocks)] for blocks in without_frames(cleaned)]
    joined = ["\n\n".join(without_lists(blocks)) for blocks in once]
    return [text if is_prose(text) else "" for text in joined]


__all__ = [
    "entries",
    "html_blocks",
    "markdown_blocks",
    "pod_blocks",
    "rest_blocks",
    "sword_chapters",
    "texts",
]
