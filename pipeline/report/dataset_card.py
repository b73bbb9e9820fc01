"""The data set card, README.md of a run directory: a hub shows it, `datasets` reads its header."""

from typing import Any

import yaml

from pipeline.report.text import printable
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
_SAYS = {
    "classify": "The classes that an ImageGPT classifier finds in images.",
    "complete": "Images finished by ImageGPT from a part of each.",
    "embed": "What ImageGPT sees in images, as features.",
    "quantize": "Images as the color tokens that ImageGPT reads.",
    "sample": "Images that ImageGPT made up.",
    "score": "How likely ImageGPT finds images.",
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


def dataset_card(record: RunSummary) -> str:
    """The card in Markdown. Its header makes data/*.parquet, and nothing else in the folder, the
    split `train`."""
    return f"""---
{yaml.safe_dump(_header(record), sort_keys=False, allow_unicode=True)}---

# {_NAMES[record.job]}

{_SAYS[record.job]} {_counted(record)}

![some rows of the whole run](contact_sheet.png)

## Columns

| column | type | meaning |
|---|---|---|
{_columns(record)}
{_units(record.nll)}
## Use

```python
from datasets import load_dataset

rows = load_dataset("path/or/name/of/this/folder", split="train")
```

```sql
-- DuckDB, in this folder
SELECT * FROM 'data/*.parquet' LIMIT 10;
```

## Made with

{_fenced(str(record.run["command"]))}

{_origin(record)}

`run.json` holds all options, `report.html` the figures of the run{_errors(record)}.
"""


def _header(record: RunSummary) -> dict[str, Any]:
    rows = record.figures.rows
    header: dict[str, Any] = {
        "pretty_name": _NAMES[record.job],
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
    if record.job in _TASKS:
        header["task_categories"] = _TASKS[record.job]
    return header


def _counted(record: RunSummary) -> str:
    text = f"{record.figures.rows:,} rows."
    return text if record.finished else f"{text} {record.status}."


def _columns(record: RunSummary) -> str:
    return "\n".join(
        f"| {_code(column['name'])} | {_code(column['type'])} | {column['meaning']} |"
        for column in record.run["columns"]
    )


def _units(nats: NLLHistogram | None) -> str:
    """What stands behind numbers of `nll`."""
    if nats is None:
        return ""
    return f"""
`nll` is a negative log-likelihood in nats per pixel: the lower, the likelier for the model. A pixel
is one color of the palette, so the numbers compare between images of one palette and size.
Bits are nats / ln 2. Of {nats.n:,} values the mean is {nats.mean:.2f}, the median
{nats.median:.2f}, the lowest {nats.lowest[0][1]:.2f}, the highest {nats.highest[0][1]:.2f}.
"""


def _origin(record: RunSummary) -> str:
    run = record.run
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    lines = [
        ("model", (run.get("model") or {}).get("location")),
        ("model fingerprint", (run.get("model") or {}).get("fingerprint")),
        ("palette", (run.get("palette") or {}).get("location")),
        ("palette fingerprint", (run.get("palette") or {}).get("fingerprint")),
        ("image size", f"{run['image_size']} x {run['image_size']}"),
        ("seed", run.get("seed")),
        ("created", run["created"]),
        ("versions", versions),
    ]
    return "\n".join(f"- {name}: {_code(str(value))}" for name, value in lines if value is not None)


def _errors(record: RunSummary) -> str:
    return ", `errors/` the rows that failed" if record.figures.errors else ""


def _code(text: str) -> str:
    """A code span of one line, fit for a cell of a table."""
    text = printable(text).replace("|", "\\|")
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def _fenced(text: str) -> str:
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}sh\n{text}\n{fence}"
