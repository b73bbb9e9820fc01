"""The report of a run, finished or not: report.html, contact_sheet.png, README.md."""

from collections.abc import Mapping, Sequence
from typing import Any

from igpt_core.images.palette import Palette
from pipeline.errors import UsageError
from pipeline.report.contact_sheet import draw_contact_sheet
from pipeline.report.dataset_card import dataset_card
from pipeline.report.examples import any_generated, heat_map_top, read_examples
from pipeline.report.page import HEADLINES, report_page
from pipeline.report.pictures import Example
from pipeline.report.text import rate
from pipeline.run_directory.directory import RunDirectory
from pipeline.run_directory.summary import RunSummary, read_summary
from pipeline.storage.atomic import write_atomic
from pipeline.storage.filesystem import join


def write_report(
    output: str,
    *,
    palette: Palette | None = None,
    storage_options: Mapping[str, Any] | None = None,
    summary: RunSummary | None = None,
) -> None:
    """Writes report.html, contact_sheet.png and README.md into a run directory; replaces them.

    Reads a few rows of the results, however many there are. Pictures of quantized images take the
    run's `palette`; without it the report of quantize has none. `storage_options` are those of the
    output location alone. `summary` is the run's, where it was just read.

    Raises UsageError where `output` is no run directory, or the palette is not the run's.
    """
    directory = RunDirectory.at(output, storage_options or {})
    summary = summary or read_summary(directory)
    expected = (summary.run.get("palette") or {}).get("fingerprint")
    if palette is not None and expected not in (None, palette.fingerprint):
        raise UsageError(
            f"expected the palette of the run, fingerprint {expected}, found "
            f"{palette.fingerprint}; give the palette or model that the run had"
        )
    examples = read_examples(
        directory,
        summary.filled,
        job=summary.job,
        image_size=int(summary.run["image_size"]),
        passthrough=summary.run.get("passthrough", ()),
        palette=palette,
    )
    note = _examples_note(summary, examples)
    files = {
        "contact_sheet.png": draw_contact_sheet(
            examples, title=HEADLINES[summary.job], note=_sheet_note(summary, examples, note)
        ),
        "README.md": dataset_card(summary).encode(),
        "report.html": report_page(summary, examples, note=note, output=output).encode(),
    }
    for name, payload in files.items():
        write_atomic(directory.fs, join(directory.path, name), payload)


def _examples_note(summary: RunSummary, examples: Sequence[Example]) -> str:
    """Says which examples there are, or why none."""
    if examples and len(examples) == summary.figures.rows:
        return f"All {len(examples):,} images"
    if examples:
        return f"{len(examples):,} of {summary.figures.rows:,} images, evenly spread over the run"
    if not summary.figures.rows:
        return "No examples: no row has a result"
    if summary.job == "quantize":
        return "No examples: tokens need the palette of the run"
    return "No examples: the run kept no images"


def _sheet_note(summary: RunSummary, examples: Sequence[Example], note: str) -> str:
    """Says in one line what the page says in its header and legend."""
    notes = [note, *summary.origin]
    if any_generated(examples):
        notes.append("the bar marks rows with generated pixels")
    if top := heat_map_top(examples):
        notes.append(f"nats per pixel from dark, 0, to bright, {rate(top)}")
    return " · ".join(notes)
