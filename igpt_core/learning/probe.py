"""LinearProbe: how well a linear classifier tells classes by features, such as a layer's means.

scikit-learn fits it, which the extra `probe` installs; predicting takes numpy alone.
"""

import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray

from igpt_core.errors import check_whole
from igpt_core.images.color_table import save_atomically

STRENGTHS = (0.01, 0.1, 1.0, 10.0)
MAX_ITERATIONS = 2000  # hundreds are usual where regularization is weak

Floats = NDArray[np.floating[Any]]
Doubles = NDArray[np.float64]
Labels = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class LinearProbe:
    """Multinomial logistic regression on standardized features: C of them, K classes.

    Attributes:
        weights: (K, C) float64, for standardized features.
        biases: (K,) float64.
        mean, scale: (C,) float64; features are standardized as (x - mean) / scale.
        classes: (K,) int64, ascending: the labels that it was fitted to.
        strength: C of the logistic regression, the inverse of its regularization.
        validation_accuracy: on the fifth that was held out while the strength was chosen.
        names: where known, the name of label i at place i.
        layer: where known, the layer that the features are of.
    """

    weights: Doubles
    biases: Doubles
    mean: Doubles
    scale: Doubles
    classes: Labels
    strength: float
    validation_accuracy: float
    names: tuple[str, ...] | None = None
    layer: int | None = None

    def __post_init__(self) -> None:
        k, c = len(self.classes), len(self.mean)
        shapes = {"weights": (k, c), "biases": (k,), "mean": (c,), "scale": (c,), "classes": (k,)}
        for name, shape in shapes.items():
            if (found := getattr(self, name).shape) != shape:
                raise ValueError(f"probe: expected {name} {shape}, found {found}")
        if self.layer is not None:
            layer = check_whole("probe: layer", self.layer, least=0)
            object.__setattr__(self, "layer", layer)

    @classmethod
    def fit(
        cls,
        features: Floats,
        labels: Labels,
        *,
        strengths: Sequence[float] = STRENGTHS,
        seed: int = 0,
        names: Sequence[str] | None = None,
        layer: int | None = None,
    ) -> Self:
        """Chooses C on a validation fifth of each class, then fits to everything.

        Args:
            features: (N, C), any float dtype.
            labels: (N,) of any integer dtype, two classes at least, one of them of three rows or
                more.
            strengths: values of C, the inverse regularization, above 0, to choose from; of equally
                good ones the first is taken.
            seed: of the choice of validation rows, 0 or more; the same seed gives the same probe.
            names, layer: kept with the probe.

        Raises:
            ImportError: scikit-learn is not installed.
            ValueError: shapes that do not fit together, features that are not finite, labels that
                there is nothing to learn from or that have no name, no strengths, a negative seed
                or layer.
            TypeError: a seed or a layer that is no whole number.
        """
        seed = check_whole("probe: seed", seed, least=0)
        features = _doubles(features)
        labels = _checked_labels(labels, len(features), names)
        if not len(strengths):
            raise ValueError("probe: expected one strength at least, found none")
        validation = _validation(labels, seed)
        accuracies = [
            _regression(strength)
            .fit(features[~validation], labels[~validation])
            .score(features[validation], labels[validation])
            for strength in strengths
        ]
        best = int(np.argmax(accuracies))
        scaler, classifier = _regression(strengths[best]).fit(features, labels)
        weights, biases = classifier.coef_, classifier.intercept_
        if len(weights) == 1:  # of two classes scikit-learn has the logit of the second alone
            weights, biases = (np.concatenate([0 * part, part]) for part in (weights, biases))
        return cls(
            weights=weights,
            biases=biases,
            mean=scaler.mean_,
            scale=scaler.scale_,
            classes=classifier.classes_.astype(np.int64),
            strength=float(strengths[best]),
            validation_accuracy=float(accuracies[best]),
            names=None if names is None else tuple(names),
            layer=layer,
        )

    def predict(self, features: Floats) -> Labels:
        """Predicts the most probable class (N,) int64 of features (N, C).

        Raises ValueError for another shape.
        """
        return self.classes[self._logits(features).argmax(axis=1)]  # type: ignore[no-any-return]

    def probabilities(self, features: Floats) -> Doubles:
        """Predicts the probabilities (N, K) float64 of the classes for features (N, C).

        Raises ValueError for another shape.
        """
        logits = self._logits(features)
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
        return exponentials / exponentials.sum(axis=1, keepdims=True)  # type: ignore[no-any-return]

    def accuracy(self, features: Floats, labels: Labels) -> float:
        """Computes the share of rows (N, C) whose most probable class is their label (N,), of any
        integer dtype.

        Raises ValueError for shapes that do not fit together.
        """
        labels = _checked_labels(labels, len(features), None)
        return float((self.predict(features) == labels).mean())

    def _logits(self, features: Floats) -> Doubles:
        features = _doubles(features)
        if features.shape[1] != len(self.mean):
            raise ValueError(
                f"probe: expected {len(self.mean)} features per row"
                + (f", those of layer {self.layer}" if self.layer is not None else "")
                + f", found {features.shape[1]}"
            )
        weights = self.weights / self.scale  # standardizes without a copy of the features
        # Of BLAS's product a row's last bit depends on its place among the rows.
        logits: Doubles = np.einsum("nc,kc->nk", features, weights)
        return logits + (self.biases - weights @ self.mean)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes an .npz of the attributes, without those that are None; it appears complete."""
        known = {name: value for name, value in vars(self).items() if value is not None}
        save_atomically(Path(path), lambda file: np.savez(file, **known))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Reads what `save` wrote. ValueError for another content."""
        try:
            with np.load(path, allow_pickle=False) as file:
                return cls(
                    **{name: file[name] for name in ("weights", "biases", "mean", "scale")},
                    classes=file["classes"],
                    strength=float(file["strength"]),
                    validation_accuracy=float(file["validation_accuracy"]),
                    names=tuple(file["names"].tolist()) if "names" in file else None,
                    layer=int(file["layer"]) if "layer" in file else None,
                )
        except (ValueError, TypeError, EOFError, KeyError, zipfile.BadZipFile) as error:
            raise ValueError(
                f"{path} is no linear probe (.npz, see LinearProbe): {error}"
            ) from error


