"""A web page that shows the borders of a text: one file, without scripts or anything from elsewhere.

Patches nest, so in the text they are nested elements with a bracket below, and the curve of entropies has a row of
brackets per level. Colours never stand alone: levels also differ in the height and width of their marks, and entropy
is written in the tip of every byte and drawn as a curve.
"""

import html
from bisect import bisect_left
from collections.abc import Iterator

from .borders import PatchLevel, TextBorders


STYLE = """
:root { color-scheme: light dark; --page: #faf9f6; --card: #fff; --ink: #1d1c1a; --soft: #66625b; --line: #e3dfd7;
  --heat: 222 92 30; --level-1: #0067a5; --level-2: #00805a; --level-3: #a83a78; --level-4: #7a5c00; }
@media (prefers-color-scheme: dark) {
  :root { --page: #141311; --card: #1d1c19; --ink: #f1eee8; --soft: #a7a198; --line: #383530;
    --heat: 214 92 38; --level-1: #6cb8f0; --level-2: #3fd0a0; --level-3: #f08fc4; --level-4: #d9b84a; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 1160px; margin: 0 auto; padding: 40px 24px 64px; }
h1 { margin: 0 0 6px; font-size: 30px; line-height: 1.2; overflow-wrap: anywhere; }
h2 { margin: 36px 0 10px; font-size: 19px; }
p { margin: 0 0 10px; max-width: 75ch; }
.soft { color: var(--soft); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 20px 24px; }
.legend { display: flex; flex-wrap: wrap; gap: 8px 28px; margin: 20px 0 14px; font-size: 14px; }
.legend span { display: inline-flex; align-items: center; gap: 8px; }
.scale { width: 150px; height: 14px; border-radius: 3px; border: 1px solid var(--line);
  background: linear-gradient(to right, transparent, rgb(var(--heat) / .8)); }
.mark { width: 34px; height: 12px; border: solid; border-width: 0 0 var(--width) var(--width); }
.card + p { margin-top: 10px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100%; }
th, td { padding: 7px 14px; text-align: right; border-bottom: 1px solid var(--line); }
th { font-weight: 600; font-size: 14px; }
th:first-child { text-align: left; white-space: nowrap; }
tr:last-child > * { border-bottom: 0; }
.wide { overflow-x: auto; }
.text { font: 17px/3 ui-monospace, "SFMono-Regular", Menlo, Consolas, "DejaVu Sans Mono", monospace; padding-top: 8px;
  max-width: none; white-space: pre-wrap; overflow-wrap: anywhere; }
.text i { font-style: normal; border: solid; padding-bottom: calc(6px * var(--level) - 4px); margin-left: 3px;
  border-width: 0 0 var(--width) var(--width); }
.text b { font-weight: 400; unicode-bidi: isolate; }
.text b:empty { padding-left: .35em; }
.text .hex { font-size: 10px; padding: 0 2px; opacity: .75; outline: 1px dotted; outline-offset: -1px; }
svg { display: block; width: 100%; min-width: 760px; height: auto; margin-bottom: 14px; }
svg text { font: 12px ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; fill: var(--ink); }
svg text.mid { text-anchor: middle; }
svg text.axis, svg text.small { font-size: 9px; fill: var(--soft); }
svg text.axis { text-anchor: end; }
.grid { stroke: var(--line); }
.area { fill: rgb(var(--heat) / .22); }
.curve { fill: none; stroke: rgb(var(--heat)); stroke-width: 1.6; stroke-linejoin: round; }
.border, .bracket { fill: none; stroke: currentColor; stroke-width: var(--width); }
.border { opacity: .6; }
"""

SHADES, SHADED_BITS = 24, 6  # of the background; it is full from so many bits on, which text hardly ever has
MAX_BITS = 8  # the entropy of 256 equally likely bytes
LEVEL_COLORS = 4  # higher levels take them again

ROW_BYTES, CELL = 96, 11
LEFT, TOP, CURVE, TEXT_ROW, BRACKET = 26, 6, 72, 20, 8
CONTROL_NAMES = {"\n": "\u21b5", "\t": "\u21e5"}


