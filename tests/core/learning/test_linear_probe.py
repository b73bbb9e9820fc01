"""LinearProbe against scikit-learn's own pipeline, and saved ones where scikit-learn is missing."""

import sys

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from igpt_core import LinearProbe

LABELS = (3, 7, 8, 40)


def draw(rows, *, seed, width=12, distance=1.5, classes=LABELS):
    """Rows around a center for each class, on features of other scales; one never changes."""
    centers = np.random.default_rng(5).normal(size=(len(classes), width))
    rng = np.random.default_rng(seed)
    place = rng.integers(0, len(classes), rows)
    features = distance * centers[place] + rng.normal(size=(rows, width))
    features = features * np.geomspace(1e-3, 1e3, width) + 50
    features[:, 2] = 0.1
    return features.astype(np.float32), np.array(classes)[place]


@pytest.mark.parametrize("classes", [LABELS, LABELS[:2]], ids=len)
def test_a_probe_is_scikit_learns_fit_to_everything(classes):
    features, labels = draw(400, seed=0, classes=classes)
    fresh, fresh_labels = draw(300, seed=1, classes=classes)
    probe = LinearProbe.fit(features, labels, strengths=(0.03,))
    theirs = make_pipeline(StandardScaler(), LogisticRegression(C=0.03, max_iter=2000))
    theirs.fit(features.astype(np.float64), labels)
    assert probe.classes.tolist() == list(classes)
    assert probe.weights.shape == (len(classes), 12)
    expected = theirs.predict_proba(fresh.astype(np.float64))
    assert np.abs(probe.probabilities(fresh) - expected).max() < 1e-9
    assert np.array_equal(probe.predict(fresh), theirs.predict(fresh.astype(np.float64)))
    assert probe.accuracy(fresh, fresh_labels) == theirs.score(fresh, fresh_labels)


def test_separable_classes_are_told_apart():
    features, labels = draw(300, seed=0, distance=8)
    probe = LinearProbe.fit(features.astype(np.float16), labels)  # as embeddings may be stored
    assert probe.validation_accuracy == 1
    assert probe.accuracy(*draw(300, seed=1, distance=8)) == 1


def test_random_labels_are_told_apart_by_chance():
    # 2,000 fresh rows of 4 classes: the accuracy's standard deviation is 0.0097, so that five of
    # them are passed with odds of 6e-7. 160 validation rows: 0.034 each, the best of four more.
    features, _ = draw(800, seed=0)
    rng = np.random.default_rng(9)
    probe = LinearProbe.fit(features, rng.integers(0, 4, 800))
    fresh, _ = draw(2000, seed=1)
    assert abs(probe.accuracy(fresh, rng.integers(0, 4, 2000)) - 0.25) < 0.05
    assert abs(probe.validation_accuracy - 0.25) < 0.2
    assert probe.accuracy(features, rng.permutation(probe.predict(features))) < 0.4


def test_the_strength_is_the_one_that_does_best_on_rows_held_out():
    features, labels = draw(200, seed=0)
    weak, strong, other = (
        LinearProbe.fit(features, labels, strengths=(strength,)) for strength in (1e-9, 1.0, 1.5)
    )
    assert weak.validation_accuracy < 0.5 < strong.validation_accuracy
    for strengths in [(1e-9, 1.0), (1.0, 1e-9)]:
        probe = LinearProbe.fit(features, labels, strengths=strengths)
        assert probe.strength == 1.0
        assert probe.validation_accuracy == strong.validation_accuracy
        assert np.array_equal(probe.weights, strong.weights)
    assert strong.validation_accuracy == other.validation_accuracy
    assert LinearProbe.fit(features, labels, strengths=(1.0, 1.5)).strength == 1.0
    assert LinearProbe.fit(features, labels, strengths=(1.5, 1.0)).strength == 1.5


def test_validation_rows_are_not_fitted_to():
    # Labels that features say nothing about, learnt by heart: only rows that were held out
    # would be told by chance, 0.5 +- 0.07 for 60 of them.
    rng = np.random.default_rng(3)
    features, labels = rng.normal(size=(300, 400)), rng.integers(0, 2, 300)
    probe = LinearProbe.fit(features, labels, strengths=(1e3,))
    assert probe.accuracy(features, labels) == 1
    assert abs(probe.validation_accuracy - 0.5) < 0.3  # four standard deviations


def test_the_seed_decides_which_rows_are_held_out_and_nothing_else_does():
    features, labels = draw(200, seed=0, distance=0.5)
    one, same, other = (LinearProbe.fit(features, labels, seed=seed) for seed in (1, 1, 2))
    assert one.validation_accuracy == same.validation_accuracy != other.validation_accuracy
    assert np.array_equal(one.weights, same.weights)


def test_rare_classes_are_learnt():
    features, labels = draw(60, seed=0, distance=8)
    whole = np.flatnonzero(labels != 8)
    rare = np.flatnonzero(labels == 8)
    for rows in (rare[:1], rare[:2], rare[:3]):
        kept = np.concatenate([whole, rows])
        probe = LinearProbe.fit(features[kept], labels[kept], strengths=(1.0,))
        assert probe.classes.tolist() == list(LABELS)
        assert (probe.predict(features[rows]) == 8).all()
    # The one row of the second class is not held out: one class alone cannot be fitted.
    few = LinearProbe.fit(features[:4], np.array([0, 0, 1, 0]), strengths=(1.0,))
    assert few.classes.tolist() == [0, 1]


