"""The report of a run: figures, pictures and escaping, against run directories made here."""

import base64
import io
import json
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from numpy.typing import NDArray
from PIL import Image

from igpt_core.palette import Palette
from pipeline import rows
from pipeline.contact_sheet import draw_sheet
from pipeline.labels import duration, rate, shortened
from pipeline.nats import NatsHistogram, has_nats
from pipeline.report import write_report
from pipeline.sheet_rows import Entry, Picture, read_entries
from pipeline.storage import UsageError

SIDE = 8
SCALE = 16  # 128 / SIDE
PALETTE = Palette(np.random.default_rng(0).uniform(-1, 1, (64, 3)))
GIVEN = 3  # rows of the prompt
COMMAND = "igpt complete --input 'my photos' --output out --keep 0.4"
COLUMNS = {
    "quantize": rows.quantize_columns(SIDE * SIDE),
    "complete": rows.complete_columns(SIDE * SIDE),
    "classify": rows.classify_columns(2, named=True),
    "sample": rows.sample_columns(SIDE * SIDE, scored=True),
    "score": rows.score_columns(SIDE * SIDE, mapped=True),
    "embed": rows.embed_columns([2, 4], 6, pa.float16()),
}
BY_EXAMPLE = ("classify", "embed", "score")
STATS = {"seconds": {"read": 0.5, "decode": 1.5, "model": 7.0, "write": 1.0}, "host": "box"}


# --- run directories ------------------------------------------------------------------------------


def png(pixels: NDArray[np.uint8], mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, "PNG")
    return buffer.getvalue()


def tokens_for(id_: str, sample: int) -> NDArray[np.uint16]:
    """Some image for each id and sample: no two alike."""
    seed = [sample, *id_.encode()]
    return np.random.default_rng(seed).integers(0, 64, (SIDE, SIDE)).astype(np.uint16)


def map_for(id_: str) -> NDArray[np.float32]:
    """Some nats for each pixel."""
    return np.random.default_rng([*id_.encode()]).gamma(4.0, 0.7, (SIDE, SIDE)).astype(np.float32)


def nats_for(id_: str) -> float:
    return float(map_for(id_).mean())


def colours(tokens: NDArray[np.uint16]) -> NDArray[np.uint8]:
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
        picture = {"bytes": png(colours(original)), "path": None}
        return scored | {"tokens": original.ravel(), "image": picture}
    drawn = [tokens_for(id_, k + 1) for k in range(samples)]
    for sample in drawn:
        sample[:GIVEN] = original[:GIVEN]
    return {
        "id": id_,
        "tokens": original.ravel(),
        "samples": [sample.ravel() for sample in drawn],
        "images": [{"bytes": png(colours(sample)), "path": None} for sample in drawn],
        "prompt": {"bytes": png(colours(original[:GIVEN])), "path": None},
        "original": {"bytes": png(colours(original)), "path": None},
        "prompt_length": GIVEN * SIDE,
        "nll": [nats_for(f"{id_} {k}") for k in range(samples)],
    }