def byte_labels(data: bytes) -> Iterator[tuple[str, bool]]:
    """
    What stands for every byte, and whether it is a name of the byte in place of a character.

    The first byte of a character is the character, its other bytes are empty. Bytes that are no UTF-8 and characters
    that do not print are hexadecimal.
    """
    for character in data.decode("utf-8", "surrogateescape"):
        encoded = character.encode("utf-8", "surrogateescape")
        if character.isprintable():
            yield character, False
            yield from [("", False)] * (len(encoded) - 1)
        elif character in CONTROL_NAMES:
            yield CONTROL_NAMES[character], True
        else:
            yield from ((f"{value:02X}", True) for value in encoded)


def level_style(level: int) -> str:
    """Colour, height and width of the marks of a level, 1 or more."""
    return f"--level: {level}; --width: {1 + level / 2:g}px; color: var(--level-{(level - 1) % LEVEL_COLORS + 1})"


def style_rules(num_levels: int) -> str:
    shades = [
        f".e{shade} {{ background: rgb(var(--heat) / {0.8 * shade / SHADES:.3f}); }}" for shade in range(SHADES + 1)
    ]
    levels = [f".p{level} {{ {level_style(level)}; }}" for level in range(1, num_levels)]
    return "\n".join([STYLE.strip(), *shades, *levels, ".text b { color: var(--ink); }"])


def byte_element(position: int, value: int, entropy: float, label: tuple[str, bool]) -> str:
    text, is_name = label
    shade = min(max(round(entropy / SHADED_BITS * SHADES), 0), SHADES)
    tip = f"byte {position:,}: {value:02X}, {entropy:.2f} bits behind it"
    classes = f"e{shade} hex" if is_name else f"e{shade}"
    return f'<b class="{classes}" title="{tip}">{html.escape(text)}</b>' + "\n" * (value == ord("\n"))


def text_section(borders: TextBorders) -> str:
    """The text with patches as nested elements, those of the top level outermost."""
    starts, parts, depth = [set(level.starts) for level in borders.levels], [], 0
    for position, label in enumerate(byte_labels(borders.data)):
        begins = [level for level in range(1, len(starts)) if position in starts[level]]
        if begins:
            parts += ["</i>"] * min(depth, max(begins))
            parts += [f'<i class="p{level}">' for level in reversed(begins)]
            depth = max(depth, *begins)
        parts.append(byte_element(position, borders.data[position], borders.entropies[position], label))
    return f'<p class="text card">{"".join(parts)}{"</i>" * depth}</p>'


def curve_points(entropies: list[float]) -> list[str]:
    heights = (TOP + CURVE * (1 - min(entropy, MAX_BITS) / MAX_BITS) for entropy in entropies)
    return [f"{LEFT + CELL * (index + 0.5):g},{height:.1f}" for index, height in enumerate(heights)]


def grid_lines() -> Iterator[str]:
    for bits in range(0, MAX_BITS + 1, 4):
        height = TOP + CURVE * (1 - bits / MAX_BITS)
        yield f'<path class="grid" d="M{LEFT} {height:g}h{CELL * ROW_BYTES}"/>'
        yield f'<text class="axis" x="{LEFT - 5}" y="{height + 3:g}">{bits}</text>'


def level_marks(level: int, starts: list[int], higher: set[int], start: int, end: int) -> Iterator[str]:
    """The patches of a level that lie in the bytes from `start` to `end`: a line at each border, brackets below."""
    base = TOP + CURVE + TEXT_ROW + BRACKET * level
    own = starts[bisect_left(starts, start) : bisect_left(starts, end)]
    edges = [(border - start) * CELL + LEFT for border in own]
    for border, x in zip(own, edges, strict=True):
        if border not in higher:
            yield f'<path class="border p{level}" d="M{x} {TOP}V{base}"/>'
    ends = [*edges[1:], LEFT + CELL * (end - start)]
    if not own or own[0] > start:  # the rest of a patch of the row before
        yield f'<path class="bracket p{level}" d="M{LEFT} {base}H{(edges or ends)[0] - 2}"/>'
    for x, next_x in zip(edges, ends, strict=False):
        yield f'<path class="bracket p{level}" d="M{x} {base - 5}V{base}H{next_x - 2}"/>'


def byte_texts(labels: list[tuple[str, bool]]) -> Iterator[str]:
    y = TOP + CURVE + TEXT_ROW - 6
    for index, (text, is_name) in enumerate(labels):
        shown = text or "\u00b7"
        kind = "mid small" if is_name or not text else "mid"
        yield f'<text class="{kind}" x="{LEFT + CELL * (index + 0.5):g}" y="{y}">{html.escape(shown)}</text>'


