"""The dataset card, README.md of a run directory: a hub shows it, `datasets` reads its header."""

from typing import Any

import yaml

from pipeline.report.text import printable, speed_text
from pipeline.run_directory.layout import ROW_GROUP_ROWS
from pipeline.run_directory.likelihoods import NLLHistogram
from pipeline.run_directory.summary import RunSummary

_NAMES = {
    "classify": "ImageGPT classifications",
    "complete": "ImageGPT completions",
    "embed": "ImageGPT embeddings",
    "quantize": "ImageGPT tokens",
    "sample": "ImageGPT samples",
    "score": "ImageGPT likelihoods",
}
_DESCRIPTIONS = {
    "classify": "Classes of images, predicted by an ImageGPT classifier.",
    "complete": "Images completed by ImageGPT from a part of each.",
    "embed": "Features of images from layers of ImageGPT.",
    "quantize": "Images quantized to the color tokens that ImageGPT reads.",
    "sample": "Unconditional samples of ImageGPT.",
    "score": "Negative log-likelihoods of images under ImageGPT.",
}
# The hub's own names; it has none for score and quantize.
_TASKS = {
    "classify": ["image-classification"],
    "complete": ["image-to-image"],
    "embed": ["image-feature-extraction"],
    "sample": ["unconditional-image-generation"],
}
# The hub's own names; each holds up to its bound, the last everything above.
_SIZES = (
    (1e3, "n<1K"),
    (1e4, "1K<n<10K"),
    (1e5, "10K<n<100K"),
    (1e6, "100K<n<1M"),
    (1e7, "1M<n<10M"),
    (1e8, "10M<n<100M"),
    (1e9, "100M<n<1B"),
    (float("inf"), "n>1B"),
)


def dataset_card(summary: RunSummary) -> str:
    """Writes the card in Markdown.

    Its header makes data/*.parquet, and nothing else in the folder, the split `train`.
    """
    return f"""---
{yaml.safe_dump(_header(summary), sort_keys=False, allow_unicode=True)}---

# {_NAMES[summary.job]}

{_DESCRIPTIONS[summary.job]} {_row_count(summary)}

![examples from the whole run](contact_sheet.png)

## Columns

| column | type | meaning |
|---|---|---|
{_columns(summary)}
{_likelihoods(summary.nll)}
## Use

```python
from datasets import load_dataset

rows = load_dataset("path/or/name/of/this/folder", split="train")
```

```sql
-- DuckDB, in this folder
SELECT * FROM 'data/*.parquet' LIMIT 10;
```

## How it was made

{_fenced(str(summary.run["command"]))}

{_origin(summary)}

`run.json` holds all options, `report.html` the statistics of the run{_errors(summary)}.
"""


def _header(summary: RunSummary) -> dict[str, Any]:
    rows = summary.figures.rows
    header: dict[str, Any] = {
        "pretty_name": _NAMES[summary.job],
        "tags": ["imagegpt", "igpt"],
        "size_categories": [next(name for bound, name in _SIZES if rows < bound)],
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": "train", "path": "data/*.parquet"}],
                # By default `datasets` takes the rows of a part's first row group, and stops with
                # an error at a part without rows.
                "batch_size": ROW_GROUP_ROWS,
            }
        ],
    }
    if summary.job in _TASKS:
        header["task_categories"] = _TASKS[summary.job]
    return header


def _row_count(summary: RunSummary) -> str:
    text = f"{summary.figures.rows:,} rows."
    return text if summary.finished else f"{text} {summary.status}."


def _columns(summary: RunSummary) -> str:
    return "\n".join(
        f"| {_code(column['name'])} | {_code(column['type'])} | {column['meaning']} |"
        for column in summary.run["columns"]
    )


def _likelihoods(nll: NLLHistogram | None) -> str:
    """Explains the numbers of `nll`."""
    if nll is None:
        return ""
    return f"""
`nll` is a negative log-likelihood in nats per pixel: lower is more likely. A pixel is
one color of the palette, so the numbers compare between images of one palette and size. Bits are
nats / ln 2. Of {nll.n:,} values the mean is {nll.mean:.2f}, the median {nll.median:.2f},
the lowest {nll.lowest[0][1]:.2f}, the highest {nll.highest[0][1]:.2f}.
"""


def _origin(summary: RunSummary) -> str:
    run, speed = summary.run, summary.speed
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    said = speed_text(speed.images_per_second, speed.seconds, speed.tokens_per_pass)
    lines = [
        ("model", (run.get("model") or {}).get("location")),
        ("model fingerprint", (run.get("model") or {}).get("fingerprint")),
        ("palette", (run.get("palette") or {}).get("location")),
        ("palette fingerprint", (run.get("palette") or {}).get("fingerprint")),
        ("image size", f"{run['image_size']} x {run['image_size']}"),
        ("seed", run.get("seed")),
        ("created", run["created"]),
        ("speed", said if summary.done else None),
        ("versions", versions),
    ]
    return "\n".join(f"- {name}: {_code(str(value))}" for name, value in lines if value is not None)


def _errors(summary: RunSummary) -> str:
    return ", `errors/` the rows that failed" if summary.figures.errors else ""


def _code(text: str) -> str:
    """Formats a code span of one line, fit for a cell of a table."""
    text = printable(text).replace("|", "\\|")
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def _fenced(text: str) -> str:
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}sh\n{text}\n{fence}"
