"""A Gradio page that shows what became of texts that did not come back whole, case by case.

Functions make the HTML, [`error_viewer`] the page around it. The file may be long: only where the cases begin, and
their numbers of tokens, are held in memory.
"""

import html
import ipaddress
import json
import math
import re
import socket
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from difflib import SequenceMatcher
from functools import partial
from pathlib import Path
from typing import Any


STYLE = """
.viewer { --wrong: #b3261e; --wrong-back: #fbdcd9; --right: #0b6b3a; --right-back: #cdeedb; }
.dark .viewer { --wrong: #ff9d94; --wrong-back: #5c1f1a; --right: #7fe0ab; --right-back: #14482d; }
.viewer h2 { margin: 0 0 8px; font-size: 16px; font-weight: 600; }
.viewer p { margin: 0 0 8px; }
.viewer .texts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 340px), 1fr)); gap: 16px; }
.viewer .card { border: 1px solid var(--border-color-primary); border-radius: 8px; padding: 14px 18px; min-width: 0; }
.viewer pre { margin: 0; background: none; white-space: pre-wrap; overflow-wrap: anywhere;
  font: 15px/1.65 ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
.viewer + .viewer { margin-top: 14px; }
.viewer del, .viewer ins { unicode-bidi: isolate; }
.viewer del { color: var(--wrong); background: var(--wrong-back); text-decoration: line-through; }
.viewer ins { color: var(--right); background: var(--right-back); text-decoration: underline; }
.viewer .break::before { content: "\\21b5"; font-style: normal; }
.viewer .facts { display: flex; flex-wrap: wrap; gap: 6px 28px; margin: 0 0 14px; }
.viewer .facts b { font-variant-numeric: tabular-nums; }
.viewer .note { border-left: 4px solid var(--color-accent); padding: 2px 0 2px 12px; }
.viewer details { margin-top: 14px; }
"""

LEGEND = (
    '<div class="viewer"><p>Legend: <del>struck out</del> is in the original and not in the reconstruction,'
    " <ins>underlined</ins> is in the reconstruction and not in the original, &#x21b5; is a line end in such a place;"
    " everything else is the same in both.</p></div>"
)

# A word with the space in front of it, a sign, or the space at the end.
WORDS = re.compile(r"\s*\w+|\s*[^\w\s]|\s+")
LOOPBACK = ("127.0.0.1", "localhost", "::1")
# What the page asks for by other methods than GET and HEAD: a case, and that it is not wanted any more.
QUESTIONS = re.compile(r"(/gradio_api)?/(queue/join|(run|api|call|call/v2)/\w+|cancel|reset)/?")
MAX_TOKENS = 2**40  # of a text; sums of them fit 64 bits
MAX_PAIRS = 2**20  # of words or characters that are compared at once; it takes less than a second


@dataclass(frozen=True)
class ErrorCase:
    """A line of `error_cases.jsonl`."""

    original_text_full: str
    original_text_decoded: str
    generated_text: str
    token_accuracy: float
    correct_tokens: int
    total_tokens: int


def parse_object(line: bytes) -> dict[str, Any]:
    """Reads a JSON object; a `ValueError` if it is none, or one that cannot be read."""
    try:
        values = json.loads(line)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    if not isinstance(values, dict):
        raise ValueError("it is no JSON object")
    return values


def check_field(name: str, kind: type, value: Any):
    """Raises a `ValueError` for a value of another type, a number out of range, or text that is no Unicode."""
    kinds = (int, float) if kind is float else kind
    if not isinstance(value, kinds) or isinstance(value, bool):
        raise ValueError(f"`{name}` must be of the type {kind.__name__}, got {shown(value)}")
    if kind is int and not 0 <= value <= MAX_TOKENS:
        raise ValueError(f"`{name}` must be from 0 to {MAX_TOKENS}, got {shown(value)}")
    if kind is str:
        check_unicode(name, value)


