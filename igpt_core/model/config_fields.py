"""Fields of a configuration: what each value must be, and the names of classes."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Rule = tuple[str, Callable[[Any], bool]]  # what a value must be, and whether it is

# By type: to isinstance a bool is an int.
SIZE: Rule = ("an int of 1 or more", lambda value: type(value) is int and value >= 1)
_INNER: Rule = ("an int of 1 or more, or null", lambda value: value is None or SIZE[1](value))
_FLAG: Rule = ("true or false", lambda value: type(value) is bool)
_NUMBER: Rule = (
    "a finite number of 0 or more",
    lambda value: type(value) in (int, float) and math.isfinite(value) and value >= 0,
)
_SHARE: Rule = ("a number from 0 to 1", lambda value: _NUMBER[1](value) and value <= 1)
RULES: dict[str, Rule] = {
    **dict.fromkeys(("vocab_size", "n_positions", "n_embd", "n_layer", "n_head"), SIZE),
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


def class_names(
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
        f"{short(id2label)}"
    )


def class_indices(label2id: Mapping[str, int]) -> dict[str, int]:
    """Reads classes by name."""
    if isinstance(label2id, Mapping) and all(str(i).isdecimal() for i in label2id.values()):
        return {name: int(index) for name, index in label2id.items()}
    raise ValueError(
        f"config: label2id must have a class from 0 on for each name, found {short(label2id)}"
    )


def inverse_names(id2label: Mapping[int, str]) -> dict[str, int]:
    return {name: index for index, name in id2label.items()}


def short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
