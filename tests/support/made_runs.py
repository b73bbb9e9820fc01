"""Writes run directories as the stages leave them, and reads the report of one."""

import base64
import json
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from igpt_core.images.palette import Palette
from pictures import as_struct, encoded
from pipeline import rows
from pipeline.report.write import write_report
from pipeline.run_directory.likelihoods import NLLHistogram, has_nll

SIDE = 8
SCALE = 16  # 128 / SIDE
PALETTE = Palette(np.random.default_rng(0).uniform(-1, 1, (64, 3)))
KNOWN_ROWS = 3  # of the prompt
COMMAND = "igpt complete --input 'my photos' --output out --keep 0.4"
COLUMNS = {
    "quantize": rows.quantize_columns(SIDE * SIDE),
    "complete": rows.complete_columns(SIDE * SIDE),
    "classify": rows.classify_columns(2, named=True),
    "sample": rows.sample_columns(SIDE * SIDE, scored=True),
    "score": rows.score_columns(SIDE * SIDE, mapped=True),
    "embed": rows.embed_columns([2, 4], 6, pa.float16()),
}
BY_STATS = ("classify", "embed", "score")
STATS = {"seconds": {"read": 0.5, "decode": 1.5, "model": 7.0, "write": 1.0}, "host": "box"}
STARTED = -30.0  # when the driver of all shards was: half a minute before the first


# --- run directories ------------------------------------------------------------------------------


def tokens_for(id_: str, sample: int) -> NDArray[np.uint16]:
    """Makes some image for each id and sample: no two alike."""
    seed = [sample, *id_.encode()]
    return np.random.default_rng(seed).integers(0, 64, (SIDE, SIDE)).astype(np.uint16)


def map_for(id_: str) -> NDArray[np.float32]:
    """Makes some nats for each pixel of an image."""
    return np.random.default_rng([*id_.encode()]).gamma(4.0, 0.7, (SIDE, SIDE)).astype(np.float32)


def nats_for(id_: str) -> float:
    return float(map_for(id_).mean())


def colors(tokens: NDArray[np.uint16]) -> NDArray[np.uint8]:
    return np.rint(127.5 * (PALETTE.colors[tokens] + 1)).astype(np.uint8)


def row(job: str, id_: str, samples: int) -> dict[str, Any]:
    original = tokens_for(id_, 0)
    if job == "quantize":
        return {"id": id_, "tokens": original.ravel()}
    if job == "classify":
        found = {"predicted_label": 1, "predicted_name": "dog", "probability": 0.75}
        return {"id": id_, **found, "logits": [0.0, 1.1]}
    if job == "embed":
        return {"id": id_, "embedding_2": np.ones(6, np.float16), "embedding_4": [0.0] * 6}
    if job in ("sample", "score"):
        nats = float(np.float32(nats_for(id_)))
        scored = {"id": id_, "nll": nats, "bits_per_pixel": nats / np.log(2)}
        if job == "score":
            return scored | {"nll_map": map_for(id_).ravel()}
        picture = as_struct(Image.fromarray(colors(original)))
        return scored | {"tokens": original.ravel(), "image": picture}
    sampled = [tokens_for(id_, k + 1) for k in range(samples)]
    for sample in sampled:
        sample[:KNOWN_ROWS] = original[:KNOWN_ROWS]
    return {
        "id": id_,
        "tokens": original.ravel(),
        "samples": [sample.ravel() for sample in sampled],
        "images": [as_struct(Image.fromarray(colors(sample))) for sample in sampled],
        "prompt": as_struct(Image.fromarray(colors(original[:KNOWN_ROWS]))),
        "original": as_struct(Image.fromarray(colors(original))),
        "prompt_length": KNOWN_ROWS * SIDE,
        "nll": [nats_for(f"{id_} {k}") for k in range(samples)],
        "sample_index": list(range(samples)),
    }


