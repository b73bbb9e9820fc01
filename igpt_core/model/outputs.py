"""What the model classes return: fields by name, by key and by position."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from igpt_core.model.kv_cache import KVCache
from igpt_core.model.passing import PassesAs


class Output(PassesAs, dict[str, Any]):
    """Fields by name; those that are not None also by key and by position, as in transformers.

    It is a dict, and a node of torch's pytrees, so that what rebuilds the outputs of a model works:
    mixed precision of accelerate, a Trainer, DataParallel, torch.export.
    """

    passes_as = ("transformers.utils.generic", "ModelOutput")
    _names: tuple[str, ...] = ()

    def __init_subclass__(cls) -> None:
        if "_derived_from" in vars(cls):  # what it passes as
            return
        cls._names = (*cls._names, *(n for n in cls.__annotations__ if n not in cls._names))
        pytree.register_pytree_node(
            cls,
            _flattened,
            lambda values, names: cls(zip(names, values, strict=True)),
            flatten_with_keys_fn=_flattened_with_keys,
            serialized_type_name=f"{cls.__module__}.{cls.__qualname__}",
        )

    def __init__(
        self, fields: Mapping[str, Any] | Iterable[tuple[str, Any]] = (), /, **named: Any
    ) -> None:
        """Takes fields by name, or as a mapping or pairs. Raises TypeError for others."""
        dict.__init__(self)
        given = dict(fields, **named)
        if unknown := [name for name in given if name not in self._names]:
            raise TypeError(f"{type(self).__name__} has no field {unknown[0]!r}")
        for name in self._names:
            setattr(self, name, given.get(name))

    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)
        if value is None:
            dict.pop(self, name, None)
        elif name in self._names:
            dict.__setitem__(self, name, value)

    def __setitem__(self, key: str, value: Any) -> None:
        setattr(self, key, value)

    def update(self, *fields: Any, **named: Any) -> None:
        """Sets fields by name."""
        for name, value in dict(*fields, **named).items():
            self[name] = value

    def __getitem__(self, key: int | slice | str) -> Any:
        return dict.__getitem__(self, key) if isinstance(key, str) else self.to_tuple()[key]

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (dict(self),)

    def to_tuple(self) -> tuple[Any, ...]:
        """Returns the fields that are not None, in order."""
        return tuple(self[name] for name in self._names if name in self)


def _flattened(output: Output) -> tuple[list[Any], list[str]]:
    return list(output.values()), list(output)


def _flattened_with_keys(
    output: Output,
) -> tuple[list[tuple[pytree.KeyEntry, Any]], list[str]]:
    return [(pytree.MappingKey(name), value) for name, value in output.items()], list(output)


class ModelOutput(Output):
    """What every class returns of the transformer; T positions given, Tk with those of the cache.

    Attributes:
        last_hidden_state: (B, T, C), after the final norm.
        past_key_values: keys and values of the Tk positions.
        hidden_states: L + 1 of (B, T, C); 0 is the embedding, L the last hidden state.
        attentions: L of (B, H, T, Tk), the weights as they met the values: after dropout and
            head_mask.
        cross_attentions: the same over the S positions of the encoder, (B, H, T, S).
    """

    last_hidden_state: Tensor
    past_key_values: KVCache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None


class CausalOutput(Output):
    """Loss () in nats, logits (B, T, V) of the next pixel's color; the rest as in ModelOutput."""

    loss: Tensor | None
    logits: Tensor
    past_key_values: KVCache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None


class GenerateOutput(Output):
    """Tokens (R, L) int64; of each step the filtered logits (R, V), -inf for what is excluded."""

    sequences: Tensor
    scores: tuple[Tensor, ...] | None = None


class ClassifierOutput(Output):
    """Loss (), logits (B, num_labels); the rest as in ModelOutput."""

    loss: Tensor | None
    logits: Tensor
    past_key_values: KVCache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
