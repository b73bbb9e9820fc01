"""Braces in the names of an input, against bash."""

import shutil
import subprocess

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from pipeline.errors import UsageError
from pipeline.inputs import files
from pipeline.inputs.files import expand_braces, split_list


@pytest.mark.skipif(shutil.which("bash") is None, reason="the reference is bash")
@pytest.mark.parametrize(
    "text",
    [
        "shard-{000000..000127}.tar",
        "a{1,2}b{3..5}",
        "{8..10}",
        "{08..10}",
        "{3..1}",
        "{-02..1}",
        "{1..9..4}",
        "{a..e}x",
        "a{,b}",
        "{a,b,}z",
        "{a{b,c},d{1..3}}",
        "{a{b,c}}",
        "{a}",
        "x{",
        "a{b",
        "a}b",
        "}{a,b}",
        "{{a,b}",
        "{a,b}}",
        "{a,{b}",
        "x}y/{1..2}{",
        "{1..3,9}",
        "plain",
    ],
)
def test_names_are_those_of_bash(text):
    printed = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' {text}"], capture_output=True, text=True, check=True
    )
    assert expand_braces(text) == printed.stdout.splitlines()


def test_commas_within_braces_do_not_split():
    assert split_list("a{1,2},b,{c,{d,e}},x}y,z") == ["a{1,2}", "b", "{c,{d,e}}", "x}y", "z"]
    assert split_list("a{b.jpg,c,{d{1,2},e") == ["a{b.jpg", "c", "{d{1,2}", "e"]


@pytest.mark.parametrize(
    "items",
    [
        ["https://h/a.png?w=1,2&sig=S", "https://h/b.png?w=3,data/x&sig=T", "https://h/c.png"],
        ["simplecache::https://h/a.png?i=https://a,https://b&sig=S", "simplecache::https://h/b"],
        ["http://h/a.tar?sig=1", "http://h/R&D/b.tar", "http://h/a&b.tar?sig=2", "http://h/c&d"],
        ["https://h/a.png?t=1,key:/S"],
        ["a?.png", "b&c.png", "s3://bucket/a?", "s3://bucket/b&c"],
    ],
)
def test_commas_in_a_query_do_not_split(items):
    """Past bug: what stood behind one was another location, shown with its signature."""
    assert split_list(",".join(items)) == items


def test_a_backslash_is_a_plain_character():
    assert expand_braces(r"a\{1,2}\n{") == [r"a\1\n{", r"a\2\n{"]


def test_a_range_without_end_is_refused(monkeypatch):
    monkeypatch.setattr(files, "MOST_NAMES", 100)
    assert len(expand_braces("{1..100}")) == 100
    with pytest.raises(UsageError, match="at most 100 names, found more"):
        expand_braces("{0..99999999999}{0..99999999999}")
    with pytest.raises(UsageError, match="at most 100 names, found more"):
        expand_braces("{1..50}{1..50}")


def test_files_that_differ_by_an_empty_folder_have_names_of_their_own(s3_bucket):
    """Past bug: `in//a.png` was listed for ever; its id would have been that of `in/a.png`."""
    options, fs = s3_bucket("nameless")
    for key in ("in//a.png", "in/a.png", "in/b//a.png", "in/b/a.png"):
        fs.pipe_file(f"nameless/{key}", b"x")
    found = files.find_files("s3://nameless/in", options)
    assert [file.name for file in found] == ["/a.png", "a.png", "b//a.png", "b/a.png"]
    assert [file.path.removeprefix("s3://nameless/in/") for file in found] == [
        file.name for file in found
    ]


def test_a_folder_that_cannot_be_listed_is_counted_as_left_out():
    fs = MemoryFileSystem()
    fs.pipe_file("/unlisted//a.png", b"x")
    fs.pipe_file("/unlisted/b.png", b"x")
    found = files.find_files("memory://unlisted", {})
    chosen = files.choose_format(found, "auto", "memory://unlisted")
    assert [file.name for file in chosen[1]] == ["b.png"]
    assert chosen[2] == {files.NAMELESS: 1}
    fs.rm("/unlisted", recursive=True)
