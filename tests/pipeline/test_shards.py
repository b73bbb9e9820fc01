"""Planning: which files and rows make which shard, and what is refused before work begins."""

import os
import random

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Features, Image, Value

from pipeline.errors import UsageError
from pipeline.inputs import parquet_schema
from pipeline.inputs.files import format_extensions
from pipeline.inputs.source import Source, find_source
from pipeline.rows import hub_features
from pipeline.shards import FileSlice, Plan, Shard, shard_in

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def plan_shards(location, *, shard_size, **options):
    return find_source(location, **options).cut(shard_size)


def touch(root, *names):
    for name in names:
        path = os.path.join(root, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(b"x")


def write(path, rows, *, metadata=None, group=None, **columns):
    """A Parquet file with an image column and others, given as Arrow arrays."""
    os.makedirs(path.parent, exist_ok=True)
    image = pa.array([{"bytes": b"x", "path": None}] * rows, IMAGE)
    table = pa.table({"image": image, **columns}).replace_schema_metadata(metadata)
    pq.write_table(table, path, row_group_size=group)


def names(plan):
    return [file.name for shard in plan.shards for file in shard.slices]


def rows_of(plan):
    """Every row of the plan, in order, as (file name, row)."""
    files = [file for shard in plan.shards for file in shard.slices]
    return [(file.name, row) for file in files for row in file.row_numbers]


# --- images ---------------------------------------------------------------------------------------


def test_folder_is_cut_into_shards_in_the_order_of_names(tmp_path):
    found = [f"{folder}/{i}.{end}" for folder in "ab" for i, end in enumerate(["JPEG", "png"] * 3)]
    random.Random(0).shuffle(found)
    touch(tmp_path, *found, "notes.txt", "b/more.TXT", "b/none", ".hidden.png", "_temporary/x.png")
    plan = plan_shards(str(tmp_path), shard_size=5)
    assert plan.format == "images"
    assert names(plan) == sorted(found)
    assert [shard.rows for shard in plan.shards] == [5, 5, 2]
    assert [shard.index for shard in plan.shards] == [0, 1, 2]
    assert plan.rows == 12
    assert plan.skipped == {"": 1, ".txt": 2}
    first = plan.shards[0].slices[0]
    mtime = os.stat(f"{tmp_path}/a/0.JPEG").st_mtime_ns
    identity = f"size=1 mtime={mtime}"
    assert first == FileSlice(f"{tmp_path}/a/0.JPEG", "a/0.JPEG", 0, 1, identity)
    assert plan_shards(f"{tmp_path}/", shard_size=5) == plan


def test_every_extension_that_pillow_decodes_counts_in_any_case(tmp_path):
    wanted = {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".ppm", ".jp2"}
    images = format_extensions()["images"]
    assert wanted <= images
    assert not images & {".pdf", ".h5", ".mpg", ".txt", ".parquet"}, "Pillow cannot decode these"
    touch(tmp_path, *(f"x{end.upper()}" for end in images))
    assert plan_shards(str(tmp_path), shard_size=1000).rows == len(images)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("{root}/a/x.png", ["x.png"]),
        ("{root}/a", ["deep/y.png", "x.png"]),
        ("{root}/*/x.png", ["a/x.png", "b/x.png"]),
        ("{root}/a/*.png", ["x.png"]),
        ("{root}/a,{root}/b", ["a/deep/y.png", "a/x.png", "b/x.png"]),
        ("{root}/a/x.png,{root}/b/x.png", ["a/x.png", "b/x.png"]),
        ("{root}/a/deep , {root}/a/x.png", ["deep/y.png", "x.png"]),
        ("{root}/a,{root}/a/x.png,{root}/*/deep", ["a/deep/y.png", "a/x.png"]),
        ("{root}/b,", ["x.png"]),
        ("{root}/{{a,b}}/x.png", ["a/x.png", "b/x.png"]),
        ("{root}/{{a,b}}", ["a/deep/y.png", "a/x.png", "b/x.png"]),
        ("{root}/a/{{x,deep/y}}.png", ["deep/y.png", "x.png"]),
        ("{root}/{{a/{{deep/y,x}},b/x}}.png,{root}/b", ["a/deep/y.png", "a/x.png", "b/x.png"]),
        ("{root}/{{a,b}}/*.png", ["a/x.png", "b/x.png"]),
    ],
)
def test_ids_are_relative_to_what_the_input_names(tmp_path, given, expected):
    touch(tmp_path, "a/x.png", "a/deep/y.png", "b/x.png")
    plan = plan_shards(given.format(root=tmp_path), shard_size=10)
    assert names(plan) == expected
    assert len({file.path for file in plan.shards[0].slices}) == len(expected)