def curve_row(borders: TextBorders, labels: list[tuple[str, bool]], start: int) -> str:
    """Entropies, bytes and patches of `ROW_BYTES` bytes."""
    end = min(start + ROW_BYTES, len(borders.data))
    points = curve_points(borders.entropies[start:end])
    floor = TOP + CURVE
    first, last = points[0].split(",")[0], points[-1].split(",")[0]
    parts = [*grid_lines(), f'<path class="area" d="M{first} {floor}L{" ".join(points)}L{last} {floor}Z"/>']
    higher: set[int] = set()
    for level in reversed(range(1, len(borders.levels))):
        parts += level_marks(level, borders.levels[level].starts, higher, start, end)
        higher |= set(borders.levels[level].starts)
    parts += [f'<polyline class="curve" points="{" ".join(points)}"/>', *byte_texts(labels[start:end])]
    size = f"0 0 {LEFT + CELL * ROW_BYTES + 4} {floor + TEXT_ROW + BRACKET * len(borders.levels)}"
    label = f"Entropy in bits behind the bytes {start:,} to {end - 1:,}, with the borders of every level"
    return f'<svg viewBox="{size}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def curve_section(borders: TextBorders) -> str:
    labels = list(byte_labels(borders.data))
    rows = [curve_row(borders, labels, start) for start in range(0, len(labels), ROW_BYTES)]
    return f'<div class="card wide">{"".join(rows)}</div>'


def table_row(name: str, level: PatchLevel, below: PatchLevel | None, num_bytes: int) -> str:
    count = len(level.starts)
    longest = max(end - start for start, end in zip(level.starts, [*level.starts[1:], num_bytes], strict=True))
    cells = [
        f"{count:,}",
        f"{len(below.starts) / count:.2f}" if below else "",
        f"{longest:,}",
        f"{num_bytes / count:.2f}",
        "" if level.bits_per_byte is None else f"{level.bits_per_byte:.3f}",
    ]
    return f"<tr><th>{name}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def table_section(borders: TextBorders) -> str:
    head = ("level", "units", "units of the level below", "bytes of the longest", "bytes per unit (compression ratio)")
    names = ["0: bytes", *(f"{level}: patches of level {level - 1}" for level in range(1, len(borders.levels)))]
    pairs = zip(names, borders.levels, [None, *borders.levels], strict=False)
    rows = [table_row(name, level, below, len(borders.data)) for name, level, below in pairs]
    columns = "".join(f"<th>{name}</th>" for name in (*head, "bits per byte"))
    note = f'<p class="soft">{html.escape(borders.bits_note)}</p>'
    return f'<div class="card wide"><table><tr>{columns}</tr>{"".join(rows)}</table></div>{note}'


def legend(num_levels: int) -> str:
    scale = f'<span>0 bits <span class="scale"></span> {SHADED_BITS} bits of entropy or more, behind a byte</span>'
    marks = [
        f'<span><span class="mark p{level}"></span>patch of level {level}</span>' for level in range(1, num_levels)
    ]
    return f'<div class="legend">{scale}{"".join(marks)}</div>'


def borders_page(borders: TextBorders, title: str) -> str:
    """
    The page of a text.

    Args:
        borders (`TextBorders`): The text and its patches, of a text that is not empty.
        title (`str`): Title of the page.

    Returns:
        `str`: HTML, with all that it needs.
    """
    title, num_levels = html.escape(title), len(borders.levels)
    sections = [
        f"<h1>{title}</h1>",
        f'<p class="soft">{len(borders.data):,} bytes, read by a model of the type {html.escape(borders.model_type)}.'
        " The stronger the colour of a byte, the less the model knows what comes behind it. A bracket is a patch: the"
        " bytes that it takes for one unit.</p>",
        legend(num_levels),
        text_section(borders),
        "<h2>Levels</h2>",
        table_section(borders),
        "<h2>Entropy, byte by byte</h2>",
        curve_section(borders),
    ]
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>'
    style = f"<style>{style_rules(num_levels)}</style>"
    body = "\n".join(sections)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head>{head}\n{style}</head>\n<body><main>\n{body}\n</main></body></html>\n'
    )


__all__ = ["borders_page"]
