"""What the model classes return: fields by name, by key and by position."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from igpt_core.model.kv_cache import KVCache


class Output(Mapping[str, Any]):
    """Fields by name; those that are not None also by key and by position, as in transformers."""

    def __iter__(self) -> Iterator[str]:
        names = (field.name for field in fields(self))  # type: ignore[arg-type]
        return (name for name in names if getattr(self, name) is not None)

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __getitem__(self, key: int | slice | str) -> Any:
        if not isinstance(key, str):
            return self.to_tuple()[key]
        if key not in list(self):
            raise KeyError(key)
        return getattr(self, key)

    def to_tuple(self) -> tuple[Any, ...]:
        """Returns the fields that are not None, in order."""
        return tuple(getattr(self, name) for name in self)


@dataclass(eq=False)
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


@dataclass(eq=False)
class CausalOutput(Output):
    """Loss () in nats, logits (B, T, V) of the next pixel's color; the rest as in ModelOutput."""

    loss: Tensor | None
    logits: Tensor
    past_key_values: KVCache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None


@dataclass(eq=False)
class ClassifierOutput(Output):
    """Loss (), logits (B, num_labels); the rest as in ModelOutput."""

    loss: Tensor | None
    logits: Tensor
    past_key_values: KVCache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