@pytest.mark.parametrize("name", ["a#b", "what?", "[x]", "a b", "100%25", "ü日", "one,two", "a::b"])
def test_any_name_can_be_an_input(tmp_path, name):
    touch(tmp_path, f"{name}/{name}.png", "x/x.png", "one/o.png")
    plan = plan_shards(str(tmp_path / name), shard_size=10)
    assert names(plan) == [f"{name}.png"]
    plan = plan_shards(str(tmp_path / name / f"{name}.png"), shard_size=10)
    assert names(plan) == [f"{name}.png"], "what exists is never a glob"
    if "," not in name:
        plan = plan_shards(f"{tmp_path / name},{tmp_path}/x", shard_size=10)
        assert names(plan) == sorted([f"{name}/{name}.png", "x/x.png"])


def test_names_with_braces_that_exist_are_no_patterns(tmp_path):
    touch(tmp_path, "{a,b}.png", "{1..2}/x.png", "a.png", "b.png")
    assert names(plan_shards(str(tmp_path / "{a,b}.png"), shard_size=9)) == ["{a,b}.png"]
    assert names(plan_shards(str(tmp_path / "{1..2}"), shard_size=9)) == ["x.png"]
    both = plan_shards(f"{tmp_path}/{{a,b}}.png,{tmp_path}/{{a,b}}*", shard_size=9)
    assert names(both) == ["a.png", "b.png", "{a,b}.png"]


def test_braces_that_do_not_pair_are_plain_characters(tmp_path):
    touch(tmp_path, "a{b.png", "c.png", "x}y/d.png", "x}y/e.png")
    assert names(plan_shards(str(tmp_path / "a{b.png"), shard_size=9)) == ["a{b.png"]
    both = plan_shards(f"{tmp_path}/a{{b.png,{tmp_path}/c.png", shard_size=9)
    assert names(both) == ["a{b.png", "c.png"]
    assert names(plan_shards(str(tmp_path / "a{*"), shard_size=9)) == ["a{b.png"]
    for pattern in ("*.png", "{d,e}.png"):
        plan = plan_shards(str(tmp_path / "x}y" / pattern), shard_size=9)
        assert names(plan) == ["d.png", "e.png"]


def test_a_range_of_many_names(tmp_path):
    touch(tmp_path, *(f"x-{i:06}.png" for i in range(3000)))
    plan = plan_shards(str(tmp_path / "x-{000500..002499}.png"), shard_size=9999)
    assert names(plan) == [f"x-{i:06}.png" for i in range(500, 2500)]


def test_relative_inputs_become_absolute_paths(tmp_path, monkeypatch):
    touch(tmp_path, "in/x.png")
    monkeypatch.chdir(tmp_path)
    assert plan_shards("in", shard_size=1).shards[0].slices[0].path == f"{tmp_path}/in/x.png"


def test_ten_thousand_files(tmp_path):
    for folder in range(10):
        (tmp_path / f"n{folder}").mkdir()
        for i in range(1000):
            (tmp_path / f"n{folder}" / f"{i:04}.png").touch()
    plan = plan_shards(str(tmp_path), shard_size=1024)
    assert [shard.rows for shard in plan.shards] == [1024] * 9 + [784]
    assert Plan.from_table(plan.to_table()) == plan


# --- Parquet --------------------------------------------------------------------------------------


