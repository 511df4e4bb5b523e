"""The card of a model, `README.md` beside its weights: what it is, what it was trained on, and how it is used."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import PreTrainedConfig

from .bundled import is_model_folder


CARD_FILE = "README.md"
MARK = "<!-- Written by auto_compressor; without this line, it stays when the model is trained or pushed again. -->"
# Names of bases that need no hub, and what they are called there.
ON_THE_HUB = {"smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct"}


def is_repository(name: str | None) -> bool:
    """Whether a name can be one of the hub, and is none of a folder."""
    return name is not None and re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None and not Path(name).exists()


def is_ours(text: str) -> bool:
    """Whether a card was written here, and may be written anew."""
    return MARK in text


def named(text: str, name: str) -> str:
    """A card whose examples load the model by this name."""
    return re.sub(r'^name = ".*"$', f'name = "{name}"', text, flags=re.MULTILINE)


def license_of(base_model: str) -> str | None:
    """The licence that the card of a base states, if it can be read."""
    try:
        return ModelCard.load(base_model).data.get("license")
    except Exception:  # no hub, no card, or one that cannot be read, for which readers raise almost anything
        return None


def cell(value: Any) -> str:
    return "" if value is None else f"{value:.5g}" if isinstance(value, float) else str(value)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows of figures as a table of Markdown."""
    lines = ["| " + " | ".join(rows[0]) + " |", "|---" * len(rows[0]) + "|"]
    for row in rows:
        lines.append("| " + " | ".join(map(cell, row.values())) + " |")
    return "\n".join(lines)


def results(rows: Sequence[dict[str, Any]], task: str) -> list[EvalResult]:
    """The rows of a report about whole validation sets, one result for each figure."""
    found = []
    for row in rows:
        figures = {row["metric"]: row["value"]} if "metric" in row else row
        for metric, value in figures.items():
            if isinstance(value, float) and row.get("part", "all") == "all":  # no counts, and all parts at once
                found.append(EvalResult(task, row["set"], row["set"], metric, value))
    return found


TEMPLATE = """---
{metadata}
---

{mark}

# {name}

{what}

{ratio}
{parts}
## Use

With the package `auto_compressor`:

```python
import auto_compressor

name = "{name}"
{example}
```

Without it, by the code that lies beside the weights:

```python
name = "{name}"
{remote_example}
```

## Cite

{citation}
"""


@dataclass(frozen=True)
class Card:
    """
    What is said of all models of a kind.

    Args:
        what (`str`): What such a model is, and does.
        ratio (`Callable`): Config -> how much smaller texts become.
        example (`Callable`): Config -> code that loads the model, by `from_pretrained(name)`, and uses it.
        pipeline (`str`, *optional*): Its pipeline on the hub, where one fits.
        citation (`str`): The work that it is from.
    """

    what: str
    ratio: Callable[[Any], str]
    example: Callable[[Any], str]
    pipeline: str | None = None
    citation: str = "The file `CITATION.cff` of the package says how to cite it."

    def text(
        self,
        config: PreTrainedConfig,
        name: str,
        base_model: str | None = None,
        datasets: Sequence[str] = (),
        data: str = "",
        rows: Sequence[dict[str, Any]] = (),
        tags: Sequence[str] | None = None,
    ) -> str:
        """
        The card of one model.

        Args:
            config (`PreTrainedConfig`): Its config.
            name (`str`): Its name, by which the examples load it.
            base_model (`str`, *optional*): The model that it was made from; left out unless the hub has it.
            datasets (`Sequence[str]`): Datasets of the hub that it was trained on.
            data (`str`): What it was trained on, in words.
            rows (`Sequence[dict]`): The rows of its evaluation.
            tags (`Sequence[str]`, *optional*): Further tags.
        """
        if not is_model_folder(str(base_model)):
            base_model = ON_THE_HUB.get(str(base_model), base_model)
        metadata = ModelCardData(
            base_model=base_model if is_repository(base_model) else None,
            library_name="transformers",
            license=license_of(str(base_model)) if is_repository(base_model) else None,
            pipeline_tag=self.pipeline,
            datasets=list(datasets) or None,
            tags=["auto_compressor", "text-compression", config.model_type, *(tags or ())],
            model_name=name,
            eval_results=results(rows, self.pipeline or "text-compression") or None,
        )
        parts = f"\n## Figures\n\n{table(rows)}\n" if rows else ""
        parts += f"\n## Training data\n\n{data}\n" if data else ""
        example = self.example(config)
        return TEMPLATE.format(
            metadata=metadata.to_yaml(),
            mark=MARK,
            name=name,
            what=self.what,
            ratio=self.ratio(config),
            parts=parts,
            example=example,
            remote_example=example.replace("from_pretrained(name)", "from_pretrained(name, trust_remote_code=True)"),
            citation=self.citation,
        )


__all__ = ["CARD_FILE", "Card", "is_ours", "is_repository", "named"]
