"""Who may work at a run directory: one run at a time, the last that was started."""

import pickle

import pytest

from pipeline.layout import LEASE_FILE
from pipeline.lease import Lease


@pytest.fixture(params=["local", "memory"])
def output(request, tmp_path):
    return str(tmp_path) if request.param == "local" else f"memory://{tmp_path.name}"


def rights(lease: Lease) -> tuple[bool, bool, bool]:
    return lease.may_begin(), lease.may_write(), lease.is_of_another_run()


def test_whoever_took_it_last_has_it(output):
    first, resumed = Lease(output, {}, "one"), Lease(output, {}, "one")
    assert rights(first) == (False, False, False)
    first.take()
    assert rights(first) == (True, True, False)
    resumed.take()
    assert rights(first) == (False, False, False)
    assert rights(resumed) == (True, True, False)
    other = Lease(output, {}, "two")
    other.take()
    assert rights(resumed) == (False, False, True)


def test_a_run_that_stops_begins_nothing_and_writes_what_it_has(output):
    lease = Lease(output, {}, "one")
    lease.take()
    lease.stop()
    assert rights(lease) == (False, True, False)
    lease.release()
    assert rights(lease) == (False, False, False)


def test_only_who_has_it_can_stop_or_release_it(output):
    first, second = Lease(output, {}, "one"), Lease(output, {}, "one")
    first.take()
    second.take()
    first.stop()
    first.release()
    assert rights(second) == (True, True, False)


def test_an_actor_gets_it_as_it_is_and_a_log_gets_no_secret(output):
    lease = Lease(output, {"secret": "hush"}, "one")
    lease.take()
    copy = pickle.loads(pickle.dumps(lease))
    assert copy == lease
    assert copy.may_begin()
    assert "hush" not in repr(lease)


def test_its_file_is_hidden_from_listings():
    assert LEASE_FILE.startswith(".")