@pytest.mark.parametrize("shard_size", [1, 4, 7, 10, 1000])
def test_parquet_rows_are_cut_and_put_together(tmp_path, shard_size):
    sizes = {"a.parquet": 3, "b.parquet": 0, "c.parquet": 1, "d/e.pq": 23, "f.PARQUET": 2}
    for name, rows in sizes.items():
        write(tmp_path / name, rows, group=5)
    plan = plan_shards(str(tmp_path), shard_size=shard_size)
    assert rows_of(plan) == [(name, row) for name in sorted(sizes) for row in range(sizes[name])]
    *full, last = [shard.rows for shard in plan.shards]
    assert set(full) <= {shard_size}
    assert 0 < last <= shard_size


@pytest.mark.parametrize("limit", [1, 5, 7, 8, 100])
def test_limit_takes_the_first_rows(tmp_path, monkeypatch, limit):
    monkeypatch.setattr(parquet_schema, "_FOOTERS_AT_ONCE", 1)
    for name in ("a", "b", "c"):
        write(tmp_path / f"{name}.parquet", 4)
    everything = rows_of(plan_shards(str(tmp_path), shard_size=5))
    plan = plan_shards(str(tmp_path), shard_size=5, limit=limit)
    assert rows_of(plan) == everything[:limit]


@pytest.mark.parametrize(("limit", "rows"), [(None, 9), (5, 5), (20, 9)])
def test_a_source_knows_its_rows_before_it_is_cut(tmp_path, limit, rows):
    write(tmp_path / "a.parquet", 9)
    source = find_source(str(tmp_path), limit=limit)
    assert source.rows == rows
    assert [shard.rows for shard in source.cut(3).shards] == [3] * (rows // 3) + [rows % 3] * (
        rows % 3 > 0
    )


def test_a_row_group_of_many_shards_is_said_at_planning(tmp_path, capsys):
    write(tmp_path / "a.parquet", 200)
    write(tmp_path / "b.parquet", 130, group=10)
    source = find_source(str(tmp_path))
    source.print_large_groups(4)  # 50 shards in a group
    find_source(str(tmp_path), limit=100).print_large_groups(2)
    find_source(f"{tmp_path}/b.parquet").print_large_groups(1)
    assert capsys.readouterr().err == ""
    source.print_large_groups(3)
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{tmp_path}/a.parquet has a row group of 200 rows, for shards of 3" in line
    assert "pq.write_table(..., row_group_size=48)" in line


def test_image_files_and_numbers_have_no_row_groups(tmp_path, capsys):
    touch(tmp_path, "a.png")
    find_source(str(tmp_path)).print_large_groups(1)
    Source.numbered(1000).print_large_groups(1)
    assert capsys.readouterr().err == ""


def test_shards_of_no_rows_are_refused(tmp_path):
    write(tmp_path / "a.parquet", 9)
    with pytest.raises(ValueError, match="at least 1"):
        find_source(str(tmp_path)).cut(0)


def test_columns_are_kept_with_their_labels(tmp_path):
    features = Features(
        {"label": ClassLabel(names=["no", "yes"]), "image": Image(), "n": Value("int8")}
    )
    write(
        tmp_path / "a.parquet",
        2,
        metadata=features.arrow_schema.metadata,
        label=pa.array([0, 1]),
        n=pa.array([1, 2], pa.int8()),
    )
    plan = plan_shards(str(tmp_path), shard_size=5)
    assert plan.image_column == "image"
    assert plan.passthrough == pa.schema([("label", pa.int64()), ("n", pa.int8())])
    assert Features.from_arrow_schema(plan.passthrough)["label"].names == ["no", "yes"]
    plan = plan_shards(str(tmp_path), shard_size=5, keep_columns=["label"])
    assert plan.passthrough.names == ["label"]
    assert plan_shards(str(tmp_path), shard_size=5, keep_columns=[]).passthrough.names == []
    assert plan_shards(str(tmp_path), shard_size=5, id_column="n").passthrough.names == [
        "label",
        "n",
    ]


