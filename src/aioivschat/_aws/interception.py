"""Finds who watches the calls of a client: tracers, listeners, whatever replaced a function.

The prepared way leaves out nearly all of aiobotocore and botocore, so it must not be taken while
somebody hooks into that. What a call may run is found from the client: the objects that it is made
of, their classes, the listeners of its events, and all that the functions of these name, and so on.
Each function is looked up where a call would find it, never through attributes of its own, as a
proxy answers with those of what it stands for; and its code has to be in its module's, read again
by the module's loader, as some tracers exchange the code and leave the function in its place.
"""

from __future__ import annotations

import builtins
import re
import sys
import time
import types
from collections import OrderedDict, namedtuple
from collections.abc import Iterable
from dataclasses import dataclass
from functools import _lru_cache_wrapper, cache, cached_property, partial
from importlib.machinery import PathFinder
from logging import Logger
from operator import attrgetter, is_, itemgetter
from types import (
    CodeType,
    DynamicClassAttribute,
    FunctionType,
    GetSetDescriptorType,
    MemberDescriptorType,
    MethodType,
    ModuleType,
    SimpleNamespace,
)
from typing import Any

from aioivschat._aws.http_session import HttpSession
from aioivschat._aws.internals import (
    credentials_of,
    describe,
    emitter_of,
    http_session_of,
    listeners_of,
    listening_of,
)

OPERATION = "ivschat.CreateChatToken"

STAGES = (
    "provide-client-params",
    "before-parameter-build",
    "before-endpoint-resolution",
    "before-call",
    "request-created",
    "choose-signer",
    "before-sign",
    "before-send",
    "before-parse",
    "response-received",
    "needs-retry",
    "after-call",
    "after-call-error",
)
"""botocore's events of a call."""

_POLL_SECONDS = 0.1

_LIBRARIES = {"aiobotocore", "botocore"}
_OTHERS = {
    "aiohttp",
    "awscrt",
    "certifi",
    "dateutil",
    "jmespath",
    "multidict",
    "six",
    "urllib3",
    "yarl",
}
_HARMLESS = ({"aioivschat"} | _OTHERS | sys.stdlib_module_names) - {"unittest"}
"""Packages whose functions and objects stand where aiobotocore and botocore put them."""

_IN_C = {"builtins", "types"}
_BUILTINS = {
    each for module in (builtins, types) for each in vars(module).values() if isinstance(each, type)
} - {DynamicClassAttribute, SimpleNamespace}
"""The types of builtins. Others in C, which name no module, seem to be of builtins too."""

_UNCALLED = _IN_C | {"typing"}
"""Packages whose objects call no code of others."""

_BASES = {"wrapt", "_wrappers"}
"""Packages of which classes of aiobotocore inherit; an object of theirs would be a proxy."""

_UNVISITED = {
    *("__annotations__", "__static_attributes__"),
    "_connector_args",  # users bring their own, and both ways use it alike, as credentials
    *("_root", "_lookup_cache", "_unique_id_handlers"),  # with the listeners to all else
    *("_exceptions", "_senders", "_sessions"),  # made when needed, as caches are
}

_DATA = {
    *(bool, bytes, float, frozenset, int, re.Pattern, set, str),
    *(GetSetDescriptorType, MemberDescriptorType),
    *(Logger, OrderedDict, type(vars(namedtuple("_One", "field"))["field"])),
}
_CONTAINER_MAX_ITEMS = 100  # larger ones are models of services

_CONTENTS: dict[type, tuple[str, ...]] = {
    MethodType: ("__func__", "__self__"),
    staticmethod: ("__func__",),
    classmethod: ("__func__",),
    property: ("fget", "fset"),
    partial: ("func",),
    cached_property: ("func",),
    _lru_cache_wrapper: ("__wrapped__",),
}


class Watchers:
    """Those who watch the calls of a client.

    Attributes:
        found: what they watch, in words; ``None``: nobody does.
        survey: where that was seen.
    """

    def __init__(self, client: Any) -> None:
        self.found: str | None = None
        self._client = client
        self._due = 0.0
        self.survey: _Survey | None = None

    def have_changed(self) -> bool:
        """Look again if 100 ms have passed; tell whether requests may differ from before."""
        now = time.monotonic()
        if now < self._due:
            return False
        self._due = now + _POLL_SECONDS
        before = self.survey
        if before is not None and before.still_holds():
            return False
        try:
            self.survey = _Survey(self._client)
            self.found = self.survey.found
        except Exception as error:  # aiobotocore promises nothing about its insides
            self.survey, self.found = None, describe(error)
        # Where something was only added, to a cache say, requests are as before.
        is_same = before is not None and before.found is None and before.still_holds(sizes=False)
        return self.found is not None or not is_same