def make_run(
    folder: Path,
    shards: Sequence[Sequence[str]],
    *,
    job: str = "complete",
    samples: int = 1,
    planned: int | None = None,
    report: dict[str, Any] | None = None,
    failed: Sequence[tuple[int, str, str, str]] = (),
    starts: Sequence[float] | None = None,
    row_group_size: int | None = None,
    columns: Sequence[rows.Column] | None = None,
) -> str:
    """Writes a run directory as the stages leave it.

    `shards` hold the ids of rows with a result, `failed` the others as (shard, id, error, message).
    """
    for name in ("data", "errors", "stats"):
        (folder / name).mkdir(parents=True)
    columns = COLUMNS[job] if columns is None else columns
    schema = rows.schema_for(job, columns)
    run = {
        "format": 1,
        "job": job,
        "command": COMMAND,
        "seed": 7,
        "created": "2026-01-05T12:03:00+00:00",
        "options": {"input": "my photos", "keep": 0.4, "samples": samples, "top_k": None},
        "results": {},
        "model": {"location": "/models/tiny", "fingerprint": "f00d"},
        "palette": {"location": "/models/tiny", "fingerprint": PALETTE.fingerprint},
        "image_size": SIDE,
        "columns": rows.described(schema, columns),
        "passthrough": [],
        "versions": {"igpt": "0.1.0", "torch": "2.13.0"},
    }
    (folder / "run.json").write_text(json.dumps(run))
    planned = len(shards) if planned is None else planned
    plan = {"shard": range(planned), "rows": pa.nulls(planned, pa.int32())}
    pq.write_table(pa.table(plan), folder / "plan.parquet")
    for shard, ids in enumerate(shards):
        name = f"part-{shard:06d}"
        made = [row(job, id_, samples) for id_ in ids]
        table = pa.Table.from_pylist(made, schema=schema)  # of the keys those in the schema
        pq.write_table(table, folder / f"data/{name}.parquet", row_group_size=row_group_size)
        error_rows = [
            {"id": id_, "source": f"/in/{id_}", "stage": "read", "error": error, "message": text}
            for index, id_, error, text in failed
            if index == shard
        ]
        if error_rows:
            errors = pa.Table.from_pylist(error_rows, schema=rows.ERRORS)
            pq.write_table(errors, folder / f"errors/{name}.parquet")
        stats = STATS | {
            "shard": shard,
            "started": STARTED,
            "rows": len(ids),
            "errors": len(error_rows),
            "tokens": len(ids) * samples * (SIDE - KNOWN_ROWS) * SIDE if job == "complete" else 0,
            "finished": (starts[shard] if starts else 100.0 * shard) + 10.0,
        }
        if has_nll(job, schema):
            stats["nats"] = NLLHistogram.of(table).to_json()
        if job in BY_STATS:
            pictures = [
                base64.b64encode(encoded(Image.fromarray(colors(tokens_for(id_, 0)))))
                for id_ in ids
            ]
            stats["examples"] = [
                {"row": row, "png": picture.decode()} for row, picture in enumerate(pictures)
            ]
        (folder / f"stats/{name}.json").write_text(json.dumps(stats))
    if report is not None:
        report = {"format": 1, "shards": planned, "resumed_shards": 0} | report
        (folder / "report.json").write_text(json.dumps(report))
    return str(folder)


def ids(n: int, *, start: int = 0) -> list[str]:
    return [f"photo-{i:04d}.jpg" for i in range(start, start + n)]


# --- reading the page -----------------------------------------------------------------------------


class Page(HTMLParser):
    """Tags with their attributes, texts with the tag they stand in, the charts as XML."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text: list[tuple[str, str]] = []  # (innermost tag, text)
        self._open: list[str] = []
        self.charts = [ElementTree.fromstring(svg) for svg in re.findall("(?s)<svg.*?</svg>", html)]
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in ("meta", "link", "img"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        self.text.append((self._open[-1] if self._open else "", data))

    def all_text(self) -> str:
        """Joins all texts, white space as a browser shows it."""
        return " ".join("".join(text for tag, text in self.text if tag != "style").split())

    def titles_of(self, css_class: str) -> list[str]:
        return [a["title"] for _, a in self.tags if a.get("class") == css_class]

    def figures(self) -> dict[str, float]:
        """Reads the key figures: name to exact value."""
        names = ("Images", "Failed rows", "Images per second", "Tokens per second")
        names = (*names, "Tokens per pass", "Working time", "Wall time", "Nats per pixel")
        shown = [text for tag, text in self.text if tag == "span" and text in names]
        values = [float(a["value"]) for tag, a in self.tags if tag == "data"]
        return dict(zip(shown, values, strict=False))

    def pictures(self) -> list[bytes]:
        """Decodes those of the examples."""
        found = [a for tag, a in self.tags if tag == "img"]
        assert all(a["alt"] for a in found)
        sources = [a["src"] for a in found]
        return [base64.b64decode(s.removeprefix("data:image/png;base64,")) for s in sources]


def written(output: str, **arguments: Any) -> Page:
    write_report(output, **arguments)
    return Page(Path(output, "report.html").read_text(encoding="utf-8"))


# --- reading the contact sheet --------------------------------------------------------------------


def places(sheet: NDArray[np.uint8], picture: NDArray[np.uint8]) -> list[tuple[int, int]]:
    """Finds every (y, x) at which the picture lies in the sheet, enlarged SCALE times."""
    large = picture.repeat(SCALE, axis=0).repeat(SCALE, axis=1)
    height, width = large.shape[:2]
    candidates = np.argwhere((sheet == large[0, 0]).all(axis=2))
    return [
        (int(y), int(x))
        for y, x in candidates
        if np.array_equal(sheet[y : y + height, x : x + width], large)
    ]


def read_sheet(output: str) -> NDArray[np.uint8]:
    with Image.open(Path(output, "contact_sheet.png")) as image:
        return np.asarray(image.convert("RGB"))
