"""Logins and signatures of locations stay out of messages and logs."""

import logging
import traceback
from types import SimpleNamespace

import aiohttp
import pytest
from yarl import URL

from pipeline.engine import stage
from pipeline.engine.shard_result import ShardResult, deserialize, serialize
from pipeline.engine.stage import StageError
from pipeline.storage.redact import is_redacted, redacted, redacted_line, redacted_location

ADDRESS = "https://user:pa@ss@store/a.png?sig=SECRET"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (ADDRESS, "https://***@store/a.png?***"),
        ("ftp://user:p@ssword@host/photos", "ftp://***@host/photos"),
        (f"{ADDRESS}: cannot be fetched", "https://***@store/a.png?***: cannot be fetched"),
        ("s3://bucket/image-?.png", "s3://bucket/image-?.png"),
        ("https://TOKEN@host/photos", "https://***@host/photos"),
        ("simplecache::HTTP://TOKEN@host/a.tar", "simplecache::HTTP://***@host/a.tar"),
        ("ftp://TOKEN@host/photos", "ftp://***@host/photos"),
        ("sftp://me@firm.org:pass@host/photos", "sftp://***@host/photos"),
        ("s3://:SECRET@host/photos", "s3://***@host/photos"),
        ("sftp://me@host/a,sftp://me:pass@host/b", "sftp://me@host/a,sftp://***@host/b"),
    ],
)
def test_a_location_that_is_shown(text, expected):
    assert redacted(text) == redacted(expected) == expected
    assert is_redacted(expected) == ("***" in expected)


@pytest.mark.parametrize(
    "location",
    [
        "abfs://photos@account.dfs.core.windows.net/in",
        "abfss://photos@account.dfs.core.windows.net:443/in,abfs://b@account/c",
        "sftp://me@host:22/photos",
        "hf://datasets/owner/name@main/a.png",
        "s3://bucket/a@b.png",
    ],
)
def test_a_location_without_a_secret_is_kept_whole(location):
    """Past bug: Azure's `container@account` was taken for a login, and so the command that resumes
    the run led nowhere."""
    assert redacted(location) == redacted_line(OSError(location)) == location
    assert not is_redacted(location)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://h/my photo.png?sig=SECRET", "https://h/my photo.png?***"),
        ("https://h/it's.png?a=b&sig=SECRET'SECRET", "https://h/it's.png?***"),
        ("simplecache::HTTPS://h/a.png?sig=SECRET", "simplecache::HTTPS://h/a.png?***"),
        (
            "https://h/a.png?sig=SECRET,https://me:SECRET@h/b.png?x=1,SECRET",
            "https://h/a.png?***,https://***@h/b.png?***",
        ),
        ("https://h/a.png?i=https://a,https://b&sig=SECRET", "https://h/a.png?***"),
        ("https://h/a.png?sig=A,key:/SECRET", "https://h/a.png?***"),
        ("https://h/a?s=SECRET,https://h/R&D/b", "https://h/a?***,https://h/R&D/b"),
        ("--input=https://h/a b.png?sig=SECRET", "--input=https://h/a b.png?***"),
        ("sftp://me:SECRET@h/what?.png", "sftp://***@h/what?.png"),
        ("s3://bucket/image-?.png,s3://bucket/b.png", "s3://bucket/image-?.png,s3://bucket/b.png"),
        ("photos/a?.png", "photos/a?.png"),
    ],
)
def test_a_location_that_is_written_down(text, expected):
    """Past bug: a space or a quotation mark in the path kept the signature, and of a list only the
    first address was left."""
    assert redacted_location(text) == redacted_location(expected) == expected
    assert is_redacted(expected) == ("***" in expected)


def test_an_address_without_its_host():
    error = OSError(
        "HTTPPool(host='h'): Max retries exceeded with url: /a?sig=SECRET (Caused by x)"
    )
    assert redacted_line(error).endswith("with url: /a?*** (Caused by x)")


class Refused:
    """A stage that a store refuses."""

    def __call__(self, block):
        self._ask()

    def _ask(self):
        request = SimpleNamespace(real_url=URL(ADDRESS))
        raise aiohttp.ClientResponseError(request, (), status=503, message="busy")


@pytest.fixture
def refused(monkeypatch):
    """The class of an actor with that stage."""
    monkeypatch.setattr(stage, "SHARD_BACKOFF", ())
    return type("Refused", (stage._ReportingShards,), {"stage": Refused})


def test_the_log_of_a_shard_that_failed(refused, caplog):
    """Past bug: the traceback showed the store's answer as it was."""
    caplog.set_level(logging.ERROR, logger="pipeline.engine.stage")  # whatever Ray has set in here
    (result,) = deserialize(refused()(serialize([ShardResult(3)])))
    assert result.failure == (
        "Refused: ClientResponseError: 503, message='busy', url='https://***@store/a.png?***'"
    )
    assert "shard 3 failed" in caplog.text
    assert "in _ask" in caplog.text
    assert "url='https://***@store/a.png?***'" in caplog.text
    assert "SECRET" not in caplog.text
    assert "ss@" not in caplog.text


def test_what_ray_logs_of_an_actor_that_failed(refused):
    with pytest.raises(StageError) as caught:
        stage._Reporting.__call__(refused(), None)
    shown = "".join(traceback.format_exception(caught.value))
    assert "in _ask" in shown
    assert "SECRET" not in shown
    assert "ss@" not in shown


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("url: /o'brien.png?sig=SECRET (Caused by", "url: /o'brien.png?*** (Caused by"),
        ("'https://h/it's.png?sig=SECRET' is gone", "'https://h/it's.png?***' is gone"),
        ("'https://h/a.png?n=o'b&sig=SECRET': no", "'https://h/a.png?***': no"),
        ("url=URL('https://h/a.png?n=o'b&sig=SECRET')", "url=URL('https://h/a.png?***')"),
    ],
)
def test_an_apostrophe_in_an_address_is_a_letter_of_it(text, expected):
    """Past bug: what stood behind it was taken for text of the message."""
    assert redacted_line(OSError(text)) == expected