def make_run(
    folder: Path,
    shards: Sequence[Sequence[str]],
    *,
    job: str = "complete",
    samples: int = 1,
    planned: int | None = None,
    report: dict[str, Any] | None = None,
    bad: Sequence[tuple[int, str, str, str]] = (),
    starts: Sequence[float] | None = None,
    row_group_size: int | None = None,
    columns: Sequence[rows.Column] | None = None,
) -> str:
    """A run directory as the stages leave it: `shards` hold the ids of rows with a result, `bad`
    the failed ones as (shard, id, error, message)."""
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
    pq.write_table(pa.table({"shard": list(range(planned))}), folder / "plan.parquet")
    for shard, ids in enumerate(shards):
        name = f"part-{shard:06d}"
        made = [row(job, id_, samples) for id_ in ids]
        table = pa.Table.from_pylist(made, schema=schema)  # of the keys those in the schema
        pq.write_table(table, folder / f"data/{name}.parquet", row_group_size=row_group_size)
        failed = [
            {"id": id_, "source": f"/in/{id_}", "stage": "read", "error": error, "message": text}
            for index, id_, error, text in bad
            if index == shard
        ]
        if failed:
            errors = pa.Table.from_pylist(failed, schema=rows.ERRORS)
            pq.write_table(errors, folder / f"errors/{name}.parquet")
        stats = STATS | {
            "shard": shard,
            "rows": len(ids),
            "errors": len(failed),
            "tokens": len(ids) * samples * (SIDE - GIVEN) * SIDE if job == "complete" else 0,
            "finished": (starts[shard] if starts else 100.0 * shard) + 10.0,
        }
        if has_nats(job, schema):
            stats["nats"] = NatsHistogram.of(table).to_json()
        if job in BY_EXAMPLE:
            pictures = [base64.b64encode(png(colours(tokens_for(id_, 0)))) for id_ in ids]
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
    """Tags with their attributes, the ids, and what stands in tags that tests ask for."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text: list[tuple[str, str]] = []  # (innermost tag, text)
        self._open: list[str] = []
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
        return "".join(text for tag, text in self.text if tag != "style")

    def titles_of(self, css_class: str) -> list[str]:
        return [a["title"] for _, a in self.tags if a.get("class") == css_class]

    def figures(self) -> dict[str, float]:
        """Name to exact value of the tiles with key figures."""
        names = ("Images", "Errors", "Images per second", "Tokens per second", "Wall time")
        names = (*names, "Nats per pixel")
        shown = [text for tag, text in self.text if tag == "span" and text in names]
        values = [float(a["value"]) for tag, a in self.tags if tag == "data"]
        return dict(zip(shown, values, strict=False))

    def pictures(self, css_class: str = "") -> list[bytes]:
        """Those of rows, or the ones of a class."""
        found = [a for tag, a in self.tags if tag == "img" and a.get("class", "") == css_class]
        assert all(a["alt"] for a in found)
        sources = [a["src"] for a in found]
        return [base64.b64decode(s.removeprefix("data:image/png;base64,")) for s in sources]


def written(output: str, **arguments: Any) -> Page:
    write_report(output, **arguments)
    return Page(Path(output, "report.html").read_text(encoding="utf-8"))


# --- the page -------------------------------------------------------------------------------------


def test_page_needs_nothing_but_itself(tmp_path: Path) -> None:
    page = written(make_run(tmp_path / "run", [ids(4)], report={"seconds": 10.0}))
    assert {"script", "iframe", "object", "embed", "base", "form", "a"}.isdisjoint(
        tag for tag, _ in page.tags
    )
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")], tag
        for name in ("src", "href", "srcset", "action"):
            assert attributes.get(name, "data:").startswith("data:"), (tag, attributes[name])
    style = "".join(text for tag, text in page.text if tag == "style")
    assert "prefers-color-scheme: dark" in style
    assert "url(" not in style
    assert "@import" not in style


NASTY = [
    '<script>alert("x")</script>',
    "'\"><img src=http://evil/x onerror=alert(1)>",
    "</style></figure>&lt;b&amp;",
    "sub/日本語 café.png",
    "line\nbreak\0\u202egnp.exe",
    "x" * 70 + "/" + "y" * 70 + ".png",
]
SEEN = [*NASTY[:4], "line\\nbreak\\x00\\u202egnp.exe", NASTY[5]]


def test_every_id_is_escaped(tmp_path: Path) -> None:
    plain = written(make_run(tmp_path / "a", [ids(6)], bad=[(0, "id", "E", "m")]))
    bad = [(0, id_, "Bad<i>Error", f"about {id_}") for id_ in NASTY[:5]]
    page = written(make_run(tmp_path / "b", [NASTY], bad=bad))

    assert page.titles_of("id") == SEEN + SEEN[:5]  # whole ids: of six pictures, of five errors
    assert {tag for tag, _ in page.tags} == {tag for tag, _ in plain.tags}
    assert sum(tag == "img" for tag, _ in page.tags) == 3 * len(NASTY)
    messages = [text for tag, text in page.text if tag == "span" and text.startswith("about ")]
    assert messages == [f"about {id_}" for id_ in SEEN[:5]]
    assert "Bad<i>Error" in page.all_text()
    long = next(text for tag, text in page.text if tag == "span" and text.startswith("xxx"))
    assert len(long) == 60
    assert long.endswith("y.png")


def test_figures_are_those_of_the_stats(tmp_path: Path) -> None:
    bad = [(1, "broken.jpg", "ImageError", "cut short")]
    output = make_run(tmp_path / "run", [ids(5), ids(4, start=5)], bad=bad, report={"seconds": 4.0})
    page = written(output)
    assert page.figures() == {
        "Images": 9,
        "Errors": 1,
        "Images per second": 10 / 4,
        "Tokens per second": 9 * (SIDE - GIVEN) * SIDE / 4,
        "Wall time": 4.0,
    }
    seconds = [float(a["value"]) for tag, a in page.tags if tag == "data"][-4:]
    assert seconds == [1.0, 3.0, 14.0, 2.0]  # two shards of STATS
    widths = [
        a["style"] for tag, a in page.tags if tag == "div" and "width: " in a.get("style", "")
    ]
    assert widths == ["width: 7.1%", "width: 21.4%", "width: 100.0%", "width: 14.3%"]
    text = page.all_text()
    assert "Finished: 2 of 2 shards" in text
    for told in (COMMAND, "tiny", "f00d", PALETTE.fingerprint, "torch 2.13.0", "5 January 2026"):
        assert told in text
    assert "goes on" not in text


def test_partial_run_says_how_far_it_is(tmp_path: Path) -> None:
    # the spans are 0 to 10 and 5 to 15; then someone stopped the run for a while; then 1000 to 1010
    output = make_run(
        tmp_path / "run", [ids(4), ids(4, start=4), ids(4, start=8)], planned=7,
        starts=[0.0, 5.0, 1000.0],
    )  # fmt: skip
    page = written(output)
    text = page.all_text()
    assert "Not finished: 3 of 7 shards" in text
    assert text.count(COMMAND) == 2  # what was run, and what goes on
    assert page.figures()["Wall time"] == pytest.approx(25.0)
    assert page.figures()["Images per second"] == pytest.approx(12 / 25)
    assert "Not finished: 3 of 7 shards" in Path(output, "README.md").read_text()


def test_stale_report_and_interruptions_do_not_count(tmp_path: Path) -> None:
    """report.json of a run whose parts were taken away again says nothing about what is there;
    that of a resumed run knows only the time of its last command."""
    gone = written(make_run(tmp_path / "a", [ids(4)], planned=2, report={"seconds": 1.0}))
    assert "Not finished: 1 of 2 shards" in gone.all_text()
    assert gone.figures()["Wall time"] == pytest.approx(10.0)
    resumed = {"seconds": 0.1, "resumed_shards": 2}
    page = written(make_run(tmp_path / "b", [ids(4), ids(4, start=4)], report=resumed))
    assert "Finished: 2 of 2 shards" in page.all_text()
    assert page.figures()["Wall time"] == pytest.approx(20.0)


def test_run_without_any_part(tmp_path: Path) -> None:
    output = make_run(tmp_path / "run", [], planned=3)
    page = written(output)
    assert "Not finished: 0 of 3 shards" in page.all_text()
    assert page.figures()["Images per second"] == 0
    assert "`prompt_length`" in Path(output, "README.md").read_text()


def test_all_rows_failed(tmp_path: Path) -> None:
    bad = [(shard, f"{shard}.jpg", "ImageError", "cut short") for shard in range(3)]
    output = make_run(tmp_path / "run", [[], [], []], bad=bad, report={"seconds": 2.0})
    page = written(output)
    assert page.figures() == {
        "Images": 0, "Errors": 3, "Images per second": 1.5, "Wall time": 2.0
    }  # fmt: skip
    assert "No pictures: no row has a result" in page.all_text()
    assert page.pictures() == []
    Image.open(Path(output, "contact_sheet.png")).verify()


def test_errors_by_kind(tmp_path: Path) -> None:
    bad = [(i % 2, f"cut-{i}.jpg", "ImageError", f"number {i}") for i in range(8)]
    bad += [(1, f"empty-{i}.jpg", "EmptyImage", "no bytes") for i in range(2)]
    page = written(make_run(tmp_path / "run", [ids(1), ids(1, start=1)], bad=bad))
    text = page.all_text()
    assert text.index("ImageError · 8") < text.index("EmptyImage · 2")  # the most frequent first
    shown = [title for title in page.titles_of("id") if not title.startswith("photo")]
    # five examples a kind, shard after shard
    assert shown == [f"cut-{i}.jpg" for i in (0, 2, 4, 6, 1)] + ["empty-0.jpg", "empty-1.jpg"]
    assert "and 3 more" in text


def test_lost_stats_are_counted_again(tmp_path: Path) -> None:
    bad = [(0, "broken.jpg", "ImageError", "cut short")]
    output = make_run(tmp_path / "run", [ids(5), ids(2, start=5)], bad=bad)
    Path(output, "stats/part-000000.json").unlink()
    page = written(output)
    assert page.figures()["Images"] == 7
    assert page.figures()["Errors"] == 1
    assert page.figures()["Images per second"] == pytest.approx(2 / 10)  # of the timed shard


# --- pictures -------------------------------------------------------------------------------------


def places(sheet: NDArray[np.uint8], picture: NDArray[np.uint8]) -> list[tuple[int, int]]:
    """Every (y, x) at which the picture lies in the sheet, enlarged SCALE times: brute force."""
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


def test_sheet_shows_every_pixel_at_its_place(tmp_path: Path) -> None:
    names = ids(5)
    output = make_run(tmp_path / "run", [names[:2], names[2:]], samples=2)
    page = written(output)
    sheet = read_sheet(output)
    lefts: set[tuple[int, ...]] = set()
    order: list[tuple[int, int]] = []
    for name in names:
        original = colours(tokens_for(name, 0))
        completions = [colours(tokens_for(name, k)) for k in (1, 2)]
        for completion in completions:
            completion[:GIVEN] = original[:GIVEN]
        [(y, x)] = places(sheet, original)
        found = [places(sheet, completion) for completion in completions]
        assert [len(f) for f in found] == [1, 1]
        assert {f[0][0] for f in found} == {y}
        # the given rows are the top of all four pictures; the first of them is the given part
        tops = [place for place in places(sheet, original[:GIVEN]) if place[0] == y]
        assert [left for _, left in tops] == [tops[0][1], found[0][0][1], found[1][0][1], x]
        assert [left for _, left in tops] == sorted(left for _, left in tops)
        lefts.add(tuple(left for _, left in tops))
        order.append((y, tops[0][1]))
        # below the given rows there is no pixel of the image, only two greys
        size = SIDE * SCALE
        rest = sheet[y + GIVEN * SCALE : y + size, tops[0][1] : tops[0][1] + size].reshape(-1, 3)
        assert len(np.unique(rest, axis=0)) == 2
        # the bar beside a completion starts where the model did
        bar = sheet[y : y + size, found[0][0][1] - 2]
        assert len(np.unique(bar[: GIVEN * SCALE], axis=0)) == 1
        assert len(np.unique(bar[GIVEN * SCALE :], axis=0)) == 1
        assert not np.array_equal(bar[GIVEN * SCALE - 1], bar[GIVEN * SCALE])
    assert order == sorted(order)  # as in the run: line by line

    expected = [
        picture
        for name in names
        for r in [row("complete", name, 2)]
        for picture in (r["prompt"], *r["images"], r["original"])
    ]
    assert page.pictures() == [picture["bytes"] for picture in expected]  # the page's are as stored
    cells = [text for tag, text in page.text if tag == "div" and text.strip()]
    assert cells == ["given", "completion 1", "completion 2", "original"] * 5
    tops_on_page = {a["style"] for tag, a in page.tags if tag == "i"}
    assert tops_on_page == {"top: 37.50%"}  # 3 of 8 rows


def test_quantized_images_take_the_palette_of_the_run(tmp_path: Path) -> None:
    output = make_run(tmp_path / "run", [ids(3)], job="quantize", report={"seconds": 1.0})
    page = written(output, palette=PALETTE)
    sheet = read_sheet(output)
    for name, picture in zip(ids(3), page.pictures(), strict=True):
        pixels = colours(tokens_for(name, 0))
        assert len(places(sheet, pixels)) == 1
        with Image.open(io.BytesIO(picture)) as image:
            assert np.array_equal(np.asarray(image), pixels)
    assert "Tokens per second" not in page.figures()

    without = written(output)
    assert without.pictures() == []
    assert "tokens need the palette" in without.all_text()
    with pytest.raises(UsageError, match="expected the palette of the run"):
        write_report(output, palette=Palette([[0.0, 0.0, 0.0]]))


def test_rows_are_spread_over_the_whole_run(tmp_path: Path) -> None:
    shards = [ids(3, start=3 * shard) for shard in range(50)]
    output = make_run(tmp_path / "run", shards)
    chosen = [int(title[6:10]) for title in written(output).titles_of("id")]
    assert len(chosen) == 24
    gaps = np.diff([-1, *chosen, 150])
    assert gaps.min() > 0
    assert gaps.max() <= 2 * 150 / 24  # no stretch is passed over
    # Everything that was not chosen may be lost, so it was not read. (The first part has the
    # schema for the card.)
    for shard in set(range(1, 50)) - {row // 3 for row in chosen}:
        Path(output, f"data/part-{shard:06d}.parquet").write_bytes(b"no parquet")
    assert [int(title[6:10]) for title in written(output).titles_of("id")] == chosen


def test_only_needed_row_groups_are_read(tmp_path: Path) -> None:
    output = make_run(tmp_path / "run", [ids(200)], row_group_size=40)
    path = Path(output, "data/part-000000.parquet")
    fs = fsspec.filesystem("file")
    entries = read_entries(fs, [str(path)], job="complete", image_size=SIDE, n=2)
    assert [entry.id for entry in entries] == ["photo-0050.jpg", "photo-0150.jpg"]
    damaged = bytearray(path.read_bytes())
    metadata = pq.read_metadata(path)
    for group in (0, 2, 4):  # rows 50 and 150 lie in groups 1 and 3
        for column in range(metadata.num_columns):
            chunk = metadata.row_group(group).column(column)
            start = chunk.dictionary_page_offset or chunk.data_page_offset
            damaged[start : start + chunk.total_compressed_size] = (
                b"?" * chunk.total_compressed_size
            )
    path.write_bytes(damaged)
    assert read_entries(fs, [str(path)], job="complete", image_size=SIDE, n=2) == entries


def test_parts_without_rows_give_way(tmp_path: Path) -> None:
    """Shards in which every row failed do not cost the sheet its pictures."""
    shards = [ids(1, start=shard) if shard % 10 == 0 else [] for shard in range(60)]
    bad = [(shard, f"{shard}.jpg", "E", "m") for shard in range(60) if shard % 10]
    page = written(make_run(tmp_path / "run", shards, bad=bad))
    assert page.titles_of("id")[:6] == [f"photo-{i:04d}.jpg" for i in range(0, 60, 10)]


def test_grey_pictures_and_unconditional_ones() -> None:
    grey = np.random.default_rng(3).integers(0, 256, (SIDE, SIDE)).astype(np.uint8)
    pictures = (
        Picture("given", None, SIDE),
        Picture("completion", png(np.stack([grey] * 3, axis=-1), "L"), SIDE, 0),
    )
    raw = draw_sheet([Entry("a", pictures)], title="t", note="n")
    sheet = np.asarray(Image.open(io.BytesIO(raw)))
    [(y, x)] = places(sheet, np.stack([grey] * 3, axis=-1))
    left = x - SIDE * SCALE - 8
    given = sheet[y : y + SIDE * SCALE, left : left + SIDE * SCALE].reshape(-1, 3)
    assert len(np.unique(given, axis=0)) == 2  # hatched all over


def test_long_ids_stay_in_their_column() -> None:
    white = np.full((SIDE, SIDE, 3), 255, np.uint8)
    entry = Entry("W" * 500, (Picture("quantized", png(white), SIDE),))
    sheet = np.asarray(Image.open(io.BytesIO(draw_sheet([entry], title="", note=""))))
    inked = np.flatnonzero((sheet < 128).any(axis=(0, 2)))
    assert inked.size
    assert inked.max() - inked.min() < SIDE * SCALE


def test_classified_images_are_shown_with_class_and_probability(tmp_path: Path) -> None:
    names = ids(40)
    output = make_run(tmp_path / "run", [names[:30], [], names[30:]], job="classify")
    page = written(output)
    shown = page.titles_of("id")
    assert shown == [
        names[i] for i in range(40) if i in [(2 * k + 1) * 40 // 48 for k in range(24)]
    ]
    assert page.all_text().count("dog, 75%") == 24
    for name, picture in zip(shown, page.pictures(), strict=True):
        assert np.array_equal(
            np.asarray(Image.open(io.BytesIO(picture))), colours(tokens_for(name, 0))
        )
    sheet = read_sheet(output)
    for name in shown:
        assert len(places(sheet, colours(tokens_for(name, 0)))) == 1
    assert "| `predicted_name` | `string` | its name |" in Path(output, "README.md").read_text()


# --- the folder -----------------------------------------------------------------------------------


def test_datasets_loads_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    bad = [(0, "broken.jpg", "ImageError", "cut short")]  # errors/*.parquet has other columns
    output = make_run(
        tmp_path / "run", [ids(3), [], ids(2, start=3)], bad=bad, report={"seconds": 1.0}
    )
    write_report(output)
    card = Path(output, "README.md").read_text()
    _, header, body = card.split("---\n", 2)
    parsed = yaml.safe_load(header)
    assert parsed["configs"][0]["data_files"] == [{"split": "train", "path": "data/*.parquet"}]
    assert parsed["size_categories"] == ["n<1K"]
    assert COMMAND in body
    for name in rows.schema_for("complete", COLUMNS["complete"]).names:
        assert f"| `{name}` |" in body

    loaded = datasets.load_dataset(output, cache_dir=str(tmp_path / "cache"))
    assert list(loaded) == ["train"]
    train = loaded["train"]
    assert train["id"][:] == ids(5)
    original = np.asarray(train[4]["original"])
    assert np.array_equal(original, colours(tokens_for("photo-0004.jpg", 0)))


def test_card_stands_odd_columns(tmp_path: Path) -> None:
    output = make_run(tmp_path / "run", [ids(1)], job="quantize")
    path = Path(output, "run.json")
    run = json.loads(path.read_text())
    run["columns"].append({"name": "a|b`c", "type": "int64", "meaning": "as in the input"})
    path.write_text(json.dumps(run))
    write_report(output)
    card = Path(output, "README.md").read_text()
    assert "| `` a\\|b`c `` | `int64` | as in the input |" in card


def test_any_location(tmp_path: Path) -> None:
    output = make_run(tmp_path / "run", [ids(3)])
    memory = fsspec.filesystem("memory")
    memory.put(output, "/report-test/run", recursive=True)
    try:
        write_report("memory://report-test/run")
        page = Page(memory.cat("/report-test/run/report.html").decode())
        assert page.figures()["Images"] == 3
        assert memory.exists("/report-test/run/contact_sheet.png")
        assert memory.exists("/report-test/run/README.md")
    finally:
        memory.rm("/report-test", recursive=True)


def broken_json(output: Path) -> None:
    (output / "stats/part-000000.json").write_text("[1, ")


def other_job(output: Path) -> None:
    run = json.loads((output / "run.json").read_text()) | {"job": "dream"}
    (output / "run.json").write_text(json.dumps(run))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda output: (output / "run.json").unlink(), "expected a run directory"),
        (broken_json, r"expected a JSON object in .*part-000000\.json"),
        (other_job, "is a run of dream, this igpt knows quantize, complete"),
    ],
)
def test_what_is_no_run_is_refused(
    tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    output = tmp_path / "run"
    make_run(output, [ids(1)])
    damage(output)
    with pytest.raises(UsageError, match=message) as refused:
        write_report(str(output))
    assert "\n" not in str(refused.value)
    assert not (output / "report.html").exists()


def test_labels() -> None:
    assert shortened("folder/name.png", 15) == "folder/name.png"
    assert shortened("folder/a-long-name.png", 10) == "fol…me.png"
    assert [rate(x) for x in (0.1234, 12.34, 1234.5)] == ["0.12", "12.3", "1,234"]
    assert [duration(x) for x in (0, 9.87, 59.96, 125.4, 3599.7, 7500)] == [
        "0.00 s", "9.87 s", "60.0 s", "2 min 05 s", "1 h 00 min", "2 h 05 min"
    ]  # fmt: skip
