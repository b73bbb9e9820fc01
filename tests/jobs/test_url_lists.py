"""Jobs over lists of web addresses, by the tokens of the same images as files."""

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pyarrow.parquet as pq
import pytest

from jobs.__main__ import main
from pictures import encoded, photo
from runs import errors, igpt, refusal, results

SECRET = "fake-s1gnature"
PICTURES = {f"/{i}.png": encoded(photo(i)) for i in range(5)}


@pytest.fixture
def host() -> Iterator[ThreadingHTTPServer]:
    """A host that gives signed images, until they are taken from `images`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path, _, query = self.path.partition("?")
            self.server.asked.append(path)
            content = self.server.images.get(path) if query == f"X-Amz-Signature={SECRET}" else None
            self.send_response(404 if content is None else 200)
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.images, server.asked = dict(PICTURES), []
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()


@pytest.fixture
def listing(host, tmp_path) -> Path:
    """A CSV of signed addresses, their captions and names."""
    at = f"http://127.0.0.1:{host.server_address[1]}"
    rows = [
        f'{at}{path}?X-Amz-Signature={SECRET},"a ""photo"", {i}",{path[1:]}\n'
        for i, path in enumerate(PICTURES)
    ]
    (tmp_path / "list.csv").write_text("url,caption,name\n" + "".join(rows))
    return tmp_path / "list.csv"


@pytest.fixture
def expected(in_process, tiny_model, tmp_path) -> dict:
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, content in PICTURES.items():
        (folder / name[1:]).write_bytes(content)
    igpt("quantize", input=folder, model=tiny_model, output=tmp_path / "local")
    return {row["id"]: row["tokens"] for row in results(tmp_path / "local")}


def test_images_of_a_list_are_those_of_a_folder(
    in_process, listing, host, tiny_model, tmp_path, expected, capfd
):
    """What fails is an error row and is done again by itself; nothing holds a signature."""
    run = tmp_path / "run"
    del host.images["/3.png"]
    words = ["quantize", f"--input={listing}", "--url-column=url", f"--model={tiny_model}"]
    words += [f"--output={run}", "--id-column=name", "--shard-size=2", "--max-error-fraction=0.5"]
    main(words)
    good = {name: tokens for name, tokens in expected.items() if name != "3.png"}
    assert {row["id"]: row["tokens"] for row in results(run)} == good
    assert errors(run) == {"3.png": "Http404"}
    (row,) = pq.read_table(run / "errors").to_pylist()
    assert row["source"] == f"{listing}#3"
    assert row["message"].startswith("404 Not Found: http://127.0.0.1/")
    assert "caption" in pq.read_schema(run / "data/part-000000.parquet").names
    host.images |= PICTURES
    host.asked.clear()
    main(["retry-failed", str(run)])
    assert host.asked == ["/3.png"]
    rows = results(run)
    assert {row["id"]: row["tokens"] for row in rows} == expected
    assert {row["caption"] for row in rows} == {f'a "photo", {i}' for i in range(5)}
    main(["verify", str(run)])
    written = b"".join(path.read_bytes() for path in run.rglob("*") if path.is_file())
    assert SECRET.encode() not in written
    assert SECRET not in "".join(capfd.readouterr())


def test_addresses_are_kept_where_they_are_asked_for(in_process, listing, tiny_model, tmp_path):
    igpt("quantize", input=listing, url_column="url", keep_columns="url,caption",
         model=tiny_model, output=tmp_path / "run")  # fmt: skip
    addresses = [row["url"].partition("?")[0][-6:] for row in results(tmp_path / "run")]
    assert addresses == list(PICTURES)


def test_another_column_of_addresses_is_no_resume(
    in_process, listing, tiny_model, tmp_path, capsys
):
    options = {"input": listing, "model": tiny_model, "output": tmp_path / "run"}
    igpt("quantize", **options, url_column="url", shard_size=2)
    (tmp_path / "run/data/part-000001.parquet").unlink()
    assert "url_column" in refusal(capsys, "quantize", **options, url_column="name")
    igpt("quantize", **options, url_column="url")


def test_a_list_without_its_option_is_refused_with_it(listing, tiny_model, tmp_path, capsys):
    message = refusal(capsys, "quantize", input=listing, output=tmp_path / "run", model=tiny_model)
    assert "--url-column" in message


def test_a_palette_and_a_model_are_made_of_a_list(listing, tiny_model, tmp_path, expected):
    igpt("palette", input=listing, url_column="url", output=tmp_path / "p.npy", colors=4)
    words = {"n_layer": 1, "n_embd": 16, "n_head": 2, "steps": 1, "batch_size": 2}
    igpt("train", input=listing, url_column="url", palette=tmp_path / "p.npy", image_size=8,
         output=tmp_path / "model", **words)  # fmt: skip
    igpt("palette", input=tmp_path / "folder", output=tmp_path / "q.npy", colors=4)
    assert (tmp_path / "p.npy").read_bytes() == (tmp_path / "q.npy").read_bytes()
