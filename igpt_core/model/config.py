"""ImageGPTConfig: the shape of a model, and VARIANTS, the published sizes."""

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from igpt_core.errors import CheckpointError
from igpt_core.files.model_files import at_revision, model_files

CONFIG_FILE = "config.json"

# Other names of fields, which transformers knows for every model.
_ALIASES = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}

# Properties, which other fields say already.
_DERIVED = {"n_colors", "start_token", "head_size", "inner_size"}

Rule = tuple[str, Callable[[Any], bool]]  # what a value must be, and whether it is

# By type: to isinstance a bool is an int.
_SIZE: Rule = ("an int of 1 or more", lambda value: type(value) is int and value >= 1)
_INNER: Rule = ("an int of 1 or more, or null", lambda value: value is None or _SIZE[1](value))
_FLAG: Rule = ("true or false", lambda value: type(value) is bool)
_NUMBER: Rule = (
    "a finite number of 0 or more",
    lambda value: type(value) in (int, float) and math.isfinite(value) and value >= 0,
)
_SHARE: Rule = ("a number from 0 to 1", lambda value: _NUMBER[1](value) and value <= 1)
_RULES: dict[str, Rule] = {
    **dict.fromkeys(("vocab_size", "n_positions", "n_embd", "n_layer", "n_head"), _SIZE),
    "n_inner": _INNER,
    **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), _SHARE),
    **dict.fromkeys(("layer_norm_epsilon", "initializer_range"), _NUMBER),
    **dict.fromkeys(
        (
            *("scale_attn_weights", "use_cache", "tie_word_embeddings"),
            *("scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn"),
            *("add_cross_attention", "output_attentions", "output_hidden_states", "return_dict"),
        ),
        _FLAG,
    ),
    "activation_function": ("a name", lambda value: isinstance(value, str)),
    "problem_type": ("a name or null", lambda value: value is None or isinstance(value, str)),
}


