"""Inputs whose addresses hold signatures or logins: read right, and written down nowhere."""

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import known_implementations

from jobs.__main__ import main
from pictures import encoded, photo
from pipeline.errors import UsageError
from pipeline.inputs.files import find_files
from runs import igpt, refusal, results

SECRETS = ("fake-s1gnature", "fake-of-the-next-day", "fake-passw0rd")
PICTURES = {f"{i}.png": encoded(photo(i)) for i in range(3)} | {"bad.png": b"no image"}
PICTURES["it's.png"] = encoded(photo(4))


@pytest.fixture
def signed() -> Iterator[str]:
    """The address of a server that answers signed requests alone."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path, _, query = self.path.partition("?")
            signature = query.removeprefix("X-Amz-Expires=9&X-Amz-Signature=")
            there = PICTURES | {"a.doc": b"text"}
            content = there.get(path.removeprefix("/in/")) if signature in SECRETS else None
            first, _, last = self.headers.get("Range", "").removeprefix("bytes=").partition("-")
            whole = len(content or b"")
            if first and content is not None:
                content = content[int(first) : int(last or whole) + 1]
            self.send_response(403 if content is None else 206 if first else 200)
            self.send_header("Content-Length", str(len(content or b"")))
            self.send_header("Content-Range", f"bytes {first or 0}-{last or whole - 1}/{whole}")
            self.send_header("Accept-Ranges", "bytes")
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content or b"")

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/in"
    server.shutdown()


class Vault(MemoryFileSystem):
    """A filesystem whose URIs hold a host and a login, as those of SFTP."""

    protocol = "vault"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        rest = path.removeprefix("vault://")
        return super()._strip_protocol(rest.partition("/")[2] if rest != path else path)


@pytest.fixture
def vault(monkeypatch) -> str:
    monkeypatch.setitem(known_implementations, "vault", {"class": f"{__name__}.Vault"})
    fs = Vault()
    for name, content in PICTURES.items():
        fs.pipe_file(f"/in/{name}", content)
    return f"vault://me:{SECRETS[2]}@host/in"


def written(run: Path) -> str:
    """All that a run directory holds, as text."""
    tables = list(run.rglob("*.parquet"))
    texts = [str(pq.read_table(path).to_pylist()) for path in tables]
    texts += [str(pq.read_schema(path).metadata) for path in tables]
    others = [path for path in run.rglob("*") if path.is_file() and path not in tables]
    return "\n".join([*texts, *(path.read_bytes().decode(errors="replace") for path in others)])


def check(run: Path, capfd, *, source: str) -> None:
    """Nothing has the secrets, and what failed is named all the same."""
    found = "".join([written(run), *capfd.readouterr()])
    assert not [secret for secret in SECRETS if secret in found]
    (row,) = pq.read_table(run / "errors").to_pylist()
    assert (row["id"], row["source"]) == ("bad.png", source)


@pytest.fixture
def expected(in_process, tiny_model, tmp_path) -> dict:
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, content in PICTURES.items():
        (folder / name).write_bytes(content)
    igpt("quantize", input=folder, model=tiny_model, output=tmp_path / "local",
         max_error_fraction=0.5)  # fmt: skip
    return {row["id"]: row["tokens"] for row in results(tmp_path / "local")}


def test_signed_addresses_are_read_and_resumed_with_another_signature(
    in_process, tiny_model, tmp_path, signed, capfd, expected
):
    """Past bug: refused as files of .png?x-amz-..., with the signature in the line; beside another
    input in report.json and plan.parquet."""
    run = tmp_path / "run"

    def command(secret: str) -> list[str]:
        query = f"?X-Amz-Expires=9&X-Amz-Signature={secret}"
        addresses = ",".join(f"{signed}/{name}{query}" for name in PICTURES)
        words = ["quantize", f"--input={addresses}", f"--model={tiny_model}", f"--output={run}"]
        return [*words, "--max-error-fraction=0.5", "--shard-size=2"]

    main(command(SECRETS[0]))
    assert {row["id"]: row["tokens"] for row in results(run)} == expected
    (run / "data/part-000001.parquet").unlink()
    main(command(SECRETS[1]))
    assert {row["id"]: row["tokens"] for row in results(run)} == expected
    check(run, capfd, source=f"{signed}/bad.png?***")


def test_rows_of_signed_tables_are_named_and_done_again_with_the_address(
    in_process, tiny_model, tmp_path, signed, capfd, monkeypatch
):
    """Past bugs: `source` ended at the signature, without the row; retry-failed had no way to be
    told the address, and advised what does nothing."""
    images = [PICTURES["0.png"], b"no image", PICTURES["1.png"], PICTURES["0.png"] * 40]
    pq.write_table(pa.table({"image": images}), tmp_path / "a.parquet")
    monkeypatch.setitem(PICTURES, "a.parquet", (tmp_path / "a.parquet").read_bytes())
    query = "?X-Amz-Expires=9&X-Amz-Signature="
    run = tmp_path / "run"
    igpt("quantize", input=f"{signed}/a.parquet{query}{SECRETS[0]}", model=tiny_model,
         output=run, max_error_fraction=0.9, max_image_bytes=len(images[3]) - 1)  # fmt: skip
    sources = [row["source"] for row in pq.read_table(run / "errors").to_pylist()]
    assert sources == [f"{signed}/a.parquet?***#1", f"{signed}/a.parquet?***#3"]
    assert "or igpt retry-failed with --input" in refusal(capfd, "retry-failed", run)
    again = {"input": f"{signed}/a.parquet{query}{SECRETS[1]}", "max_image_bytes": len(images[3])}
    igpt("retry-failed", run, **again)
    (row,) = pq.read_table(run / "errors").to_pylist()
    assert row["id"] == "a.parquet#1"
    assert len(results(run)) == 3
    assert "input" in refusal(capfd, "retry-failed", run, input=f"{signed}/0.png")
    found = "".join([written(run), *capfd.readouterr()])
    assert not [secret for secret in SECRETS if secret in found]


def test_a_model_does_not_hold_the_addresses_that_it_was_trained_on(
    tiny_model, tmp_path, signed, capfd
):
    """Past bug: training_options.json had them whole, beside weights that people publish."""
    query = f"?X-Amz-Expires=9&X-Amz-Signature={SECRETS[0]}"
    addresses = ",".join(f"{signed}/{name}{query}" for name in PICTURES)
    words = ["train", f"--input={addresses}", f"--palette={tiny_model}", "--image-size=8"]
    words += ["--n-layer=1", "--n-embd=16", "--n-head=2", "--steps=1", "--batch-size=2"]
    main([*words, f"--output={tmp_path / 'model'}", "--max-error-fraction=0.5"])
    found = "".join([written(tmp_path / "model"), *capfd.readouterr()])
    assert f"{signed}/it's.png?***" in found
    assert SECRETS[0] not in found


def test_logins_become_no_ids(signed):
    """Past bug: of addresses of several hosts the login was a part of the id."""
    host = signed.removeprefix("http://").removesuffix("/in")
    query = f"?X-Amz-Expires=9&X-Amz-Signature={SECRETS[0]}"
    locations = [f"http://me:{SECRETS[2]}@{host}/in/0.png{query}", f"{signed}/1.png{query}"]
    names = [file.name for file in find_files(",".join(locations), {})]
    assert names == ["0.png", "1.png"]
    twice = [f"http://{login}:{SECRETS[2]}@{host}/in/0.png{query}" for login in ("me", "you")]
    with pytest.raises(UsageError, match="several queries or logins"):
        find_files(",".join(twice), {})


def test_a_login_in_an_address_is_in_no_file(
    in_process, tiny_model, tmp_path, vault, capfd, expected
):
    """Past bug: it was in plan.parquet and in the source of error rows."""
    run = tmp_path / "run"
    words = ["quantize", f"--input={vault}", f"--model={tiny_model}", f"--output={run}"]
    words += ["--max-error-fraction=0.5", "--shard-size=2"]
    main(words)
    assert {row["id"]: row["tokens"] for row in results(run)} == expected
    (run / "data/part-000001.parquet").unlink()
    main(words)
    assert {row["id"]: row["tokens"] for row in results(run)} == expected
    check(run, capfd, source="vault://***@host/in/bad.png")


def test_a_refusal_does_not_show_the_signature(capsys, tiny_model, tmp_path, signed):
    first, second = (f"X-Amz-Expires=9&X-Amz-Signature={secret}" for secret in SECRETS[:2])
    for input, says in [
        (f"{signed}/nowhere.png?{first}", "cannot read"),
        (f"{signed}/a.doc?{first}", "found 1 of .doc"),
        (
            f"{signed}/0.png?{first},{signed}/0.png?{second}",
            "found 0.png with several queries or logins",
        ),
    ]:
        line = refusal(capsys, "quantize", input=input, output=tmp_path / "run")
        assert says in line
        assert not [secret for secret in SECRETS if secret in line]
