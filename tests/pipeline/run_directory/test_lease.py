"""Who may work at a run directory: one run at a time, the last that was started."""

import pickle

import pytest

from pipeline.run_directory.directory import RunDirectory
from pipeline.run_directory.layout import LEASE_FILE, stop_file
from pipeline.run_directory.lease import Lease
from pipeline.storage.filesystem import exists, join


@pytest.fixture(params=["local", "memory"])
def output(request, tmp_path):
    return str(tmp_path) if request.param == "local" else f"memory://{tmp_path.name}"


def rights(lease: Lease) -> tuple[bool, bool]:
    return lease.may_begin(), lease.may_write()


def test_whoever_took_it_last_has_it(output):
    first, resumed = Lease(output, {}, "one"), Lease(output, {}, "one")
    assert rights(first) == (False, False)
    first.acquire()
    assert rights(first) == (True, True)
    resumed.acquire()
    assert rights(first) == (False, False)
    assert rights(resumed) == (True, True)
    other = Lease(output, {}, "two")
    other.acquire()
    assert rights(resumed) == (False, False)


def test_a_run_that_stops_begins_nothing_and_writes_what_it_has(output):
    lease = Lease(output, {}, "one")
    lease.acquire()
    lease.stop()
    assert rights(lease) == (False, True)
    assert not pickle.loads(pickle.dumps(lease)).may_begin()
    lease.end()
    assert rights(lease) == (False, True)
    resumed = Lease(output, {}, "one")
    resumed.acquire()
    assert rights(resumed) == (True, True)


@pytest.mark.parametrize("act", [Lease.stop, Lease.end])
def test_a_run_that_stops_or_ends_while_another_takes_it_leaves_it_to_that_one(
    output, act, monkeypatch
):
    """Past bug: it looked whether it still had the lease, and then wrote over the other one's, or
    deleted it; both were superseded then, and nobody worked."""
    first, second = Lease(output, {}, "one"), Lease(output, {}, "one")
    first.acquire()
    read = Lease._read
    taken = []

    def taken_after_each_look(self, *name):
        found = read(self, *name)
        if self is first and not taken:
            taken.append(second.acquire())
        return found

    with monkeypatch.context() as patch:
        patch.setattr(Lease, "_read", taken_after_each_look)
        act(first)
    if not taken:  # it did not even look
        second.acquire()
        act(first)
    assert rights(second) == (True, True)
    assert rights(first) == (False, False)


def test_what_is_left_of_drivers_that_were_told_to_stop_is_nobodys_file(output):
    """Of one that was killed before it ended, too."""
    directory = RunDirectory.at(output, {})
    killed, ended = Lease(output, {}, "one"), Lease(output, {}, "one")
    for lease in (killed, ended):
        lease.acquire()
        lease.stop()
    ended.end()
    ended.end()  # of nothing
    names = {path.rpartition("/")[2] for path in directory.fs.ls(directory.path, detail=False)}
    assert names == {LEASE_FILE, stop_file(killed.holder)}
    directory.check_free()
    directory.clear()
    assert not exists(directory.fs, join(directory.path, stop_file(killed.holder)))
    assert rights(ended) == (True, True)  # to clear is not to take


def test_an_end_out_of_reach_is_no_error(output, monkeypatch):
    lease = Lease(output, {}, "one")
    lease.acquire()

    def fail(*_: object) -> None:
        raise OSError("out of reach")

    monkeypatch.setattr(type(lease._place[0]), "rm_file", fail)
    lease.end()


def test_an_actor_gets_it_as_it_is_and_a_log_gets_no_secret(output):
    lease = Lease(output, {"secret": "hush"}, "one")
    lease.acquire()
    copy = pickle.loads(pickle.dumps(lease))
    assert copy == lease
    assert copy.may_begin()
    assert "hush" not in repr(lease)


def test_its_files_are_hidden_from_listings():
    assert LEASE_FILE.startswith(".")
    assert stop_file("a").startswith(".")
