"""ImageGPTConfig: the shape of a model, and VARIANTS, the published sizes."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from igpt_core.errors import CheckpointError
from igpt_core.files.loading import FetchOptions, refuse_push, refuse_without_meaning
from igpt_core.files.model_files import at_revision, model_files
from igpt_core.model.config_fields import RULES, SIZE, class_indices, class_names, inverse_names
from igpt_core.model.passing import PassesAs

CONFIG_FILE = "config.json"

# Other names of fields, which transformers knows for every model.
_ALIASES = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}

# Properties, which other fields say already.
_DERIVED = {"n_colors", "start_token", "head_size", "inner_size", "use_return_dict"}

_DTYPES = ("dtype", "torch_dtype")  # of the stored weights: the name in files, and its former one


class ImageGPTConfig(PassesAs):
    """Configuration of an ImageGPT model; fields and defaults as in transformers.

    `id2label` names the classes of a classifier, as a list or by index, and `label2id` is its
    inverse; without either, `num_labels` (2 unless given) makes LABEL_0, LABEL_1 ... Unknown
    keywords are kept as attributes and written back by `to_dict`, so that a config.json of another
    version survives a round trip; those that follow from others, such as `n_colors`, are only held
    against them. Fields of every transformers configuration that nothing here sets, such as
    `eos_token_id`, read None or False as there; `dtype` and `torch_dtype` read alike, as a name.

    Raises:
        ValueError: a value of another type or out of its range, a width that the number of heads
            does not divide, the configuration of another kind of model, or labels or other fields
            that contradict each other.
    """

    model_type = "imagegpt"
    passes_as = ("transformers.configuration_utils", "PreTrainedConfig")

    # Fields of every transformers configuration that the models read; in the file only where set.
    add_cross_attention = False
    output_attentions = False
    output_hidden_states = False
    return_dict = True
    problem_type: str | None = None

    # Others that callers read and no model here does; in the file only where set.
    architectures: list[str] | None = None
    bos_token_id: int | None = None
    chunk_size_feed_forward = 0
    cross_attention_hidden_size: int | None = None
    decoder_start_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    finetuning_task: str | None = None
    is_decoder = False
    is_encoder_decoder = False
    pad_token_id: int | None = None
    prefix: str | None = None
    sep_token_id: int | None = None
    task_specific_params: dict[str, Any] | None = None
    tie_encoder_decoder = False
    tokenizer_class: str | None = None
    transformers_version: str | None = None
    _name_or_path = ""
    id2label: dict[int, str]
    label2id: dict[str, int]
    _attn_implementation = "sdpa"

    attribute_map = _ALIASES
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]

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
        for name, (expected, fits) in RULES.items():
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
        given = None if label2id is None else class_indices(label2id)
        if id2label is None and given is None:
            self.num_labels = 2 if num_labels is None else num_labels
            return
        if id2label is None:
            self.id2label = {index: name for name, index in (given or {}).items()}
        else:
            self.id2label = class_names(id2label)
        if num_labels not in (None, len(self.id2label)):
            raise ValueError(
                f"config: num_labels is {num_labels!r}, but id2label names {len(self.id2label)}"
            )
        self.label2id = self.label2id if given is None else given
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
        if not SIZE[1](value):
            raise ValueError(f"config: num_labels must be {SIZE[0]}, found {value!r}")
        if len(vars(self).get("id2label", ())) != value:
            self.id2label = {index: f"LABEL_{index}" for index in range(value)}

    @property
    def attn_implementation(self) -> str:
        """Returns how attention is computed: "sdpa", by the fastest kernel of the device, or
        "eager", without one, which is slower and has gradients of any order. It is of the model
        that is made, and in no file."""
        return self._attn_implementation

    @attn_implementation.setter
    def attn_implementation(self, value: str | None) -> None:
        if value not in (None, "sdpa", "eager"):
            raise ValueError(
                "config: attn_implementation must be 'sdpa', which takes the fastest kernel of the "
                f"device, or 'eager', found {value!r}"
            )
        self._attn_implementation = value or "sdpa"

    @property
    def use_return_dict(self) -> bool:
        """Returns `return_dict`, of which this is the former name."""
        return self.return_dict

    @property
    def name_or_path(self) -> str:
        """Returns what a file says of the place that the model came from, "" where it says nothing.
        Setting it keeps the text of a path."""
        return self._name_or_path

    @name_or_path.setter
    def name_or_path(self, value: str | os.PathLike[str]) -> None:
        self._name_or_path = os.fspath(value)

    def __getattr__(self, name: str) -> Any:
        if name in _ALIASES:
            return getattr(self, _ALIASES[name])
        if name in _DTYPES:
            return next((vars(self)[other] for other in _DTYPES if other in vars(self)), None)
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _DTYPES and value is not None:
            value = str(value).removeprefix("torch.")
        if name == "id2label":
            value = class_names(value)
            super().__setattr__("label2id", inverse_names(value))
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

    def get_text_config(self, **_: Any) -> "ImageGPTConfig":
        """Returns itself: there is no other part than the transformer."""
        return self

    def to_dict(self) -> dict[str, Any]:
        """Returns all fields as plain values, those that this class does not know included."""
        fields = {name: v for name, v in vars(self).items() if name != "_attn_implementation"}
        return {"model_type": self.model_type, **fields}

    def update_from_string(self, update_str: str) -> None:
        """Sets fields from such as "n_layer=2,use_cache=false", each of the type that it has.

        Raises ValueError as `update` does, for a name that is no field and for text of another
        type.
        """
        changes = {}
        for part in update_str.split(","):
            name, separator, text = (word.strip() for word in part.partition("="))
            old = getattr(self, name, None)
            if not separator or not isinstance(old, bool | int | float | str):
                raise ValueError(f"config: expected name=value of a field, found {part!r}")
            truths = {"true": True, "false": False}
            try:
                changes[name] = truths[text] if isinstance(old, bool) else type(old)(text)
            except (ValueError, KeyError) as error:
                kind = "true or false" if isinstance(old, bool) else f"a {type(old).__name__}"
                raise ValueError(f"config: {name} must be {kind}, found {text!r}") from error
        self.update(changes)

    def to_diff_dict(self) -> dict[str, Any]:
        """Returns what `to_dict` does but the fields of every transformers configuration that have
        their default, and `_name_or_path`; transformers' files hold as much."""
        names = {index: f"LABEL_{index}" for index in range(2)}
        defaults = {**vars(ImageGPTConfig), "id2label": names, "label2id": inverse_names(names)}
        return {
            name: value
            for name, value in self.to_dict().items()
            if name == "model_type"
            or (name != "_name_or_path" and (name not in defaults or defaults[name] != value))
        }

    @classmethod
    def from_dict(
        cls, config_dict: Mapping[str, Any], *, return_unused_kwargs: bool = False, **kwargs: Any
    ) -> "ImageGPTConfig":
        """Makes a configuration of what `to_dict` or `to_diff_dict` gave.

        Args:
            config_dict: fields by name.
            return_unused_kwargs: return a pair, the configuration and those of `kwargs` that are no
                fields, in place of a TypeError for these.
            kwargs: fields that beat those of `config_dict`.

        Raises ValueError as the constructor does, and for a field that has two values, one by
        another name of it.
        """
        return _from_fields(config_dict)._overridden(kwargs, return_unused_kwargs)

    def with_fields(self, **changes: Any) -> "ImageGPTConfig":
        """Copies with other values of some fields; names of classes that they contradict go.

        Raises TypeError for a name that is no field; ValueError as the constructor does.
        """
        for name in changes:
            if not self.has_field(name):
                raise TypeError(f"ImageGPTConfig has no field {name!r}")
        return self._changed(changes)

    def has_field(self, name: str) -> bool:
        """Tells whether it may be set, by any of its names."""
        return name in vars(self) or name in (*_ALIASES, *_DTYPES) or hasattr(type(self), name)

    def update(self, config_dict: Mapping[str, Any]) -> None:
        """Sets fields, new ones too, in place; names of classes that they contradict go.

        Raises ValueError as the constructor does, and sets none then.
        """
        vars(self).update(vars(self._changed(config_dict)))

    def _changed(self, changes: Mapping[str, Any]) -> "ImageGPTConfig":
        changes = {_ALIASES.get(name, name): value for name, value in changes.items()}
        fields = {**self.to_dict(), "attn_implementation": self._attn_implementation}
        if {"num_labels", "id2label"} & changes.keys():
            del fields["id2label"], fields["label2id"]
        return _from_fields({**fields, **changes})

    def _overridden(
        self, kwargs: Mapping[str, Any], return_unused_kwargs: bool
    ) -> "ImageGPTConfig":
        # Typed as what nearly every caller gets.
        if not return_unused_kwargs:
            return self.with_fields(**kwargs)
        unused = {name: value for name, value in kwargs.items() if not self.has_field(name)}
        fields = {name: value for name, value in kwargs.items() if name not in unused}
        return self.with_fields(**fields), unused  # type: ignore[return-value]

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        storage_options: Mapping[str, Any] | None = None,
        revision: str | None = None,
        return_unused_kwargs: bool = False,
        **kwargs: Any,
    ) -> "ImageGPTConfig":
        """Reads config.json of a model folder, or a file of that kind.

        Args:
            pretrained_model_name_or_path, storage_options, revision: as for
                `ImageGPTPreTrainedModel.from_pretrained`; or a local file.
            return_unused_kwargs: return a pair, the configuration and those of `kwargs` that are no
                fields, in place of a TypeError for these.
            kwargs: fields that beat those of the file, such as num_labels; `subfolder`, and
                `cache_dir`, `token`, `local_files_only` and `force_download` of the Hub; those of
                transformers that change nothing here.

        Raises:
            CheckpointError: see `model_files`; or a file that is no configuration.
            ValueError: a field of `kwargs` with a wrong value, as for the constructor.
            TypeError: an argument that asks for what is not there, or is none.
        """
        where, file = _find_file(
            pretrained_model_name_or_path,
            kwargs,
            revision=revision,
            storage_options=storage_options,
        )
        return read_config(file, where=where)._overridden(kwargs, return_unused_kwargs)

    @classmethod
    def get_config_dict(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        storage_options: Mapping[str, Any] | None = None,
        revision: str | None = None,
        **kwargs: Any,
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Reads the fields that `from_pretrained` would make a configuration of, as they stand in
        the file; returns them and those of `kwargs` that say nothing of its place.

        Raises CheckpointError and TypeError as `from_pretrained` does.
        """
        where, file = _find_file(
            pretrained_model_name_or_path,
            kwargs,
            revision=revision,
            storage_options=storage_options,
        )
        return _read_fields(file, where=where), kwargs

    @classmethod
    def from_json_file(cls, json_file: str | os.PathLike[str]) -> "ImageGPTConfig":
        """Reads a file as `to_json_file` writes it; raises CheckpointError, or OSError for none."""
        file = Path(json_file)
        return read_config(file, where=str(file.parent))

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], push_to_hub: bool = False
    ) -> None:
        """Writes config.json, with all fields, into a local folder, made if need be.

        Raises TypeError for `push_to_hub`.
        """
        refuse_push(push_to_hub)
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        self.to_json_file(folder / CONFIG_FILE, use_diff=False)

    def to_json(self) -> str:
        """Writes the text of config.json: all fields, keys sorted."""
        return self.to_json_string(use_diff=False)

    def to_json_string(self, use_diff: bool = True) -> str:
        """Writes the text of a file, keys sorted: the fields of `to_diff_dict`, or all of them."""
        fields = self.to_diff_dict() if use_diff else self.to_dict()
        return json.dumps(fields, indent=2, sort_keys=True) + "\n"

    def to_json_file(self, json_file_path: str | os.PathLike[str], use_diff: bool = True) -> None:
        """Writes what `to_json_string` returns into a file of a folder that is there."""
        Path(json_file_path).write_text(self.to_json_string(use_diff), encoding="utf-8")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ImageGPTConfig) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]  # mutable, like a dict

    def __repr__(self) -> str:
        return f"ImageGPTConfig({self.to_json().strip()})"


def _from_fields(fields: Mapping[str, Any]) -> ImageGPTConfig:
    """Makes a configuration; raises ValueError where a field and another name of it differ."""
    for alias, name in _ALIASES.items():
        if {alias, name} <= fields.keys() and fields[alias] != fields[name]:
            raise ValueError(
                f"config: {alias} is another name of {name}, found {fields[alias]!r} and "
                f"{fields[name]!r}"
            )
    return ImageGPTConfig(**fields)


def _find_file(
    path: str | os.PathLike[str],
    arguments: dict[str, Any],
    *,
    revision: str | None,
    storage_options: Mapping[str, Any] | None,
) -> tuple[str, Path]:
    """Returns the folder, for messages, and its config.json; takes what says where they are and
    what means nothing here out of `arguments`."""
    fetch = FetchOptions.taken_from(arguments)
    refuse_without_meaning(arguments)
    if not fetch.subfolder and os.path.isfile(path):
        return os.path.dirname(path) or ".", Path(path)
    where = at_revision(path, revision)
    (file,) = model_files(where, (CONFIG_FILE,), storage_options=storage_options, fetch=fetch)
    return where, file


def _read_fields(file: Path, *, where: str) -> dict[str, Any]:
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(fields, dict):
            raise ValueError(f"expected an object, found {type(fields).__name__}")
    except ValueError as error:
        raise CheckpointError(f"{where}: {file.name}: {error}") from error
    return fields


def read_config(file: Path, *, where: str) -> ImageGPTConfig:
    """Reads the configuration in a file of the folder `where`; raises CheckpointError."""
    fields = _read_fields(file, where=where)
    try:
        return _from_fields(fields)
    except (ValueError, TypeError) as error:  # the latter for a field named `self`
        raise CheckpointError(f"{where}: {file.name}: {error}") from error


VARIANTS: dict[str, ImageGPTConfig] = {
    "small": ImageGPTConfig(n_layer=24, n_embd=512, n_head=8),
    "medium": ImageGPTConfig(n_layer=36, n_embd=1024, n_head=8),
    "large": ImageGPTConfig(n_layer=48, n_embd=1536, n_head=16),
}
"""The configurations of the published checkpoints: small, medium and large."""
