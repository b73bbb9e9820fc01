"""PassesAs: objects that isinstance takes for those of a class of transformers, where it is loaded.

Trainer, peft and caches ask so what a model, its projections and its configuration are, and then
call what that class has.
"""

import inspect
import sys
from functools import lru_cache
from typing import Any, ClassVar


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
        found = None if derived is type(self) else inspect.getattr_static(derived, name, None)
        if found is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return found.__get__(self, derived) if hasattr(found, "__get__") else found

    def __reduce__(self) -> tuple[Any, ...]:
        return _empty, (type(self),), vars(self)  # pickle refuses a class that is not the type


@lru_cache
def _derived(mine: type, theirs: type) -> type:
    names = {"__module__": mine.__module__, "__qualname__": mine.__qualname__}

    def new(cls: type, *args: Any, **kwargs: Any) -> Any:
        # `model.__class__(config)` makes what `type(model)` does.
        return mine(*args, **kwargs) if cls is derived else object.__new__(cls)

    members = {**names, "_derived_from": mine, "__new__": new}
    derived = type(mine.__name__, (mine, theirs), members)
    return derived


def _empty(cls: Any) -> Any:
    return cls.__new__(cls)
