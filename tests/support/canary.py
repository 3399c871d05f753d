"""Canaries: secrets that are easily recognized, and ears on everything they could be heard by."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import json
import logging
import pickle
import re
import sys
import threading
import traceback
import warnings
from base64 import b64encode, urlsafe_b64encode
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import quote, quote_plus

from aioivschat import Event
from aioivschat.emulator import Answer, Emulator
from aioivschat.emulator._wire import Outcome, Request

# With characters that encodings change, and a core of letters and digits that they mostly do not.
TOKEN = "canary-token-4Kf2Wb9x"  # what every token begins with
USER = "canary user/7Qd1Hm3zé"
NAME = "canary+name Zx93Lk7tü"  # an attribute's value
KEY = "canary-key/0Pw2Rv6j"  # an idempotency key
SECRET = "canary+secret/5Rt8Ny4q"  # a secret access key
SESSION = "canary/session+3Lm6Cs8d=="  # a session token
SEALING = b"canary-sealing-key-6Jg5Df2h-32-b"  # a key of a fleet
PASSWORD = "canary-password-9Bv5Xe1k"  # an engine's

CANARIES = {
    "token": TOKEN,
    "user": USER,
    "attribute": NAME,
    "idempotency key": KEY,
    "secret access key": SECRET,
    "session token": SESSION,
    "sealing key": SEALING.decode(),
    "password": PASSWORD,
}

SURFACES = (
    "logs",  # as they are written, the root logger at DEBUG
    "log records",  # what a collector sees of them: arguments and extra fields
    "events",  # what observers are told
    "reprs",  # repr, str and format of every object of the library that is alive
    "pickles",  # of the same
    "tasks",  # tasks, futures, handles
    "errors",  # what an error says of itself, and every one in its chain
    "pickled errors",
    "tracebacks",  # with locals
    "walked locals",  # what is within them, whatever their repr
    "hooks",  # warnings, and errors that nobody caught
    "answers",  # what HTTP clients get that is no token
    "engine",  # what passes to a fleet's engine, and what it holds
    "output",  # what commands write for people
    "files",  # what commands keep
    "command line",  # of their processes
)

_AT_ONCE = 1_000_000
"""Characters that are listened to together."""

_ENOUGH = 20
"""Songs of one surface that say it all."""

_OURS = ("aioivschat", "tenacity")

_TESTS = str(Path(__file__).parent.parent)

_old: list[object] = []
"""What was alive of the library when all else was set aside."""


@contextmanager
def old_set_aside() -> Iterator[None]:
    """Set aside what lives already, while the block runs: to look at it again and again takes long.

    What is old of the library, and every old task, is looked at nevertheless.
    """
    gc.collect()
    _old[:] = (thing for thing in gc.get_objects() if _surfaces[type(thing)])
    gc.freeze()
    try:
        yield
    finally:
        _old.clear()
        gc.unfreeze()


class _Surfaces(dict[type, str]):
    """The surface by which things of a kind are heard; none: they are not looked at."""

    def __missing__(self, kind: type) -> str:
        package, _, module = str(kind.__module__).partition(".")
        surface = "tasks" if issubclass(kind, asyncio.Future | asyncio.Handle) else ""
        # What hooks of the retries are given is tenacity's.
        if package in _OURS and not module.startswith("emulator"):
            surface = "" if issubclass(kind, type | BaseException) else "reprs"
        self[kind] = surface
        return surface


_surfaces = _Surfaces()


def forms(secret: str) -> set[str]:
    """Return what a secret may look like, in lower case where case does not tell."""
    raw = secret.encode()
    found = {
        secret,
        quote(secret),
        quote(secret, safe=""),
        quote_plus(secret),
        json.dumps(secret)[1:-1],
        ascii(secret)[1:-1],
        repr(raw)[2:-1],
        raw.decode("latin-1"),
        raw.hex(),
    }
    for encode in (b64encode, urlsafe_b64encode):
        for ahead in range(3):
            # The letters at both ends are shared with what stands beside it.
            text = encode(bytes(ahead) + raw).decode().rstrip("=")
            found.add(text[-(-ahead * 8 // 6) : -1])
    found.update(re.findall("[0-9A-Za-z]{8}", secret))
    return found


_FORMS = {name: forms(secret) for name, secret in CANARIES.items()}


def heard_in(text: str) -> list[str]:
    """Return the names of the canaries that sing in a text, each with some of what is around it."""
    lower = text.lower()
    songs = []
    for name, all_forms in _FORMS.items():
        for form in all_forms:
            at = text.find(form)
            if at < 0:
                # The core and hexadecimal digits in any case; base64 has no other.
                at = lower.find(form.lower()) if form.isalnum() and len(form) < 80 else -1
            if at >= 0:
                songs.append(f"{name}: …{text[max(0, at - 120) : at + 60]}…")
                break
    return songs


class Ears:
    """Hears what comes out, by surface, and keeps nothing of it but what sings.

    Attributes:
        loggers: the packages whose loggers wrote something.
    """

    def __init__(self) -> None:
        self.loggers: set[str] = set()
        self._unheard: defaultdict[str, list[str]] = defaultdict(list)
        self._songs: defaultdict[str, set[str]] = defaultdict(set)
        self._size = 0
        self._loud: set[str] = set()

    def note(self, surface: str, *texts: object) -> None:
        """Take note of what came out of a surface."""
        for each in texts:
            text = each.decode("latin-1") if isinstance(each, bytes) else str(each)
            self._unheard[surface].append(text)
            self._size += len(text)
        self._loud.add(surface)
        if self._size > _AT_ONCE:
            self._listen()

    def __reduce__(self) -> NoReturn:
        raise TypeError("ears hear themselves otherwise")

    def songs(self, surface: str) -> list[str]:
        """Return what sang on a surface."""
        self._listen()
        return sorted(self._songs[surface])

    def silent(self, surface: str) -> bool:
        """Tell whether nothing at all came out of a surface."""
        return surface not in self._loud

    def _listen(self) -> None:
        unheard, self._unheard = self._unheard, defaultdict(list)
        self._size = 0
        for surface, texts in unheard.items():
            if len(self._songs[surface]) < _ENOUGH:
                self._songs[surface].update(heard_in("\n".join(texts)))

    # What is listened to.

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Listen to logs, warnings and hooks while the block runs."""
        root = logging.getLogger()
        level, handlers = root.level, root.handlers
        hooks = sys.unraisablehook, threading.excepthook
        # Alone: others would keep every record.
        root.handlers = [_Handler(self)]
        root.setLevel(logging.DEBUG)
        sys.unraisablehook = self._unraisable
        threading.excepthook = self._unraisable
        try:
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always", ResourceWarning)
                yield
                # A warning keeps its source alive: once it is noted, what the source held is heard.
                for _ in range(2):
                    gc.collect()
                    self.note("hooks", *(repr(one.message) for one in told))
                    told.clear()
                gc.collect()
        finally:
            sys.unraisablehook, threading.excepthook = hooks
            root.handlers = handlers
            root.setLevel(level)

    def listen_to_loop(self) -> None:
        """Listen to the running loop: in debug mode it logs every task and handle that runs."""
        loop = asyncio.get_running_loop()
        loop.set_debug(True)
        loop.slow_callback_duration = 0.0
        loop.set_exception_handler(self._unhandled)

    def _unraisable(self, told: Any) -> None:
        self.note("hooks", repr(told.exc_value), *map(repr, told))
        self.error(told.exc_value)

    def _unhandled(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.note("hooks", repr(context))
        if "exception" in context:
            self.error(context["exception"])

    def event(self, event: Event, /) -> None:
        """Observe."""
        self.note("events", repr(event), str(event), dataclasses.astuple(event))

    def show(self, *things: object) -> None:
        """Show things in every way in which things are shown."""
        for thing in things:
            self.note("reprs", repr(thing), str(thing), f"{thing}", ascii(thing))
            try:
                pickled = pickle.dumps(thing)
            except Exception as refusal:
                pickled = repr(refusal).encode()
            self.note("pickles", pickled)

    def look_around(self) -> None:
        """Show all that is alive of the library and its retries; tasks, futures and handles."""
        for thing in [*_old, *gc.get_objects()]:
            surface = _surfaces[type(thing)]
            if surface == "reprs":
                self.show(thing)
            elif surface:
                self.note(surface, repr(thing))

    def error(self, error: BaseException | None) -> None:
        """Show an error as a collector of errors would, with its chain and all locals.

        Frames of the tests are left out: those of whoever calls the library are theirs.
        """
        seen: set[int] = set()
        pending = [error]
        while pending:
            current = pending.pop()
            if current is None or id(current) in seen:
                continue
            seen.add(id(current))
            pending += [current.__cause__, current.__context__]
            if isinstance(current, BaseExceptionGroup):
                pending += current.exceptions
            notes = getattr(current, "__notes__", [])
            self.note("errors", repr(current), str(current), repr(current.args), repr(notes))
            self.note("errors", repr(getattr(current, "__dict__", {})))
            try:
                pickled = pickle.dumps(current)
                self.note("pickled errors", pickled, repr(pickle.loads(pickled)))
            except Exception as refusal:
                self.note("pickled errors", repr(refusal))
            rendered = traceback.TracebackException.from_exception(current, capture_locals=True)
            frames = traceback.walk_tb(current.__traceback__)
            for summary, (frame, _) in zip(rendered.stack, frames, strict=True):
                if not summary.filename.startswith(_TESTS):
                    place = f"{summary.filename}:{summary.lineno} {summary.name}"
                    self.note("tracebacks", place, *(summary.locals or {}).items())
                    self.note("walked locals", place)
                    for name, value in frame.f_locals.items():
                        for way, text in texts_within(value):
                            self.note("walked locals", f"{place} {name}{way} {text}")


def texts_within(value: object) -> Iterator[tuple[str, str]]:
    """Yield the texts that a walker finds: by items, slots, attributes and fields, by no ``repr``.

    Each with the way to it. Of what is not the library's own, only the items are looked at.
    """
    seen: set[int] = set()
    pending: list[tuple[str, object]] = [("", value)]
    while pending:
        way, each = pending.pop()
        if isinstance(each, str | bytes | bytearray):
            yield way, each if isinstance(each, str) else each.decode("latin-1")
            continue
        if id(each) in seen or isinstance(each, type):
            continue
        seen.add(id(each))
        if isinstance(each, Mapping):
            for key, item in [*each.items()]:
                pending += [(f"{way}.keys", key), (f"{way}[{type(key).__name__}]", item)]
        elif isinstance(each, list | tuple | set | frozenset | deque):
            pending += [(f"{way}[{number}]", item) for number, item in enumerate([*each])]
        if type(each).__module__.partition(".")[0] == "aioivschat":
            names = {*getattr(each, "__dict__", ())}
            if dataclasses.is_dataclass(each):
                names |= {field.name for field in dataclasses.fields(each)}
            for kind in type(each).__mro__:
                slots = vars(kind).get("__slots__", ())
                names |= {slots} if isinstance(slots, str) else {*slots}
            pending += [(f"{way}.{name}", getattr(each, name, None)) for name in names]


class _Handler(logging.Handler):
    """Writes records down, and what a collector would take from them."""

    _ORDINARY = frozenset(vars(logging.makeLogRecord({})))

    def __init__(self, ears: Ears) -> None:
        super().__init__()
        self._ears = ears

    def emit(self, record: logging.LogRecord) -> None:
        """Take a record."""
        self._ears.loggers.add(record.name.partition(".")[0])
        self._ears.note("logs", f"{record.name} {self.format(record)}")
        extra = {name: one for name, one in vars(record).items() if name not in self._ORDINARY}
        self._ears.note("log records", repr(record.args), repr(extra))
        if record.exc_info:
            self._ears.error(record.exc_info[1])


class SingingEmulator(Emulator):
    """Every token that it makes begins with the canary's name."""

    def respond(self, request: Request) -> Outcome:
        """Decide as any does."""
        outcome = super().respond(request)
        if isinstance(outcome, Answer):
            sung = outcome.body.replace(b'"token": "', f'"token": "{TOKEN}.'.encode())
            outcome = dataclasses.replace(outcome, body=sung)
        return outcome