class _Survey:
    """All that a client's calls may run, at one moment.

    Attributes:
        found: who watches a part that is not as aiobotocore and botocore defined it.
        functions: those of aiobotocore and botocore that a call may run.
    """

    def __init__(self, client: Any) -> None:
        self.found: str | None = None
        self.functions: list[FunctionType] = []
        credentials = credentials_of(client)
        self._seen: dict[object, Any] = {id(credentials): credentials}
        # Namespaces and containers, each with the names or indices at which it holds a part.
        self._places: dict[int, tuple[Any, dict[Any, None]]] = {}
        self._sized: list[Any] = []
        self._objects: list[Any] = []
        self._members: dict[type, Any] = {}  # what vars() made: it is another object each time
        self._client = client
        if type(http_session_of(client)) is not HttpSession:
            self.found = "it has another HTTP client"
        # Methods are visited once something names them: a function, or an object as its own.
        self._names: set[str] = set()
        self._unnamed: dict[str, list[type]] = {}
        self._note_names({"create_chat_token"})
        self._todo: list[tuple[str, Any]] = [("the client", client)]
        for stage in STAGES:
            for listener in listeners_of(client, f"{stage}.{OPERATION}"):
                if _package_of(listener) in _LIBRARIES | {"aioivschat"}:
                    self._todo.append((stage, listener))
                else:
                    self._note_watcher(stage)
        while self._todo:
            self._visit_part(*self._todo.pop())
        # Of a single key, itemgetter would not return a tuple.
        self._readers = [
            (place, itemgetter(*keys, next(iter(keys)))) for place, keys in self._places.values()
        ]
        self._parts, self._sizes = self._read_parts()
        for notes in (self._seen, self._places, self._members, self._names, self._unnamed):
            notes.clear()

    def still_holds(self, *, sizes: bool = True) -> bool:
        """Tell whether all parts are the same and, with ``sizes``, whether nothing was added."""
        try:
            parts, now = self._read_parts()
        except LookupError:
            return False
        return (not sizes or now == self._sizes) and all(map(is_, parts, self._parts))

    def _read_parts(self) -> tuple[list[Any], list[int]]:
        parts: list[Any] = []
        for place, get in self._readers:
            parts += get(place)
        parts += map(attrgetter("__code__"), self.functions)
        parts += map(type, self._objects)
        parts.append(listening_of(self._client))
        return parts, [*map(len, self._sized)]

    def _visit_part(self, where: str, part: Any) -> None:
        if id(part) in self._seen:
            return
        self._seen[id(part)] = part
        kind = type(part)
        package = _package(kind.__module__)
        if kind is FunctionType:
            self._visit_function(where, part)
        elif kind in _CONTENTS:
            self._todo += ((where, getattr(part, name)) for name in _CONTENTS[kind])
        elif kind in (dict, list, tuple):
            if len(part) <= _CONTAINER_MAX_ITEMS:
                keys = part if kind is dict else range(len(part))
                self._visit_items(part, dict.fromkeys(keys, where))
        elif issubclass(kind, type):
            self._visit_class(where, part)
        else:
            self._objects.append(part)
            if package in _LIBRARIES or kind is HttpSession:
                self._visit_object(where, part)
            elif package not in _HARMLESS or (package in _IN_C and kind not in _BUILTINS):
                self._note_watcher(where)
            elif package == "collections" or (package not in _UNCALLED and _is_called(part)):
                self._note_watcher(where)  # it may call code of others

    def _visit_function(self, where: str, function: FunctionType) -> None:
        module = function.__globals__.get("__name__", "")
        if _package(module) in _LIBRARIES:
            self.functions.append(function)
            known = _known_codes.get(id(function.__code__)) or _get_to_know(function, module)
            if known is None:
                self._note_watcher(where)
                return
            self._note_names(known.names)
            self._visit_names(function.__globals__, known.names)
        elif _package(module) not in _HARMLESS:
            self._note_watcher(where)
            return
        for cell in function.__closure__ or ():
            try:
                self._todo.append((where, cell.cell_contents))
            except ValueError:  # it is empty
                continue

    def _visit_names(self, namespace: dict[str, Any], names: frozenset[str]) -> None:
        """Visit what a function names in its module, and in modules that it names."""
        if (id(namespace), names) in self._seen:
            return
        self._seen[id(namespace), names] = None
        found = {name: f"{namespace['__name__']}.{name}" for name in names if name in namespace}
        self._visit_items(namespace, found, sized=False)
        for name in found:
            part = namespace[name]
            if type(part) is ModuleType and _package(part.__name__) in _LIBRARIES:
                self._visit_names(vars(part), names)

    def _visit_class(self, where: str, part: type) -> None:
        package = _package(part.__module__)
        if package in _LIBRARIES or part is HttpSession:
            members = self._members[part] = vars(part)
            self._sized.append(members)
            named = []
            for name in members.keys() - _UNVISITED:
                if name in self._names or name.startswith("__"):
                    named.append(name)
                else:
                    self._unnamed.setdefault(name, []).append(part)
            self._visit_members(part, named)
        elif package not in _HARMLESS | _BASES:
            self._note_watcher(where)
            return
        self._todo += ((where, base) for base in part.__mro__[1:])

    def _visit_members(self, part: type, names: Iterable[str]) -> None:
        wheres = {name: f"{part.__name__}.{name}" for name in names}
        self._visit_items(self._members[part], wheres, sized=False)

    def _note_names(self, names: Iterable[str]) -> None:
        for name in {*names} - self._names:
            self._names.add(name)
            for part in self._unnamed.pop(name, ()):
                self._visit_members(part, [name])

    def _visit_object(self, where: str, part: Any) -> None:
        kind = type(part)
        self._todo.append((where, kind))
        if part is not self._client:
            self._note_names(name for base in kind.__mro__ for name in vars(base))
        attributes = getattr(part, "__dict__", {})
        if "_unique_id_handlers" in attributes and part is not emitter_of(self._client):
            self._note_watcher(where)
        for name in attributes.keys() & _functions_of(kind):
            self._note_watcher(f"{kind.__name__}.{name}")
        names = {
            name: f"{kind.__name__}.{name}"
            for name in attributes
            if name not in _UNVISITED and not name.endswith("_cache")
        }
        # Models keep there what they have computed.
        self._visit_items(attributes, names, sized=kind.__module__ != "botocore.model")

    def _visit_items(self, place: Any, wheres: dict[Any, str], *, sized: bool = True) -> None:
        if sized:
            self._sized.append(place)
        keys = [key for key in wheres if type(place[key]) not in _DATA]
        if keys:
            self._places.setdefault(id(place), (place, {}))[1].update(dict.fromkeys(keys))
            self._todo += ((wheres[key], place[key]) for key in keys)

    def _note_watcher(self, where: str) -> None:
        self.found = self.found or f"somebody watches {where}"


