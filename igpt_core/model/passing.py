"""PassesAs: objects that isinstance takes for those of a class of transformers, where it is loaded.

Trainer, peft and caches ask so what a model, its projections and its configuration are, and then
call what that class has.
"""

import inspect
import sys
from functools import lru_cache
from typing import Any, ClassVar

_NOTHING = object()


class PassesAs:
    """For classes that do what a class there does; what they have not is taken from it.

    Attributes:
        passes_as: the module and the name of that class.
    """

    passes_as: ClassVar[tuple[str, str]]

    @property
    def __class__(self) -> Any:
        """Returns a class derived from both; the type is what it was."""
        module, name = self.passes_as
        # While it is being imported it may not have the class yet.
        theirs = getattr(sys.modules.get(module), name, None)
        mine: Any = type(self)
        return mine if theirs is None or issubclass(mine, theirs) else _derived(mine, theirs)

    @__class__.setter
    def __class__(self, cls: type) -> None:  # parametrizations give and take one of their own
        object.__dict__["__class__"].__set__(self, vars(cls).get("_derived_from", cls))

    def __getattr__(self, name: str) -> Any:
        """Looks for what is not found otherwise in the class that this passes as."""
        try:
            return super().__getattr__(name)  # type: ignore[misc]  # of modules
        except AttributeError:
            derived = self.__class__
        found = _NOTHING
        if derived is not type(self):
            found = inspect.getattr_static(derived, name, _NOTHING)
        if found is _NOTHING:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return found.__get__(self, derived) if hasattr(found, "__get__") else found

    def __reduce__(self) -> tuple[Any, ...]:
        # As object has it, for the type: pickle refuses a class that is none.
        return _empty, (type(self),), self.__getstate__()


@lru_cache
def _derived(mine: type, theirs: type) -> type:
    names = {"__module__": mine.__module__, "__qualname__": mine.__qualname__}

    def new(cls: type, *args: Any, **kwargs: Any) -> Any:
        # `model.__class__(config)` makes what `type(model)` does.
        return mine(*args, **kwargs) if cls is derived else object.__new__(cls)

    members = {**names, "_derived_from": mine, "__new__": new}
    try:
        derived = type(mine.__name__, (mine, theirs), members)
    except TypeError:  # a class of a caller that is not derived from as it is
        return mine
    return derived


def _empty(cls: Any) -> Any:
    return cls.__new__(cls)