class ImageGPTConfig:
    """Configuration of an ImageGPT model; fields and defaults as in transformers.

    `id2label` names the classes of a classifier, as a list or by index, and `label2id` is its
    inverse; without either, `num_labels` (2 unless given) makes LABEL_0, LABEL_1 ... Unknown
    keywords are kept as attributes and written back by `to_dict`, so that a config.json of another
    version survives a round trip; those that follow from others, such as `n_colors`, are only held
    against them.

    Raises:
        ValueError: a value of another type or out of its range, a width that the number of heads
            does not divide, the configuration of another kind of model, or labels or other fields
            that contradict each other.
    """

    model_type = "imagegpt"

    # Fields of every transformers configuration that the models read; in the file only where set.
    add_cross_attention = False
    output_attentions = False
    output_hidden_states = False
    return_dict = True
    problem_type: str | None = None

    def __init__(
        self,
        vocab_size: int = 513,
        n_positions: int = 1024,
        n_embd: int = 512,
        n_layer: int = 24,
        n_head: int = 8,
        n_inner: int | None = None,
        activation_function: str = "quick_gelu",
        resid_pdrop: float = 0.1,
        embd_pdrop: float = 0.1,
        attn_pdrop: float = 0.1,
        layer_norm_epsilon: float = 1e-5,
        initializer_range: float = 0.02,
        scale_attn_weights: bool = True,
        use_cache: bool = True,
        tie_word_embeddings: bool = False,
        scale_attn_by_inverse_layer_idx: bool = False,
        reorder_and_upcast_attn: bool = False,
        id2label: Mapping[int, str] | Mapping[str, str] | Sequence[str] | None = None,
        label2id: Mapping[str, int] | None = None,
        num_labels: int | None = None,
        **kwargs: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.n_positions = n_positions
        self.n_embd = n_embd
        self.n_layer = n_layer
        self.n_head = n_head
        self.n_inner = n_inner
        self.activation_function = activation_function
        self.resid_pdrop = resid_pdrop
        self.embd_pdrop = embd_pdrop
        self.attn_pdrop = attn_pdrop
        self.layer_norm_epsilon = layer_norm_epsilon
        self.initializer_range = initializer_range
        self.scale_attn_weights = scale_attn_weights
        self.use_cache = use_cache
        self.tie_word_embeddings = tie_word_embeddings
        self.scale_attn_by_inverse_layer_idx = scale_attn_by_inverse_layer_idx
        self.reorder_and_upcast_attn = reorder_and_upcast_attn
        if kwargs.pop("model_type", self.model_type) != self.model_type:
            raise ValueError(f"config: model_type must be {self.model_type}, the only one here")
        derived = {name: kwargs.pop(name) for name in _DERIVED & kwargs.keys()}
        for name, value in kwargs.items():
            if callable(getattr(type(self), name, None)):
                raise ValueError(f"config: {name} is no field, found {value!r}")
            setattr(self, name, value)
        self._check()
        for name, value in derived.items():
            if value != getattr(self, name):
                raise ValueError(
                    f"config: {name} follows from other fields: it must be {getattr(self, name)}, "
                    f"found {value!r}"
                )
        self._set_labels(id2label, label2id, num_labels)

    def _check(self) -> None:
        for name, (expected, fits) in _RULES.items():
            if not fits(value := getattr(self, name)):
                raise ValueError(f"config: {name} must be {expected}, found {value!r}")
        if self.vocab_size < 2:
            raise ValueError(
                "config: vocab_size counts the colors and the start token, so it must be 2 or "
                f"more, found {self.vocab_size}"
            )
        if self.n_embd % self.n_head:
            raise ValueError(
                f"config: n_embd must be a multiple of n_head, found {self.n_embd} and "
                f"{self.n_head}"
            )

    def _set_labels(
        self,
        id2label: Mapping[int, str] | Mapping[str, str] | Sequence[str] | None,
        label2id: Mapping[str, int] | None,
        num_labels: int | None,
    ) -> None:
        given = None if label2id is None else _indices(label2id)
        if id2label is None and given is None:
            self.num_labels = 2 if num_labels is None else num_labels
            return
        if id2label is None:
            self.id2label = _names({index: name for name, index in (given or {}).items()})
        else:
            self.id2label = _names(id2label)
        if num_labels not in (None, len(self.id2label)):
            raise ValueError(
                f"config: num_labels is {num_labels!r}, but id2label names {len(self.id2label)}"
            )
        inverse = {name: index for index, name in self.id2label.items()}
        self.label2id = inverse if given is None else given
        for name, index in self.label2id.items():
            if self.id2label.get(index) != name:
                raise ValueError(
                    f"config: label2id must be the inverse of id2label, found {name!r} for "
                    f"{index}, which is {self.id2label.get(index)!r}"
                )

    @property
    def num_labels(self) -> int:
        """Counts the classes of a classifier. Setting it to another number makes new names."""
        return len(self.id2label)

    @num_labels.setter
    def num_labels(self, value: int) -> None:
        if not _SIZE[1](value):
            raise ValueError(f"config: num_labels must be {_SIZE[0]}, found {value!r}")
        if len(getattr(self, "id2label", ())) != value:
            self.id2label = {index: f"LABEL_{index}" for index in range(value)}
            self.label2id = {name: index for index, name in self.id2label.items()}

    def __getattr__(self, name: str) -> Any:
        if name in _ALIASES:
            return getattr(self, _ALIASES[name])
        raise AttributeError(f"ImageGPTConfig has no field {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(_ALIASES.get(name, name), value)

    @property
    def n_colors(self) -> int:
        """Counts the colors of the palette: every row of the vocabulary but the start token."""
        return self.vocab_size - 1

    @property
    def start_token(self) -> int:
        """Returns the token in front of every image (SOS): the last row of the input embedding."""
        return self.vocab_size - 1

    @property
    def head_size(self) -> int:
        """Returns the channels of each attention head."""
        return self.n_embd // self.n_head

    @property
    def inner_size(self) -> int:
        """Returns the width of the hidden layer of each MLP."""
        return 4 * self.n_embd if self.n_inner is None else self.n_inner

    def to_dict(self) -> dict[str, Any]:
        """Returns all fields as plain values, those that this class does not know included."""
        return {"model_type": self.model_type, **vars(self)}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "ImageGPTConfig":
        """Makes a configuration of what `to_dict` gave.

        Raises ValueError as the constructor does, and for a field that has two values, one by
        another name of it.
        """
        for alias, name in _ALIASES.items():
            if {alias, name} <= fields.keys() and fields[alias] != fields[name]:
                raise ValueError(
                    f"config: {alias} is another name of {name}, found {fields[alias]!r} and "
                    f"{fields[name]!r}"
                )
        return cls(**fields)

    def with_fields(self, **changes: Any) -> "ImageGPTConfig":
        """Copies with other values of some fields; names of classes that they contradict go.

        Raises TypeError for a name that is no field; ValueError as the constructor does.
        """
        for name in changes:
            if not hasattr(self, name):
                raise TypeError(f"ImageGPTConfig has no field {name!r}")
        changes = {_ALIASES.get(name, name): value for name, value in changes.items()}
        fields = self.to_dict()
        if {"num_labels", "id2label"} & changes.keys():
            del fields["id2label"], fields["label2id"]
        return ImageGPTConfig.from_dict({**fields, **changes})

    @classmethod
    def from_pretrained(
        cls,
        path_or_uri: str | os.PathLike[str],
        *,
        storage_options: Mapping[str, Any] | None = None,
        revision: str | None = None,
    ) -> "ImageGPTConfig":
        """Reads config.json of a model folder; raises CheckpointError, see `model_files`."""
        where = at_revision(path_or_uri, revision)
        (file,) = model_files(where, (CONFIG_FILE,), storage_options=storage_options)
        return read_config(file, where=where)

    def save_pretrained(self, path: str | os.PathLike[str]) -> None:
        """Writes config.json into the local folder `path`, made if need be."""
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG_FILE).write_text(self.to_json(), encoding="utf-8")

    def to_json(self) -> str:
        """Writes the text of config.json, keys sorted."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ImageGPTConfig) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]  # mutable, like a dict

    def __repr__(self) -> str:
        return f"ImageGPTConfig({self.to_json().strip()})"


def _names(
    id2label: Mapping[int, str] | Mapping[str, str] | Sequence[str],
) -> dict[int, str]:
    """Reads the names of the classes 0 to n - 1, in any order; keys of JSON are strings."""
    found: Mapping[Any, Any] | None = None
    if isinstance(id2label, Mapping):
        found = id2label
    elif isinstance(id2label, Sequence) and not isinstance(id2label, str):
        found = dict(enumerate(id2label))
    if found:
        names = {int(i) if str(i).isdecimal() else i: name for i, name in found.items()}
        if {*names} == {*range(len(names))} and all(isinstance(n, str) for n in names.values()):
            return names
    raise ValueError(
        "config: id2label must have a name for each class from 0 on, as a list or by number, found "
        f"{_short(id2label)}"
    )


def _indices(label2id: Mapping[str, int]) -> dict[str, int]:
    """Reads classes by name."""
    if isinstance(label2id, Mapping) and all(str(i).isdecimal() for i in label2id.values()):
        return {name: int(index) for name, index in label2id.items()}
    raise ValueError(
        f"config: label2id must have a class from 0 on for each name, found {_short(label2id)}"
    )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def read_config(file: Path, *, where: str) -> ImageGPTConfig:
    """Reads the configuration in a file of the folder `where`; raises CheckpointError."""
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(fields, dict):
            raise ValueError(f"expected an object, found {type(fields).__name__}")
        return ImageGPTConfig.from_dict(fields)
    except (ValueError, TypeError) as error:  # the latter for a field named `self`
        raise CheckpointError(f"{where}: {file.name}: {error}") from error


VARIANTS: dict[str, ImageGPTConfig] = {
    "small": ImageGPTConfig(n_layer=24, n_embd=512, n_head=8),
    "medium": ImageGPTConfig(n_layer=36, n_embd=1024, n_head=8),
    "large": ImageGPTConfig(n_layer=48, n_embd=1536, n_head=16),
}
"""The configurations of the published checkpoints: small, medium and large."""
