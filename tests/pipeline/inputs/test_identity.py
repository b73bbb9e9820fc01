"""What has become of an input since it was planned: of local files, of a store, of a run."""

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from made_runs import make_run
from pipeline.inputs.identity import Changes, changes, planned_identities, repaired
from pipeline.inputs.source import find_source, list_input
from pipeline.shards import Plan

NOTHING = Changes({}, (), ())


def touch(root: Path, *names: str, content: bytes = b"x") -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)


def plan_of(location, **options) -> Plan:
    plan = find_source(str(location), **options).cut(2)
    return Plan.from_table(plan.to_table())


def compare(plan: Plan, location, options=None) -> Changes:
    return changes(plan, list_input(str(location), format=plan.format, storage_options=options))


@pytest.mark.parametrize(
    "given",
    [
        "{root}",
        "{root}/*.png,{root}/deep",
        "{root}/{{a,b,c}}.png,{root}/deep/d.png",
        "{root}/**/*.png",
        "{root}/a.png,{root}/b.png,{root}/c.png,{root}/deep/d.png",
    ],
)
def test_files_that_changed_came_or_went(tmp_path, given):
    touch(tmp_path, "a.png", "b.png", "c.png", "deep/d.png", "notes.txt")
    given = given.format(root=tmp_path)
    plan = plan_of(given, format="images")
    assert plan.rows == 4
    assert compare(plan, given) == NOTHING
    touch(tmp_path, "notes.txt", content=b"other words")
    (tmp_path / "b.png").unlink()
    touch(tmp_path, "a.png", content=b"larger")
    stamp = os.stat(tmp_path / "deep/d.png").st_mtime_ns
    os.utime(tmp_path / "deep/d.png", ns=(stamp, stamp + 1))  # the same size
    found = compare(plan, given)
    assert found.gone == (f"{tmp_path}/b.png",)
    assert set(found.changed) == {f"{tmp_path}/a.png", f"{tmp_path}/deep/d.png"}
    then, now = found.changed[f"{tmp_path}/a.png"]
    assert (then.split()[0], now.split()[0]) == ("size=1", "size=6")
    assert found.new == ()


def test_files_that_come_later_are_new_where_the_plan_would_hold_them(tmp_path):
    touch(tmp_path, "b.png", "d.png", "f.png")
    whole, limited, unmet = (plan_of(tmp_path, limit=limit) for limit in (None, 2, 9))
    touch(tmp_path, "c.png", "z.png", "c.txt", ".hidden.png")
    assert compare(whole, tmp_path).new == (f"{tmp_path}/c.png", f"{tmp_path}/z.png")
    assert compare(unmet, tmp_path).new == (f"{tmp_path}/c.png", f"{tmp_path}/z.png")
    assert compare(limited, tmp_path).new == (f"{tmp_path}/c.png",), "z and f are behind the limit"
    assert compare(limited, tmp_path).gone == ()


def test_a_parquet_file_without_rows_is_not_new_and_may_change(tmp_path):
    table = pa.table({"image": [b"x"] * 3})
    pq.write_table(table, tmp_path / "a.parquet")
    pq.write_table(table.slice(0, 0), tmp_path / "b.parquet")
    plan = plan_of(tmp_path)
    assert compare(plan, tmp_path) == NOTHING
    pq.write_table(table, tmp_path / "b.parquet")
    assert set(compare(plan, tmp_path).changed) == {f"{tmp_path}/b.parquet"}
    (tmp_path / "b.parquet").unlink()
    assert compare(plan, tmp_path) == NOTHING, "nothing was read of it"


def test_a_link_is_what_it_leads_to(tmp_path):
    touch(tmp_path, "real/a.png", "in/b.png")
    (tmp_path / "in" / "a.png").symlink_to(tmp_path / "real" / "a.png")
    (tmp_path / "in" / "c.png").symlink_to(tmp_path / "nowhere")
    plan = plan_of(tmp_path / "in")
    assert compare(plan, tmp_path / "in") == NOTHING
    touch(tmp_path, "real/a.png", "nowhere", content=b"larger")
    found = compare(plan, tmp_path / "in").changed
    assert set(found) == {f"{tmp_path}/in/a.png", f"{tmp_path}/in/c.png"}
    assert found[f"{tmp_path}/in/c.png"][0] == "a dead link"


