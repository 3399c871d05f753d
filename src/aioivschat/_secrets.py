"""The convention of secrets: tokens, user ids, attributes and credentials are shown nowhere.

An object that holds one derives from a class below and has a ``repr`` without it. A function that
holds one in a local deletes that local before it raises, and raises ``from None``: error reporters
record the locals of each frame of a traceback, and of the errors in its context.
"""

from __future__ import annotations

from typing import Any, NoReturn, Self


class Unpickled:
    """An object that holds a secret and refuses to be pickled, as a pickle is plain text."""

    __slots__ = ()

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{type(self).__name__} holds what is secret and is not pickled")


class Secret(Unpickled):
    """An immutable object that holds a secret: not pickled, and its copy is the object itself."""

    __slots__ = ()

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self