def test_an_id_column_called_id_becomes_the_id(tmp_path):
    write(tmp_path / "a.parquet", 1, id=pa.array(["x"]), key=pa.array([1]))
    assert plan_shards(str(tmp_path), shard_size=5).passthrough.names == ["id", "key"]
    plan = plan_shards(str(tmp_path), shard_size=5, id_column="id")
    assert plan.passthrough.names == ["key"]


@pytest.mark.parametrize("type_", [pa.binary(), pa.large_binary(), pa.binary_view(), IMAGE])
def test_image_columns_of_every_kind(tmp_path, type_):
    value = {"bytes": b"x", "path": None} if type_ == IMAGE else b"x"
    table = pa.table({"text": ["t"], "picture": pa.array([value], type_)})
    pq.write_table(table, tmp_path / "a.parquet")
    assert plan_shards(str(tmp_path), shard_size=5).image_column == "picture"


def test_image_column_by_name_or_by_choice(tmp_path):
    write(tmp_path / "a.parquet", 1, thumb=pa.array([b"x"]))
    assert plan_shards(str(tmp_path), shard_size=5).image_column == "image"
    plan = plan_shards(str(tmp_path), shard_size=5, image_column="thumb")
    assert plan.image_column == "thumb"
    assert plan.passthrough.names == ["image"]


def test_a_column_of_nulls_takes_the_type_of_the_others(tmp_path):
    """pandas writes a column that happens to be empty as null."""
    pd.DataFrame({"image": [b"x"], "note": [None]}).to_parquet(tmp_path / "a.parquet")
    write_note = pd.DataFrame({"image": [b"x"], "note": ["n"]})
    write_note.to_parquet(tmp_path / "b.parquet")
    write_note.assign(note=None).to_parquet(tmp_path / "c.parquet")
    plan = plan_shards(str(tmp_path), shard_size=5)
    note = pq.read_schema(tmp_path / "b.parquet").field("note")
    assert plan.passthrough.field("note").type == note.type


def test_columns_in_another_order_are_the_same(tmp_path):
    write(tmp_path / "a.parquet", 1, x=pa.array([1]), y=pa.array(["t"]))
    table = pq.read_table(tmp_path / "a.parquet").select(["y", "image", "x"])
    pq.write_table(table, tmp_path / "b.parquet")
    assert plan_shards(str(tmp_path), shard_size=5).passthrough.names == ["x", "y"]


# --- the plan as a table --------------------------------------------------------------------------


def test_plan_survives_its_file(tmp_path):
    features = Features({"image": Image(), "label": ClassLabel(names=["no", "yes"])})
    metadata = features.arrow_schema.metadata
    write(tmp_path / "in/a.parquet", 7, metadata=metadata, label=pa.array([0] * 7))
    touch(tmp_path / "in", "x.txt")
    plan = plan_shards(str(tmp_path / "in"), shard_size=3)
    pq.write_table(plan.to_table(), tmp_path / "plan.parquet")
    table = pq.read_table(tmp_path / "plan.parquet")
    again = Plan.from_table(table)
    assert again == plan
    assert hub_features(again.passthrough) == hub_features(plan.passthrough) != {}
    assert again.skipped == {".txt": 1}
    assert table["rows"].to_pylist() == [3, 3, 1]
    assert shard_in(table.slice(1, 1)) == plan.shards[1], "a block is a plan's row"


def test_another_table_is_no_plan():
    with pytest.raises(UsageError, match="plan of a run"):
        Plan.from_table(pa.table({"shard": [1]}))


def test_shard_rows_are_those_of_its_slices():
    assert Shard(0, (FileSlice("a", "a", 3, 10), FileSlice("b", "b", 0, 1))).rows == 8


# --- what is refused ------------------------------------------------------------------------------


