"""What people hear while the rows of an input are counted."""

import tarfile
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pictures import encoded, photo
from pipeline.inputs import counting, parquet_schema, webdataset_schema
from pipeline.inputs.source import find_source


def tars(folder):
    for i in range(3):
        (folder / "a.png").write_bytes(encoded(photo(i)))
        with tarfile.open(folder / f"{i}.tar", "w") as tar:
            tar.add(folder / "a.png", "a.png")
        (folder / "a.png").unlink()
    return webdataset_schema, "samples_in", "tars"


def tables(folder):
    for i in range(3):
        pq.write_table(pa.table({"image": [encoded(photo(i))]}), folder / f"{i}.parquet")
    return parquet_schema, "_read_footer", "Parquet files"


@pytest.mark.parametrize("shown", [True, False])
@pytest.mark.parametrize("make", [tars, tables])
def test_a_line_says_how_much_of_a_large_input_is_counted(
    tmp_path, monkeypatch, capfd, make, shown
):
    """Past bug: of a thousand tars in a store nothing was heard for an hour."""
    module, name, what = make(tmp_path)
    read = getattr(module, name)

    def slowly(file, *args, **named):
        time.sleep(0.25 if file.name.startswith("2") else 0)
        return read(file, *args, **named)

    monkeypatch.setattr(module, name, slowly)
    monkeypatch.setattr(counting, "_SECONDS", 0.1)
    assert find_source(str(tmp_path), shown=shown).rows == 3
    said = capfd.readouterr().err
    assert (f"planning: rows of 2 of 3 {what} counted\n" in said) == shown
    time.sleep(0.2)
    assert not capfd.readouterr().err  # it ends with the counting
