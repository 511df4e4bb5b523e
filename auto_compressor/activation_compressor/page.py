"""The tables of a report of activation compression, and its page: without scripts or anything from elsewhere."""

import html
from collections.abc import Sequence

from ..evaluation.recall import RecallResult
from .metrics import Fidelity, Setting


STYLE = """
:root { color-scheme: light dark; }
body { max-width: 1100px; margin: 2rem auto; padding: 0 1rem; font: 16px/1.5 system-ui, sans-serif; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .8rem; text-align: right; border-bottom: 1px solid #8886; }
th:nth-child(1), td:nth-child(1), th:nth-child(3), td:nth-child(3) { text-align: left; }
img { max-width: 100%; background: white; }
.wide { overflow-x: auto; }
"""

# Header and rows; the first and the third column are names, all others numbers.
Table = tuple[Sequence[str], Sequence[Sequence[str]]]


def optional_number(number: float | None, form: str) -> str:
    return "-" if number is None else format(number, form)


def setting_cells(setting: Setting) -> list[str]:
    return [setting.mode, optional_number(setting.ratio, "g"), setting.policy]


def quality_table(results: dict[Setting, Fidelity]) -> Table:
    """A row for each setting, see [`Fidelity`]."""
    header = ("mode", "ratio", "policy", "slots", "bytes", "real ratio", "mass entropy")
    header += ("KL", "top-1", "NLL", "NLL, full cache")
    rows = [
        [
            *setting_cells(setting),
            f"{fidelity.slots:.1f}",
            f"{fidelity.num_bytes:,.0f}",
            optional_number(fidelity.byte_ratio, ".2f"),
            f"{fidelity.mass_entropy:.2f}",
            f"{fidelity.kl:.4f}",
            f"{fidelity.top1_agreement:.2%}",
            f"{fidelity.nll:.4f}",
            f"{fidelity.nll_full:.4f}",
        ]
        for setting, fidelity in results.items()
    ]
    return header, rows


def recall_table(results: dict[Setting, RecallResult]) -> Table:
    """A row for each setting, see [`RecallResult`]."""
    header = ("mode", "ratio", "policy", "slots", "exact match", "token accuracy", "examples")
    rows = [
        [
            *setting_cells(setting),
            f"{result.mean_positions:.1f}",
            f"{result.exact_match:.2%}",
            f"{result.token_accuracy:.2%}",
            f"{result.examples}",
        ]
        for setting, result in results.items()
    ]
    return header, rows


def html_row(cells: Sequence[str], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"


def html_table(table: Table) -> str:
    header, rows = table
    lines = [html_row(header, "th"), *(html_row(row, "td") for row in rows)]
    return '<div class="wide"><table>\n' + "\n".join(lines) + "\n</table></div>"


def report_page(title: str, introduction: str, tables: dict[str, Table], pictures: dict[str, str]) -> str:
    """
    A web page.

    Args:
        title, introduction (`str`): Plain text, as all others.
        tables (`dict[str, Table]`): By heading.
        pictures (`dict[str, str]`): What each file shows, by its path from the page.
    """
    parts = [f"<h1>{html.escape(title)}</h1>", f"<p>{html.escape(introduction)}</p>"]
    for heading, table in tables.items():
        parts += [f"<h2>{html.escape(heading)}</h2>", html_table(table)]
    for path, text in pictures.items():
        parts.append(f'<h2>{html.escape(text)}</h2>\n<img src="{html.escape(path)}" alt="{html.escape(text)}">')
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}</style>'
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head><body>\n' + "\n".join(parts) + "\n</body></html>\n"


__all__ = ["Table", "quality_table", "recall_table", "report_page"]
