"""The report of a run, finished or not: report.html, contact_sheet.png, README.md."""

from collections.abc import Mapping, Sequence
from typing import Any

from igpt_core.images.palette import Palette
from pipeline.errors import UsageError
from pipeline.report.contact_sheet import draw_sheet
from pipeline.report.dataset_card import dataset_card
from pipeline.report.examples import Entry, read_entries
from pipeline.report.page import HEADLINES, report_page
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
) -> None:
    """Writes report.html, contact_sheet.png and README.md into a run directory; replaces them.

    Reads a few rows of the results, however many there are. Pictures of quantized images take the
    run's `palette`; without it the report has none of them. `storage_options` are those of the
    output location alone.

    Raises UsageError where `output` is no run directory, or the palette is not the run's.
    """
    directory = RunDirectory.at(output, storage_options or {})
    fs = directory.fs
    record = read_summary(directory)
    size = int(record.run["image_size"])
    expected = (record.run.get("palette") or {}).get("fingerprint")
    if palette is not None and expected not in (None, palette.fingerprint):
        raise UsageError(
            f"expected the palette of the run, fingerprint {expected}, found "
            f"{palette.fingerprint}; give the palette or model that the run had"
        )
    entries = read_entries(
        fs,
        record.filled_parts,
        job=record.job,
        image_size=size,
        passthrough=record.run.get("passthrough", ()),
        palette=palette,
        examples=record.examples,
    )
    shown = _shown(record, entries)
    note = [shown, *record.origin]
    pictures = [picture for entry in entries for picture in entry.pictures]
    if any(picture.made_from is not None for picture in pictures):
        note.append("the bar marks the rows with pixels that the model made")
    if top := next((picture.heat_top for picture in pictures if picture.heat_top), None):
        note.append(f"surprise from dark, 0, to bright, {rate(top)} nats")
    page = report_page(record, entries, palette=palette, shown=shown, output=output)
    files = {
        "contact_sheet.png": draw_sheet(
            entries, title=HEADLINES[record.job], note=" · ".join(note)
        ),
        "README.md": dataset_card(record).encode(),
        "report.html": page.encode(),
    }
    for name, payload in files.items():
        write_atomic(fs, join(directory.path, name), payload)


def _shown(record: RunSummary, entries: Sequence[Entry]) -> str:
    if entries and len(entries) == record.figures.rows:
        return f"All {len(entries):,} images"
    if entries:
        return f"{len(entries):,} of {record.figures.rows:,} images, evenly spread over the run"
    if not record.figures.rows:
        return "No pictures: no row has a result"
    if record.job == "quantize":
        return "No pictures: tokens need the palette of the run"
    return "No pictures: the run kept none"