def _package(module: Any) -> str:
    package = str(module).partition(".")[0]
    return "collections" if package.startswith("namedtuple_") else package


def _is_called(part: Any) -> bool:
    """Tell whether a part is called, or is what a class calls as it is looked up."""
    return callable(part) or hasattr(type(part), "__get__")


def _package_of(listener: Any) -> str:
    """Return the package of what is called in the end."""
    kind = type(listener)
    if kind is MethodType:
        return _package_of(listener.__func__)
    if kind is partial:
        return _package_of(listener.func)
    if kind is FunctionType:
        return _package(listener.__globals__.get("__name__"))
    return _package(listener.__module__ if isinstance(listener, type) else kind.__module__)


def _functions_of(kind: type) -> set[str]:
    """Return the names of a class's functions, inherited ones too."""
    return {
        name
        for base in kind.__mro__
        for name, member in vars(base).items()
        if isinstance(member, FunctionType | staticmethod | classmethod)
    }


@cache
def _codes_of(module: str) -> frozenset[CodeType]:
    """Return the code of all functions of a module, as its loader reads it."""
    loader: Any = getattr(sys.modules[module].__spec__, "loader", None)
    if not hasattr(loader, "get_code"):  # an import hook stands before the loader
        path = getattr(sys.modules.get(module.rpartition(".")[0]), "__path__", None)
        loader = getattr(PathFinder.find_spec(module, path), "loader", None)
    code = loader.get_code(module)
    return frozenset() if code is None else frozenset(_nested_codes(code))


@dataclass(eq=False, repr=False, slots=True)
class _KnownCode:
    """The code of a function that is as its module has it, and the names that it reads."""

    code: CodeType  # held, as it is found by its id
    names: frozenset[str]


_known_codes: dict[int, _KnownCode] = {}  # to hash and compare code takes longer than all the rest
_generated_by: dict[FunctionType, CodeType] = {}


def _get_to_know(function: FunctionType, module: str) -> _KnownCode | None:
    """Return a function's code and its names; ``None``: the code is not its module's."""
    code = function.__code__
    # A data class makes functions as it is defined: they have to be as they were first seen.
    is_generated = code.co_filename == "<string>" and code.co_name.startswith("__")
    is_own = is_generated and _generated_by.setdefault(function, code) is code
    if not (is_own or code in _codes_of(module)):
        return None
    names = frozenset(name for each in _nested_codes(code) for name in each.co_names)
    known = _known_codes[id(code)] = _KnownCode(code, names)
    return known


def _nested_codes(code: CodeType) -> Iterable[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _nested_codes(constant)