def shown(value: Any) -> str:
    """A value in an error, unless it is one that may be nested."""
    return f"{value!r:.40}" if isinstance(value, str | int | float | None) else f"a {type(value).__name__}"


def check_unicode(name: str, text: str):
    """Raises a `ValueError` for half a surrogate pair, which no page can hold."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"`{name}` must be Unicode, its character {error.start + 1} is half a pair") from error


def parse_case(line: bytes) -> ErrorCase:
    """Reads a line; a `ValueError` if it is no error case."""
    values = parse_object(line)
    for field in fields(ErrorCase):
        check_field(field.name, field.type, values.get(field.name))
    case = ErrorCase(**{field.name: values[field.name] for field in fields(ErrorCase)})
    if case.correct_tokens > case.total_tokens:
        raise ValueError("`correct_tokens` must be from 0 to `total_tokens`")
    if not 0 <= case.token_accuracy <= 1:
        raise ValueError(f"`token_accuracy` must be from 0 to 1, got {shown(case.token_accuracy)}")
    return case


class ErrorCases(Sequence):
    """
    The cases of a file, each read when it is asked for.

    Args:
        path (`Path`): JSON lines, as `auto-compressor reconstruction-accuracy` writes them.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if a line is no error case.
    """

    def __init__(self, path: Path):
        self.path = path
        self.offsets, self.correct_tokens, self.total_tokens = array("q"), array("q"), array("q")
        for number, (offset, line) in enumerate(self.lines(), start=1):
            try:
                case = parse_case(line)
            except ValueError as error:
                raise ValueError(f"{path}, case {number}: {error}.") from error
            self.offsets.append(offset)
            self.correct_tokens.append(case.correct_tokens)
            self.total_tokens.append(case.total_tokens)

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """The lines that are not blank, with the bytes in front of them."""
        offset = 0
        with self.path.open("rb") as file:
            for line in file:
                if line.strip():
                    yield offset, line
                offset += len(line)

    def __len__(self) -> int:
        return len(self.offsets)

    def __getitem__(self, index: int) -> ErrorCase:
        with self.path.open("rb") as file:
            file.seek(self.offsets[index])
            return parse_case(file.readline())


# What differs


def align(original: Sequence[str], generated: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Stretches of both, in order, that are equal or have nothing in common."""
    popular_left_out = len(original) * len(generated) > MAX_PAIRS
    matcher = SequenceMatcher(None, original, generated, autojunk=popular_left_out)
    for _, start, end, other_start, other_end in matcher.get_opcodes():
        yield "".join(original[start:end]), "".join(generated[other_start:other_end])


def diff_words(original: str, generated: str) -> list[tuple[str, str]]:
    """
    Cuts two texts into stretches, side by side: those of the original joined are the original, and so the others.

    Returns:
        `list[tuple[str, str]]`: Stretches of both, whole words, which are equal where the texts agree.
    """
    return list(align(WORDS.findall(original), WORDS.findall(generated)))


def diff_characters(original: str, generated: str) -> list[tuple[str, str]]:
    """[`diff_words`], with the words that differ compared by characters, unless they are very many."""
    stretches = []
    for before, after in diff_words(original, generated):
        fine = before != after and len(before) * len(after) <= MAX_PAIRS
        stretches += align(before, after) if fine else [(before, after)]
    return stretches


DIFFS: dict[str, Callable[[str, str], list[tuple[str, str]]]] = {"characters": diff_characters, "words": diff_words}


# HTML


def marked(text: str, element: str) -> str:
    breaks = html.escape(text).replace("\n", '<i class="break"></i>\n')
    return f"<{element}>{breaks}</{element}>" if text else ""


def diff_html(stretches: list[tuple[str, str]]) -> tuple[str, str]:
    """Original and reconstruction as HTML, with `del` and `ins` around what only one of them has."""
    pairs = [
        (html.escape(before),) * 2 if before == after else (marked(before, "del"), marked(after, "ins"))
        for before, after in stretches
    ]
    return "".join(pair[0] for pair in pairs), "".join(pair[1] for pair in pairs)


