"""The convention of secrets: tokens, user ids, attributes and credentials are shown nowhere.

An object that holds one derives from a class below and has a ``repr`` without it. A function that
holds one in a local deletes that local before it raises, and raises ``from None``: error reporters
record the locals of each frame of a traceback, and of the errors in its context.

Some of them, and whatever compares or serializes values, ask no ``repr``: they walk tuples, dicts,
slots and the fields of dataclasses. So a key that holds a secret is `Hidden`, and a class with
slots hides what is secret by `hides`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import InitVar, field, make_dataclass
from typing import Any, ClassVar, NoReturn, Self, TypeVar

C = TypeVar("C", bound=type[Any])


class Unpickled:
    """An object that holds a secret and refuses to be pickled, as a pickle is plain text."""

    __slots__ = ()

    _SENT_INSTEAD: ClassVar[str] = "what is needed of it"

    def __reduce__(self) -> NoReturn:
        held = f"{type(self).__name__} holds what is secret and is not pickled"
        raise TypeError(f"{held}: send {self._SENT_INSTEAD}")

    def __sentry_repr__(self) -> str:
        # sentry_sdk asks this before it walks a value. A reply is a dict, which can hide nothing.
        return repr(self)


class Secret(Unpickled):
    """An immutable object that holds a secret: not pickled, and its copy is the object itself."""

    __slots__ = ()

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    @classmethod
    def __get_pydantic_core_schema__(cls, source: object, handler: object) -> dict[str, Any]:
        """Let a model hold one as it is; what the model is dumped to has its ``repr``."""
        shown = {"type": "function-plain", "function": repr, "return_schema": {"type": "str"}}
        return {"type": "is-instance", "cls": cls, "serialization": shown}


class Hidden(Secret, tuple[Any, ...]):
    """A key that holds a secret: hashed and compared as a tuple, empty to whoever iterates."""

    __slots__ = ()

    at = tuple.__getitem__
    members = tuple.__iter__

    def __repr__(self) -> str:
        return f"<{type(self).__name__.lower()}>"

    def __len__(self) -> int:
        return 0

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def __getitem__(self, index: object) -> NoReturn:
        raise IndexError("the members are hidden; at() returns one")

    def __getnewargs__(self) -> tuple[()]:
        return ()


def hides(*names: str) -> Callable[[C], C]:
    """Hide members of a class with slots from whoever walks its slots or a dataclass's fields.

    They are read by name as before; ``dataclasses.replace`` keeps what it is not told to replace.
    """

    def hide(cls: C) -> C:
        cls.__slots__ = tuple(name for name in cls.__slots__ if name not in names)
        fields = vars(cls).get("__dataclass_fields__", {})
        # As InitVars with a default: read by name where one is needed, and listed nowhere.
        hidden = [
            (name, InitVar[Any], field(default=None, init=fields[name].init, compare=False))
            for name in names
            if name in fields
        ]
        # With a docstring, or dataclasses would compose one, in ten times the time of the rest.
        namespace = {"__doc__": cls.__doc__}
        made = make_dataclass(
            cls.__name__, hidden, init=False, repr=False, eq=False, namespace=namespace
        )
        fields |= vars(made)["__dataclass_fields__"]
        return cls

    return hide