def refusal(given, **options):
    with pytest.raises(UsageError) as caught:
        plan_shards(str(given), shard_size=4, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_refused_places(tmp_path):
    (tmp_path / "empty").mkdir()
    touch(tmp_path, "text/a.txt", "text/b.txt", "text/c", "hidden/.x.png")
    assert "missing" in refusal(tmp_path / "missing")
    assert "found none" in refusal(tmp_path / "empty")
    assert "found none" in refusal(tmp_path / "hidden")
    assert "found none" in refusal(tmp_path / "*.png")
    assert "images or parquet" in refusal(tmp_path / "text")
    assert "2 of .txt, 1 of no extension" in refusal(tmp_path / "text")
    assert "2 of .txt" in refusal(tmp_path / "text/{a,b}.txt")
    message = refusal(tmp_path / "text/{a,b,x,y}.txt")
    assert "all 4 names" in message
    assert f"none for 2 of them, the first is {tmp_path}/text/x.txt" in message
    assert "missing" in refusal(f"{tmp_path}/text,{tmp_path}/missing")
    assert "found nothing" in refusal(tmp_path / "text/{a,b.txt")
    assert "--input" in refusal(" , ")
    assert "memory://x" in refusal("memory://x")
    assert "one filesystem" in refusal(f"{tmp_path}/text,memory://x")
    assert "xyz://" in refusal("xyz://bucket/key")


def test_names_that_cannot_be_written_down_are_left_out_and_counted(tmp_path, capsys):
    """Past bug: one such name refused the whole input."""
    root = os.fsencode(tmp_path)
    for name in (b"\xff.png", b"\xfe/a.png", b"\xff.txt"):
        os.makedirs(os.path.dirname(root + b"/in/" + name), exist_ok=True)
        with open(root + b"/in/" + name, "wb"):
            pass
    assert "found 3 with a name that is not UTF-8" in refusal(tmp_path / "in")
    touch(tmp_path, "in/ü.png", "in/b.png", "in/c.txt")
    for given in (tmp_path / "in", tmp_path / "in" / "**"):
        source = find_source(str(given))
        plan = source.cut(4)
        assert names(plan) == ["b.png", "ü.png"]
        assert plan.skipped == {".txt": 1, "a name that is not UTF-8": 3}
        assert Plan.from_table(plan.to_table()) == plan
        source.print_broken_names()
        (line,) = capsys.readouterr().err.splitlines()
        assert "found 3 with other bytes, left out, the first is '" in line
        assert "\\udcf" in line
        assert "next: rename them" in line


def test_a_mixture_needs_a_format(tmp_path):
    touch(tmp_path, "a.png", "b.png")
    write(tmp_path / "c.parquet", 3)
    message = refusal(tmp_path)
    assert "2 of images and 1 of parquet" in message
    assert "--format images or parquet" in message
    plan = plan_shards(str(tmp_path), shard_size=4, format="images")
    assert (plan.rows, plan.skipped) == (2, {".parquet": 1})
    plan = plan_shards(str(tmp_path), shard_size=4, format="parquet")
    assert (plan.rows, plan.skipped) == (3, {".png": 2})
    assert "files of parquet" in refusal(tmp_path / "a.png", format="parquet")
    assert "found sound" in refusal(tmp_path, format="sound")


def test_refused_options_for_images(tmp_path):
    touch(tmp_path, "a.png")
    for name in ("image_column", "id_column"):
        assert name.replace("_", "-") in refusal(tmp_path, **{name: "x"})
    assert "--keep-columns" in refusal(tmp_path, keep_columns=["x"])


def test_refused_parquet_files(tmp_path):
    write(tmp_path / "a.parquet", 3)
    whole = (tmp_path / "a.parquet").read_bytes()
    for name, payload in {"cut": whole[:-20], "empty": b"", "text": b"no Parquet at all"}.items():
        (tmp_path / "b.parquet").write_bytes(payload)
        assert "b.parquet" in refusal(tmp_path), name
    (tmp_path / "b.parquet").unlink()
    write(tmp_path / "a.parquet", 0)
    assert "expected rows" in refusal(tmp_path)


def test_refused_image_columns(tmp_path):
    table = pa.table({"a": [b"x"], "b": [b"x"], "c": ["text"]})
    pq.write_table(table, tmp_path / "a.parquet")
    assert "found a, b; choose with --image-column" in refusal(tmp_path)
    assert "found string; next: --image-column a or b" in refusal(tmp_path, image_column="c")
    assert "no such column" in refusal(tmp_path, image_column="z")
    pq.write_table(table.select(["c"]), tmp_path / "a.parquet")
    assert "column of encoded images" in refusal(tmp_path)


def test_refused_column_choices(tmp_path):
    write(tmp_path / "a.parquet", 1, x=pa.array([1]), y=pa.array([0.5]))
    assert "expected column z" in refusal(tmp_path, keep_columns=["x", "z"])
    assert "expected column z" in refusal(tmp_path, id_column="z")
    assert "found double" in refusal(tmp_path, id_column="y")
    assert "without image" in refusal(tmp_path, keep_columns=["image"])
    write(tmp_path / "a.parquet", 1, __igpt_shard=pa.array([1]))
    assert "__igpt_" in refusal(tmp_path)


def test_refused_files_of_different_columns(tmp_path):
    first, second = tmp_path / "a.parquet", tmp_path / "b.parquet"
    write(first, 1, x=pa.array([1]), y=pa.array([1]))
    write(second, 1, x=pa.array([1]))
    message = refusal(tmp_path)
    assert "y is in only one of" in message
    assert "--keep-columns" in message
    assert plan_shards(str(tmp_path), shard_size=4, keep_columns=["x"]).rows == 2
    write(second, 1, x=pa.array(["1"]), y=pa.array([1]))
    assert "x is int64 in" in refusal(tmp_path)
    assert plan_shards(str(tmp_path), shard_size=4, keep_columns=["y"]).rows == 2
    write(first, 1, z=pa.array([1]))
    assert "x" in refusal(tmp_path)


def test_files_without_rows_say_nothing_of_columns(tmp_path):
    """pandas gives a column without values no type."""
    pd.DataFrame({"image": [], "x": []}).to_parquet(tmp_path / "a.parquet")
    message = refusal(tmp_path)
    assert f"expected rows, found 1 Parquet files without any, the first is {tmp_path}" in message
    write(tmp_path / "b.parquet", 2, x=pa.array([1, 2]))
    pq.write_table(pa.table({"other": pa.array([], pa.int8())}), tmp_path / "c.parquet")
    plan = plan_shards(str(tmp_path), shard_size=4)
    assert (rows_of(plan), plan.image_column) == ([("b.parquet", 0), ("b.parquet", 1)], "image")
    assert plan.passthrough == pa.schema([("x", pa.int64())])


def test_refused_files_without_the_column_of_the_others(tmp_path):
    first, second = tmp_path / "a.parquet", tmp_path / "b.parquet"
    write(first, 1, key=pa.array(["k"]))
    pq.write_table(pa.table({"key": ["k"]}), second)
    assert f"in column image of {second}, found no such column" in refusal(tmp_path)
    pq.write_table(pa.table({"key": ["k"], "image": ["text"]}), second)
    assert f"in column image of {second}, found string" in refusal(tmp_path)
    pq.write_table(pa.table({"image": [b"x"]}), second)
    message = refusal(tmp_path, id_column="key", keep_columns=[])
    assert f"key is not in {second}" in message
    assert f"key is in only one of {first} and {second}" in refusal(tmp_path)
    message = refusal(tmp_path, keep_columns=["key"])
    assert "key is in only one of" in message


def test_refused_files_of_different_labels(tmp_path):
    for name, labels in (("a", ["no", "yes"]), ("b", ["yes", "no"])):
        features = Features({"image": Image(), "label": ClassLabel(names=labels)})
        metadata = features.arrow_schema.metadata
        write(tmp_path / f"{name}.parquet", 1, metadata=metadata, label=pa.array([1]))
    assert "other labels" in refusal(tmp_path)
    assert plan_shards(str(tmp_path), shard_size=4, keep_columns=[]).rows == 2