def facts_html(facts: dict[str, str]) -> str:
    items = "".join(f"<span>{html.escape(name)} <b>{html.escape(value)}</b></span>" for name, value in facts.items())
    return f'<div class="facts">{items}</div>'


def share(part: int, whole: int) -> str:
    return f"{part:,} of {whole:,} ({part / whole:.2%})" if whole else "0 of 0"


def text_card(title: str, content: str) -> str:
    return f'<div class="card"><h2>{title}</h2><pre>{content}</pre></div>'


def case_html(case: ErrorCase, by: str) -> str:
    """A case: its statistics, and both texts with what differs marked by `"characters"` or `"words"`."""
    stretches = DIFFS[by](case.original_text_decoded, case.generated_text)
    original, generated = diff_html(stretches)
    changes = [(before, after) for before, after in stretches if before != after]
    facts = {
        "tokens that came back": share(case.correct_tokens, case.total_tokens),
        "differences": f"{len(changes):,}",
        "characters lost": f"{sum(len(before) for before, _ in changes):,}",
        "characters new": f"{sum(len(after) for _, after in changes):,}",
    }
    cards = text_card("Original", original) + text_card("Reconstruction", generated)
    full = ""
    if case.original_text_full != case.original_text_decoded:
        text = html.escape(case.original_text_full)
        full = f"<details><summary>The text before it was cut into tokens</summary><pre>{text}</pre></details>"
    return f'<div class="viewer">{facts_html(facts)}<div class="texts">{cards}</div>{full}</div>'


def note_html(note: str) -> str:
    return f'<div class="viewer"><p class="note">{html.escape(note)}</p></div>'


def summary_html(cases: ErrorCases) -> str:
    """The statistics of all cases."""
    title = f"<h1>Reconstruction errors</h1><p>{html.escape(cases.path.name)}</p>"
    if not cases:
        return f'<div class="viewer">{title}</div>'
    shares = [right / max(total, 1) for right, total in zip(cases.correct_tokens, cases.total_tokens, strict=True)]
    worst = min(range(len(cases)), key=shares.__getitem__)
    facts = {
        "texts with errors": f"{len(cases):,}",
        "tokens that came back": share(sum(cases.correct_tokens), sum(cases.total_tokens)),
        "mean of a text": f"{sum(shares) / len(cases):.2%}",
        "lowest": f"{shares[worst]:.2%} (case {worst + 1:,})",
    }
    return f'<div class="viewer">{title}{facts_html(facts)}</div>'


def nearest_case(cases: ErrorCases, number: float | None) -> int:
    """The number, from 1, of the case that is nearest to a number, the first if it is missing."""
    return 1 if number is None or math.isnan(number) else round(min(max(number, 1), len(cases)))


def next_case(cases: ErrorCases, step: int, number: float | None) -> int:
    return nearest_case(cases, nearest_case(cases, number) + step)


def show_case(cases: ErrorCases, number: float | None, by: str) -> str:
    """
    The HTML of a case.

    Args:
        cases (`ErrorCases`): All of them.
        number (`float`, *optional*): From 1; in place of one that is not there, the nearest is shown, with a note.
        by (`str`): As in [`case_html`].
    """
    if not cases:
        return note_html("There are no errors: every text came back whole.")
    nearest = nearest_case(cases, number)
    note = "" if number in (nearest, None) else note_html(f"There is no case {number}: this is case {nearest:,}.")
    try:
        return note + case_html(cases[nearest - 1], by)
    except (OSError, ValueError) as error:
        return note_html(f"Case {nearest:,} cannot be read, {cases.path.name} was changed: {error}")


# The page


