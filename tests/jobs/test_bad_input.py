"""Images and tables that are not what they should be: an error row each, or one clear line."""

import http.server
import json
import os
import struct
import threading
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, PngImagePlugin

from igpt_core.images.model_palette import load_palette
from igpt_core.images.pixels import load_pixels
from pictures import BAD, SIDE, encoded, photo
from pipeline.readers import images as image_files
from pipeline.stages.read_images import decode
from pipeline.storage import retry
from pipeline.storage.filesystem import read_bytes
from runs import errors, igpt, refusal, results


def bomb(side: int) -> bytes:
    """A PNG of side x side white pixels: 1 bit each, zeros that pack a thousandfold."""

    def chunk(name: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + checksum

    packer = zlib.compressobj(9)
    row = bytes(1 + side // 8)
    pixels = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


def test_an_animation_gives_its_first_frame_and_a_bomb_an_error(in_process, tiny_model, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    frames = [Image.new("RGB", (20, 20), color) for color in ("red", "blue", "green")]
    frames[0].save(folder / "a.gif", save_all=True, append_images=frames[1:], duration=100)
    (folder / "bomb.png").write_bytes(bomb(40_000))
    assert (folder / "bomb.png").stat().st_size < 1 << 20
    (folder / "c.png").write_bytes(encoded(photo(0)))
    igpt("quantize", input=folder, model=tiny_model, output=tmp_path / "run",
         max_error_fraction=0.5)  # fmt: skip
    found = {row["id"]: row["tokens"] for row in results(tmp_path / "run")}
    assert found.keys() == {"a.gif", "c.png"}
    (red,) = load_palette(tiny_model).encode(np.array([[255, 0, 0]], np.uint8)).tolist()
    assert set(found["a.gif"]) == {red}
    assert errors(tmp_path / "run") == {"bomb.png": "ImageError"}
    (message,) = pq.read_table(tmp_path / "run/errors")["message"].to_pylist()
    assert "pixels" in message


def test_a_bomb_is_refused_by_its_header(monkeypatch):
    """Its pixels, 4.5 GiB as RGB, are never asked for."""
    loaded = []
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", loaded.append)
    error = decode(bomb(40_000), size=8, resize="exact", crop="squash")
    assert error.error == "ImageError"
    assert not loaded


def test_a_second_row_of_one_id_is_an_error(in_process, tiny_model, tmp_path):
    images = [encoded(photo(i)) for i in range(4)]
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": images, "name": ["a", "b", "a", "c"]}), path)
    options = {"input": path, "model": tiny_model, "id_column": "name", "max_error_fraction": 0.5}
    igpt("quantize", **options, output=tmp_path / "run")
    assert [row["id"] for row in results(tmp_path / "run")] == ["a", "b", "c"]
    assert errors(tmp_path / "run") == {"a": "DuplicateId"}
    (first, *_) = results(tmp_path / "run")
    pixels = load_pixels(images[0], 8)
    assert first["tokens"] == load_palette(tiny_model).encode(pixels).ravel().tolist()


@pytest.mark.parametrize("job", ["quantize", "embed", "score", "complete"])
def test_tables_that_do_not_go_together_are_one_line(tiny_model, tmp_path, capsys, job):
    folder, output = tmp_path / "tables", tmp_path / "run"
    folder.mkdir()
    options = {"input": folder, "model": tiny_model, "output": output}
    image = pa.array([encoded(photo(0))], pa.binary())
    pq.write_table(pa.table({"image": image, "label": [1]}), folder / "a.parquet")
    pq.write_table(pa.table({"image": image, "label": ["one"]}), folder / "b.parquet")
    message = refusal(capsys, job, **options)
    assert "label" in message
    assert "b.parquet" in message
    pq.write_table(pa.table({"picture": image, "label": [1]}), folder / "b.parquet")
    assert "image" in refusal(capsys, job, **options)
    assert "no such column" in refusal(capsys, job, **options, image_column="foto")
    assert not output.exists()


@pytest.mark.parametrize("job", ["quantize", "embed", "score", "complete"])
def test_no_rows_are_one_line(tiny_model, tmp_path, capsys, job):
    path, output = tmp_path / "a.parquet", tmp_path / "run"
    options = {"input": path, "model": tiny_model, "output": output}
    pq.write_table(pa.table({"image": pa.array([], pa.binary())}), path)
    assert "expected rows" in refusal(capsys, job, **options)
    assert "--limit" in refusal(capsys, job, **options, limit=0)
    assert not output.exists()


def test_options_of_pixels_are_refused_for_tokens(tmp_path, capsys):
    tokens = pa.array([[0] * SIDE**2], pa.list_(pa.uint16(), SIDE**2))
    pq.write_table(pa.table({"tokens": tokens}), tmp_path / "a.parquet")
    options = {"input": tmp_path, "output": tmp_path / "run", "crop": "center"}
    assert "--crop is for images" in refusal(capsys, "embed", **options)


@pytest.mark.parametrize("status", [403, 503])
def test_a_web_server_that_refuses_is_one_line_without_secrets(
    photos, tmp_path, capsys, monkeypatch, status
):
    """Past bugs: for the input an error of a library's with exit code 1, for the model a line with
    its signature."""
    monkeypatch.setattr(retry.time, "sleep", lambda seconds: None)

    class Refusing(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(status)

        do_HEAD = do_GET

        def log_message(self, format, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        place = f"http://127.0.0.1:{server.server_port}/there"
        signed = f"{place}?sig=SECRET"
        of_input = refusal(capsys, "quantize", input=signed, output=tmp_path / "run")
        of_model = refusal(capsys, "quantize", input=photos, model=signed, output=tmp_path / "run")
        server.shutdown()
    assert of_input.startswith(f"igpt: cannot read {place}?***: ClientResponseError: {status}, ")
    assert "check the path, your rights" in of_input
    assert of_model.startswith(f"igpt: {place}?***: cannot be fetched ({status}, ")
    assert "SECRET" not in of_input + of_model


@pytest.fixture
def answers(monkeypatch):
    """Makes images fail to be read, by path, and nobody wait between tries."""

    def answer(error_for):
        def read(fs, path):
            if error := error_for(path):
                raise error
            return read_bytes(fs, path)

        monkeypatch.setattr(image_files, "read_bytes", read)
        monkeypatch.setattr(retry.time, "sleep", lambda seconds: None)

    return answer


def test_an_image_whose_store_is_always_busy_is_an_error_row_in_the_end(
    in_process, photos, tmp_path, answers
):
    """Past bug: its shard could never be done, whatever the number of starts."""
    answers(lambda path: OSError(110, "503, busy") if path.endswith("/03.png") else None)
    run = tmp_path / "run"
    igpt("quantize", input=photos, output=run, max_error_fraction=0.5)
    assert errors(run)["03.png"] == "TimeoutError"
    assert len(errors(run)) == len(BAD) + 1
    messages = pq.read_table(run / "errors")["message"].to_pylist()
    assert sum("503, busy" in message for message in messages) == 1
    assert (run / "report.json").exists()


def test_lost_rights_are_no_bad_images(in_process, photos, tmp_path, answers, capsys):
    """Past bug: a node whose rights were lost made an error row of each image, and the run was
    done."""
    answers(lambda path: PermissionError(13, "403, forbidden"))
    run = tmp_path / "run"
    options = {"input": photos, "output": run, "max_error_fraction": 0.5}
    line = refusal(capsys, "quantize", **options, code=1)
    assert "shards failed: 0" in line
    assert "403, forbidden" in line
    assert not list(run.glob("errors/*"))
    assert not list(run.glob("data/*"))
    answers(lambda path: None)
    igpt("quantize", **options)
    assert (run / "report.json").exists()


def test_one_that_is_no_file_is_an_error_row(in_process, tiny_model, tmp_path, capsys):
    """Past bug: a link to itself refused the input; one to a device was read without end."""
    folder = tmp_path / "in"
    (folder / "folder.png").mkdir(parents=True)
    (folder / "a.png").write_bytes(encoded(photo(0)))
    (folder / "self.png").symlink_to("self.png")
    (folder / "dead.png").symlink_to("nowhere.png")
    (folder / "zero.png").symlink_to("/dev/zero")
    os.mkfifo(folder / "pipe.png")
    igpt("quantize", input=folder, model=tiny_model, output=tmp_path / "run",
         max_error_fraction=0.9)  # fmt: skip
    assert [row["id"] for row in results(tmp_path / "run")] == ["a.png"]
    assert errors(tmp_path / "run") == {
        "dead.png": "FileNotFoundError",
        "pipe.png": "NoFile",
        "self.png": "OSError",
        "zero.png": "NoFile",
    }
    os.mkfifo(folder / "table.parquet")
    line = refusal(capsys, "quantize", input=folder / "table.parquet", output=tmp_path / "other")
    assert "found a pipe, device or socket" in line


def test_a_file_name_that_is_not_utf8_is_left_out_and_the_others_are_done(
    in_process, tiny_model, tmp_path, capsys
):
    """Past bug: exit code 2, and no image was read."""
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.png").write_bytes(encoded(photo(0)))
    with open(os.fsencode(folder) + b"/caf\xe9.png", "wb") as file:
        file.write(encoded(photo(1)))
    capsys.readouterr()
    igpt("quantize", input=folder, model=tiny_model, output=tmp_path / "run", quiet=False)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("expected")]
    assert lines == [
        "expected file names in UTF-8, found 1 with other bytes, left out, the first is "
        f"'{folder}/caf\\udce9.png'; next: rename it"
    ]
    assert [row["id"] for row in results(tmp_path / "run")] == ["a.png"]
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["skipped_files"] == {"a name that is not UTF-8": 1}