def test_a_run_is_compared_by_its_parts(tmp_path):
    failed = [(0, "c.png", "ImageError", "no image")]
    run = Path(make_run(tmp_path / "run", [["a.png"], ["b.png"]], failed=failed, report={}))
    plan = plan_of(run, image_column="tokens")
    assert compare(plan, run) == NOTHING, "its errors, plan and stats are no input"
    part = run / "data" / "part-000000.parquet"
    pq.write_table(pq.read_table(part), part, compression="gzip")
    assert set(compare(plan, run).changed) == {str(part)}


def test_everything_gone_is_no_error(tmp_path):
    touch(tmp_path, "in/a.png", "in/b.png")
    plan = plan_of(tmp_path / "in")
    (tmp_path / "in").rename(tmp_path / "away")
    assert compare(plan, tmp_path / "in").gone == (f"{tmp_path}/in/a.png", f"{tmp_path}/in/b.png")


@pytest.fixture(scope="module")
def bucket(s3_bucket):
    return s3_bucket("identity")


@pytest.mark.parametrize("given", ["s3://identity/in", "s3://identity/in/{a,b}.png"])
def test_objects_of_a_store_are_compared_by_etag_without_a_request_for_each(
    bucket, given, monkeypatch
):
    options, fs = bucket
    for name in "ab":
        fs.pipe_file(f"identity/in/{name}.png", b"x")
    requests = []
    call = type(fs)._call_s3

    def counted(self, method, *rest, **named):
        requests.append(method)
        return call(self, method, *rest, **named)

    monkeypatch.setattr(type(fs), "_call_s3", counted)
    plan = plan_of(given, storage_options=options)
    monkeypatch.undo()
    assert requests.count("head_object") <= 1, "of what is given, to see whether it is a file"
    etag = fs.info("identity/in/a.png")["ETag"].strip('"')
    assert set(planned_identities(plan).values()) == {f"size=1 etag={etag}"}
    assert compare(plan, given, options) == NOTHING
    fs.pipe_file("identity/in/a.png", b"x")
    assert compare(plan, given, options) == NOTHING, "the same bytes again"
    fs.pipe_file("identity/in/a.png", b"y")
    found = compare(plan, given, options)
    assert set(found.changed) == {"s3://identity/in/a.png"}
    fs.rm_file("identity/in/a.png")
    assert compare(plan, given, options).gone == ("s3://identity/in/a.png",)


def test_a_plan_that_knows_of_no_identity_differs_in_nothing(tmp_path):
    """As of an igpt that wrote none: its columns and metadata are fewer."""
    touch(tmp_path, "a.png", "b.png")
    table = find_source(str(tmp_path)).cut(1).to_table()
    rest = json.loads(table.schema.metadata[b"igpt_plan"])
    del rest["limit"], rest["empty"]
    fields = ("path", "name", "start", "stop")
    slices = [[{k: s[k] for k in fields} for s in each] for each in table["slices"].to_pylist()]
    of_old = pa.table({"shard": table["shard"], "rows": table["rows"], "slices": slices})
    plan = Plan.from_table(of_old.replace_schema_metadata({"igpt_plan": json.dumps(rest)}))
    assert [shard.rows for shard in plan.shards] == [1, 1]
    assert set(planned_identities(plan).values()) == {None}
    touch(tmp_path, "a.png", "c.png", content=b"other")
    assert compare(plan, tmp_path) == NOTHING


def test_a_plan_takes_on_the_identities_of_repaired_files(tmp_path):
    touch(tmp_path, "a.png", "b.png", "c.png")
    plan = plan_of(tmp_path)
    touch(tmp_path, "a.png", "b.png", content=b"repaired")
    (a,) = (file for file in list_input(str(tmp_path), format="images") if file.name == "a.png")
    taken = repaired(plan, [a], {})
    assert set(compare(taken, tmp_path).changed) == {f"{tmp_path}/b.png"}
    assert [shard.rows for shard in taken.shards] == [2, 1]
    assert not taken.redone