def error_viewer(path: Path):
    """
    The page of a file of error cases; `launch(**launch_options())` serves it.

    Args:
        path (`Path`): As in [`ErrorCases`].

    Returns:
        `gradio.Blocks`: The page, whose endpoint `/show_case` takes the number of a case and `"characters"` or
        `"words"`.

    Raises:
        OSError, ValueError: as [`ErrorCases`].
    """
    import gradio as gr

    cases = ErrorCases(path)
    last, way = len(cases), next(iter(DIFFS))
    with gr.Blocks(title=f"Errors of {path.name}", analytics_enabled=False) as page:
        gr.HTML(summary_html(cases))
        with gr.Row(visible=last > 1):
            previous = gr.Button("Previous", scale=0, min_width=80, size="sm")
            number = gr.Slider(1, max(last, 2), 1, step=1, label="Case", buttons=[])
            following = gr.Button("Next", scale=0, min_width=80, size="sm")
        by = gr.Radio(list(DIFFS), value=way, label="Compare by", visible=last > 0)
        shown = gr.HTML(show_case(cases, 1, way))
        gr.HTML(LEGEND, visible=last > 0)
        # The slider itself refuses what is out of range, in place of showing the nearest case.
        number.preprocess = lambda value: value
        changed = [number.change, by.change]
        gr.on(changed, partial(show_case, cases), [number, by], shown, api_name="show_case", show_progress="hidden")
        for button, step in ((previous, -1), (following, 1)):
            button.click(partial(next_case, cases, step), number, number, api_name=False, show_progress="hidden")
    return page


def is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def host_of(header: str) -> str:
    """The host of a `Host` header, without its port and the brackets of an address."""
    found = re.fullmatch(r"(?:\[([^\[\]]*)\]|([^:\[\]]*))(?::[0-9]*)?", header.strip().lower())
    return "" if found is None else found[1] or found[2] or ""


def is_own_host(host: str, served: str) -> bool:
    """
    Whether a page served on an address may be asked for by a host: a page of another site that has its own name point
    to this machine may not.
    """
    if host in LOOPBACK or host == served.lower():
        return True
    if served in LOOPBACK:
        return False
    return is_address(host) or host in (socket.gethostname().lower(), socket.getfqdn().lower())


class OnlyThisPage:
    """
    In front of the app of the page: answers for the hosts of [`is_own_host`] alone, and changes nothing by request.

    Args:
        app: The app, of ASGI.
        served (`str`): The address that it is served on.
    """

    def __init__(self, app, served: str):
        self.app, self.served = app, served

    def refusal(self, scope: dict) -> tuple[int, str] | None:
        """Status and reason, if a request is refused."""
        hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        if len(hosts) != 1 or not is_own_host(host_of(hosts[0]), self.served):
            return 400, "This page is not served under that name: see --host."
        reading = scope.get("method", "GET") in ("GET", "HEAD")
        if not reading and not QUESTIONS.fullmatch(scope["path"]) or "/upload" in scope["path"]:
            return 403, "This page takes nothing but the number of a case."
        return None

    async def __call__(self, scope: dict, receive, send):
        refused = self.refusal(scope) if scope["type"] in ("http", "websocket") else None
        if refused is None:
            return await self.app(scope, receive, send)
        if scope["type"] == "websocket":
            return await send({"type": "websocket.close", "code": 1008})
        status, reason = refused
        headers = [(b"content-type", b"text/plain; charset=utf-8")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": reason.encode()})


def launch_options(host: str = "127.0.0.1") -> dict:
    """What `launch` gets beside host and port: the looks, with nothing from elsewhere, and who may ask for what."""
    import gradio as gr
    from starlette.middleware import Middleware

    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    return {"theme": gr.themes.Base(**fonts), "css": STYLE, "footer_links": [], "share": False} | {
        "app_kwargs": {"middleware": [Middleware(OnlyThisPage, served=host)]}
    }


__all__ = ["ErrorCase", "ErrorCases", "diff_characters", "diff_words", "error_viewer", "launch_options", "show_case"]