def _doubles(features: npt.ArrayLike) -> Doubles:
    features = np.asarray(features)
    if features.ndim != 2 or features.dtype.kind != "f" or not features.size:
        raise ValueError(
            f"probe: expected float features (N, C), found {features.dtype} {features.shape}"
        )
    if not np.isfinite(features).all():
        raise ValueError("probe: expected finite features, found infinite ones or NaN")
    return features.astype(np.float64)


def _checked_labels(labels: npt.ArrayLike, n_rows: int, names: Sequence[str] | None) -> Labels:
    labels = np.asarray(labels)
    if labels.shape != (n_rows,) or labels.dtype.kind not in "iu":
        raise ValueError(
            f"probe: expected integer labels ({n_rows},), one for each row of features, found "
            f"{labels.dtype} {labels.shape}"
        )
    if names is not None and not 0 <= labels.min() <= labels.max() < len(names):
        raise ValueError(
            f"probe: expected labels from 0 to {len(names) - 1}, which have names, found "
            f"{labels.min()} to {labels.max()}"
        )
    return labels.astype(np.int64)


def _validation(labels: Labels, seed: int) -> NDArray[np.bool_]:
    """Chooses rows to hold out, (N,): a fifth of each class, none of one or two rows, and never all
    of it."""
    rng = np.random.default_rng(seed)
    validation = np.zeros(len(labels), np.bool_)
    classes, counts = np.unique(labels, return_counts=True)
    if len(classes) < 2 or counts.max() < 3:
        raise ValueError(
            "probe: expected labels of two classes at least, one of them three times, found "
            f"{len(classes)} in {len(labels)} rows"
        )
    for label, count in zip(classes, counts, strict=True):
        members = rng.permutation(np.flatnonzero(labels == label))
        validation[members[: round(count / 5)]] = True
    return validation


def _regression(strength: float) -> Any:
    """Makes scikit-learn's pipeline of StandardScaler and LogisticRegression, not yet fitted."""
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError as error:
        raise ImportError(
            "a linear probe is fitted by scikit-learn: pip install 'igpt[probe]'"
        ) from error
    classifier = LogisticRegression(C=strength, solver="lbfgs", max_iter=MAX_ITERATIONS)
    return make_pipeline(StandardScaler(), classifier)
