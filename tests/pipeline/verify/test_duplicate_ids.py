"""Repeated ids, against counting them all."""

from collections import Counter

import numpy as np
import pytest

from pipeline.verify import duplicate_ids
from pipeline.verify.duplicate_ids import hashes, repeated_ids


def repeated(parts: list[list[str]]) -> dict[str, list[int]]:
    return dict(repeated_ids([hashes(ids) for ids in parts], lambda place: parts[place]))


def test_the_same_as_counting_them():
    rng = np.random.default_rng(0)
    parts = [[f"row-{n}" for n in rng.integers(0, 20_000, 300)] for _ in range(30)]
    counts = Counter(id_ for ids in parts for id_ in ids)
    expected = {
        id_: [place for place, ids in enumerate(parts) for _ in range(ids.count(id_))]
        for id_, n in counts.items()
        if n > 1
    }
    assert expected
    assert repeated(parts) == expected


def test_only_parts_with_repeated_hashes_are_read_again():
    parts = [["a", "b"], ["c"], ["d", "a"]]
    read = []
    given = [hashes(ids) for ids in parts]
    found = dict(repeated_ids(given, lambda place: read.append(place) or parts[place]))
    assert found == {"a": [0, 2]}
    assert read == [0, 2]


def test_different_ids_of_one_hash_are_no_repetition(monkeypatch):
    short = lambda ids: np.array([len(id_) for id_ in ids], np.int64)  # noqa: E731
    monkeypatch.setattr(duplicate_ids, "hashes", short)
    parts = [["aa", "b"], ["cc", "d"], ["aa"]]
    found = dict(repeated_ids([short(ids) for ids in parts], lambda place: parts[place]))
    assert found == {"aa": [0, 2]}


@pytest.mark.parametrize("parts", [[], [[]], [["a"]], [["a"], []]])
def test_none(parts):
    assert repeated(parts) == {}
