"""Events: every observer is called, and none can harm a caller or leak a secret."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import logging
from typing import Any, get_args, get_type_hints

import pytest

from aioivschat import (
    AttemptFailed,
    ClientOpened,
    Delivered,
    Event,
    ExpiredUnused,
    Invalidated,
    Joined,
    LoggingObserver,
    Minted,
    NotPrepared,
    Prepared,
    RateChanged,
    Retrying,
    SharedChanged,
    SharedState,
    Shed,
    Source,
    Stocked,
)
from aioivschat import _events as events_module
from aioivschat._events import Observers

ROOM = "arn:aws:ivschat:eu-west-1:123456789012:room/a"
CANARY = "canary-7f3a9"

ONE_OF_EACH: list[Event] = [
    Delivered(ROOM, Source.STOCK, 0.5),
    Joined(ROOM),
    Minted(ROOM, 2, 0.02),
    AttemptFailed(ROOM, 1, "Throttled", 429, 0.02),
    Retrying(ROOM, 1, 0.1),
    Shed(ROOM, 3.0),
    Stocked(ROOM),
    ExpiredUnused(7),
    RateChanged("123456789012", "eu-west-1", 99.0, 28),
    Invalidated(ROOM, one_user=True),
    ClientOpened("eu-west-1", 0.05),
    NotPrepared("eu-west-1", "it uses a proxy"),
    Prepared("eu-west-1"),
    SharedChanged(SharedState.LOCAL, "TimeoutError"),
]

EVENT_CLASSES: tuple[type[Any], ...] = get_args(Event)

HARMLESS = {
    "account": str,
    "attempt": int,
    "attempts": int,
    "burst": int,
    "count": int,
    "delay": float,
    "error": str,  # the name of a class and never a message
    "one_user": bool,
    "rate": float,
    "reason": str,  # of a few fixed texts, or with the name of a class or of a header
    "region": str,
    "retry_after": float,
    "room": str,
    "seconds": float,
    "source": Source,
    "state": SharedState,
    "status": int,
    "waited": float,
}


def test_every_event_of_the_module_is_one_of_the_union() -> None:
    """`Event` is the union of all event classes, and ``ONE_OF_EACH`` holds one of each."""
    classes = {
        value
        for value in vars(events_module).values()
        if isinstance(value, type) and dataclasses.is_dataclass(value)
    }
    assert classes == set(EVENT_CLASSES)
    assert classes == {type(event) for event in ONE_OF_EACH}


@pytest.mark.parametrize("event", ONE_OF_EACH, ids=lambda event: type(event).__name__)
def test_an_event_cannot_be_changed(event: Event) -> None:
    """Fields of an event cannot be set and none can be added: all observers get the same object."""
    for field in dataclasses.fields(event):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(event, field.name, None)
    assert not hasattr(event, "__dict__")


@pytest.mark.fault(30)
@pytest.mark.parametrize("kind", EVENT_CLASSES)
def test_an_event_has_no_field_that_could_hold_a_secret(kind: type[Any]) -> None:
    """Every field is in ``HARMLESS``, where a person adds a new one after looking at it."""
    hints = get_type_hints(kind)
    for field in dataclasses.fields(kind):
        expected = HARMLESS[field.name]
        assert hints[field.name] in (expected, expected | None)


@pytest.mark.parametrize("kind", EVENT_CLASSES)
def test_every_field_of_an_event_is_documented(kind: type[Any]) -> None:
    """The docstring of each event class lists every field."""
    for field in dataclasses.fields(kind):
        assert f"    {field.name}: " in inspect.cleandoc(str(kind.__doc__))


def test_all_observers_are_told_in_their_order() -> None:
    """Observers are called one after the other, with each event in turn."""
    told: list[tuple[str, Event]] = []
    observers = Observers(
        [lambda event: told.append(("a", event)), lambda event: told.append(("b", event))]
    )
    observers.tell(ONE_OF_EACH[0])
    observers.tell(ONE_OF_EACH[1])
    expected = [(name, event) for event in ONE_OF_EACH[:2] for name in "ab"]
    assert expected == told


def test_observers_without_any_are_false() -> None:
    """``Observers`` without any is false; an iterator of observers is accepted."""
    assert not Observers(())
    assert Observers(iter([lambda event: None]))


@pytest.mark.fault(30)
@pytest.mark.parametrize("kind", [LookupError, asyncio.CancelledError, GeneratorExit])
def test_a_failing_observer_harms_nobody_and_its_message_is_not_logged(
    caplog: pytest.LogCaptureFixture, kind: type[BaseException]
) -> None:
    """The other observers are called, and the log names no more than the error's class."""
    told: list[Event] = []

    def fail(event: Event) -> None:
        raise kind(CANARY)

    with caplog.at_level(logging.DEBUG):
        Observers([fail, told.append, fail]).tell(ONE_OF_EACH[0])
    assert [ONE_OF_EACH[0]] == told
    assert [f"an observer failed with {kind.__name__}"] * 2 == [
        r.getMessage() for r in caplog.records
    ]
    assert [("aioivschat", logging.ERROR, None)] * 2 == [
        (record.name, record.levelno, record.exc_info) for record in caplog.records
    ]
    assert CANARY not in caplog.text


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_an_observer_cannot_swallow_an_interrupt(kind: type[BaseException]) -> None:
    """What ends the process goes on to the caller."""

    def interrupted(event: Event) -> None:
        raise kind

    with pytest.raises(kind):
        Observers([interrupted]).tell(ONE_OF_EACH[0])


@pytest.mark.parametrize("event", ONE_OF_EACH, ids=lambda event: type(event).__name__)
def test_the_logging_observer_warns_of_what_somebody_should_see(
    event: Event, caplog: pytest.LogCaptureFixture
) -> None:
    """Failures, sheds, changes of pace and of the fleet are warnings, everything else is debug."""
    warned = isinstance(event, AttemptFailed | Shed | RateChanged | SharedChanged)
    with caplog.at_level(logging.DEBUG, "aioivschat"):
        LoggingObserver()(event)
    expected = ("aioivschat", logging.WARNING if warned else logging.DEBUG, repr(event))
    assert [expected] == caplog.record_tuples


def test_the_logging_observer_writes_to_the_logger_it_was_given(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """``LoggingObserver(logger)`` writes to that logger."""
    with caplog.at_level(logging.DEBUG, "mine"):
        LoggingObserver(logging.getLogger("mine"))(ONE_OF_EACH[5])
    assert ["mine"] == [record.name for record in caplog.records]