def test_a_saved_probe_predicts_without_scikit_learn(tmp_path, monkeypatch):
    features, labels = draw(100, seed=0)
    names = tuple(f"klass-{i} ü" for i in range(41))
    probe = LinearProbe.fit(features, labels, names=names, layer=3)
    bare = LinearProbe.fit(features, labels)
    probe.save(tmp_path / "probe.npz")
    bare.save(tmp_path / "bare")  # the name stays as it is
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bare", "probe.npz"]
    for module in [name for name in sys.modules if name.partition(".")[0] == "sklearn"]:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"pip install 'igpt\[probe\]'"):
        LinearProbe.fit(features, labels)
    loaded = LinearProbe.load(str(tmp_path / "probe.npz"))
    assert np.array_equal(loaded.probabilities(features), probe.probabilities(features))
    assert np.array_equal(loaded.predict(features), probe.predict(features))
    assert (loaded.names, loaded.layer) == (names, 3)
    assert loaded.strength == probe.strength
    assert loaded.validation_accuracy == probe.validation_accuracy
    assert loaded.predict(features).dtype == np.int64
    loaded = LinearProbe.load(tmp_path / "bare")
    assert (loaded.names, loaded.layer) == (None, None)
    assert np.array_equal(loaded.probabilities(features), bare.probabilities(features))


def test_saving_twice_gives_the_same_bytes(tmp_path):
    probe = LinearProbe.fit(*draw(100, seed=0))
    for name in ("one", "two"):
        probe.save(tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def broken_files(folder):
    LinearProbe.fit(*draw(100, seed=0)).save(folder / "whole")
    whole = (folder / "whole").read_bytes()
    with np.load(folder / "whole") as file:
        parts = dict(file)
    np.savez(folder / "narrow.npz", **{**parts, "mean": parts["mean"][1:]})
    np.savez(folder / "pickled.npz", **{**parts, "biases": np.array([{}] * 4, object)})
    np.savez(folder / "scalar.npz", **{**parts, "classes": np.int64(3)})
    np.savez(folder / "less.npz", weights=parts["weights"])
    np.save(folder / "array.npy", parts["weights"])
    (folder / "cut").write_bytes(whole[: len(whole) // 2])
    (folder / "flipped").write_bytes(whole[:900] + bytes([whole[900] ^ 1]) + whole[901:])
    (folder / "text").write_text("a probe")
    (folder / "empty").write_bytes(b"")
    return sorted(path for path in folder.iterdir() if path.name != "whole")


def test_files_that_hold_no_probe_are_refused(tmp_path):
    for path in broken_files(tmp_path):
        with pytest.raises(ValueError, match="is no linear probe") as error:
            LinearProbe.load(path)
        assert str(error.value).startswith(str(path))
        assert "\n" not in str(error.value)
    with pytest.raises(FileNotFoundError):
        LinearProbe.load(tmp_path / "missing")


def test_what_cannot_be_fitted_is_refused():
    features, labels = draw(50, seed=0)
    cases = [
        ((features[0], labels), {}, r"float features \(N, C\), found float32 \(12,\)"),
        ((features.astype(np.int64), labels), {}, "float features .* found int64"),
        ((features[:0], labels[:0]), {}, r"found float32 \(0, 12\)"),
        ((features * np.float32("nan"), labels), {}, "finite features, found infinite ones or NaN"),
        ((features, labels[1:]), {}, r"labels \(50,\), .* found int64 \(49,\)"),
        ((features, labels / 2), {}, "integer labels .* found float64"),
        ((features, labels * 0), {}, "two classes at least, one of them three times, found 1 in"),
        ((features[:4], np.array([0, 0, 1, 1])), {}, "one of them three times, found 2 in 4 rows"),
        ((features, labels), {"strengths": ()}, "one strength at least"),
        ((features, labels), {"names": ["a"] * 40}, "labels from 0 to 39, which .* found 3 to 40"),
    ]
    for arguments, options, complaint in cases:
        with pytest.raises(ValueError, match=complaint):
            LinearProbe.fit(*arguments, **options)
    probe = LinearProbe.fit(features, labels, layer=6)
    for method in (probe.predict, probe.probabilities):
        with pytest.raises(ValueError, match="12 features per row, those of layer 6, found 11"):
            method(features[:, 1:])
    with pytest.raises(ValueError, match=r"labels \(50,\), .* found int64 \(50, 1\)"):
        probe.accuracy(features, labels[:, None])


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("width", [36, 192])
def test_a_row_is_predicted_alike_at_each_place(width, classes):
    """Past bug: a product of BLAS gave the rows at the end other last bits."""
    rng = np.random.default_rng(0)
    probe = LinearProbe(
        weights=rng.normal(size=(classes, width)),
        biases=rng.normal(size=classes),
        mean=rng.normal(size=width),
        scale=rng.uniform(0.5, 2, width),
        classes=np.arange(classes),
        strength=1.0,
        validation_accuracy=1.0,
    )
    row = rng.normal(size=(1, width))
    for rows in range(1, 34):
        found = probe.probabilities(row.repeat(rows, axis=0))
        assert (found == probe.probabilities(row)).all(), rows
