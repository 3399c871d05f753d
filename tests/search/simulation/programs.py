"""What a random program consists of, and how hypothesis makes one."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import Enum
from typing import Literal, TypeVar

from hypothesis import strategies as st

from aioivschat import Priority, TokenRequest
from aioivschat.emulator import FaultKind

T = TypeVar("T")

_ARN = "arn:aws:ivschat:{}:{}:room/{}"
ROOMS = (
    _ARN.format("us-east-1", "111111111111", "One"),
    _ARN.format("us-east-1", "111111111111", "Two"),
    _ARN.format("eu-west-1", "111111111111", "Three"),
    _ARN.format("us-east-1", "222222222222", "Four"),
)
USERS = ("alice", "bob")


class _Told:
    """Has a repr that Python can evaluate, without arguments that are defaults."""

    __slots__ = ()

    def __repr__(self) -> str:
        told = []
        for field in fields(self):  # type: ignore[arg-type]  # all that are of it are dataclasses
            value = getattr(self, field.name)
            if value != field.default:
                is_enum = isinstance(value, Enum)
                shown = f"{type(value).__name__}.{value.name}" if is_enum else repr(value)
                told.append(f"{field.name}={shown}")
        return f"{type(self).__name__}({', '.join(told)})"


How = Literal["plain", "fresh", "key-1", "key-2"]
"""How a token is asked for: keys are those of two attempts."""


@dataclass(frozen=True, slots=True, repr=False)
class Who(_Told):
    """What a token is asked for.

    Args:
        room: which of `ROOMS`.
        user: which of `USERS`.
        talks: whether the user may send messages, and has a name.
    """

    room: int = 0
    user: int = 0
    talks: bool = False

    def request(self) -> TokenRequest:
        """Return the request for such a token."""
        return TokenRequest(
            ROOMS[self.room],
            USERS[self.user],
            {"SEND_MESSAGE"} if self.talks else (),
            {"name": "A", "colour": "red"} if self.talks else None,
        )


@dataclass(frozen=True, slots=True, repr=False)
class Issue(_Told):
    """Ask for tokens, as ``callers`` at once; by boto3's call or by ``issue``."""

    who: Who
    how: How = "plain"
    timeout: float | None = None
    priority: Priority = Priority.NORMAL
    callers: int = 1
    boto3: bool = False


@dataclass(frozen=True, slots=True, repr=False)
class Ready(_Told):
    """Ask for a token without waiting."""

    who: Who
    how: How = "plain"


@dataclass(frozen=True, slots=True, repr=False)
class Prewarm(_Told):
    """Mint ahead."""

    who: tuple[Who, ...]
    doors: float | None = None
    budget: float = 1.0


@dataclass(frozen=True, slots=True, repr=False)
class Cancel(_Told):
    """Cancel one of those who wait, counted from the one who came last."""

    caller: int = 0


@dataclass(frozen=True, slots=True, repr=False)
class Reload(_Told):
    """Cancel all who wait for the same as one does, and let one come for it again at once."""

    caller: int = 0


@dataclass(frozen=True, slots=True, repr=False)
class Turn(_Told):
    """Let one turn of the loop pass."""


@dataclass(frozen=True, slots=True, repr=False)
class Advance(_Told):
    """Let time pass."""

    seconds: float


@dataclass(frozen=True, slots=True, repr=False)
class Busy(_Told):
    """Let time pass as if a callback held up the loop."""

    seconds: float


@dataclass(frozen=True, slots=True, repr=False)
class Suspend(_Told):
    """Suspend the host: the monotonic clock stands still meanwhile, and so do its timers."""

    seconds: float


@dataclass(frozen=True, slots=True, repr=False)
class StepWall(_Told):
    """Step the wall clock."""

    seconds: float


@dataclass(frozen=True, slots=True, repr=False)
class Fail(_Told):
    """Let the next answers go wrong."""

    kind: FaultKind
    times: int = 1
    retry_after: str | None = None


@dataclass(frozen=True, slots=True, repr=False)
class Recover(_Told):
    """Let answers go right again."""


@dataclass(frozen=True, slots=True, repr=False)
class Unreachable(_Told):
    """Let the next clients not be opened."""

    times: int = 1


@dataclass(frozen=True, slots=True, repr=False)
class SlowDown(_Told):
    """Let answers take ``seconds`` from now on."""

    seconds: float


@dataclass(frozen=True, slots=True, repr=False)
class Invalidate(_Told):
    """Forget the tokens of a room, of a user, or of a user in a room."""

    room: int | None = None
    user: int | None = None


@dataclass(frozen=True, slots=True, repr=False)
class Close(_Told):
    """Close the service."""

    grace: float = 5.0


Step = (
    Issue
    | Ready
    | Prewarm
    | Cancel
    | Reload
    | Turn
    | Advance
    | Busy
    | Suspend
    | StepWall
    | Fail
    | Recover
    | Unreachable
    | SlowDown
    | Invalidate
    | Close
)


@dataclass(frozen=True, slots=True, repr=False)
class Setting(_Told):
    """How a service and its upstream are set up; the arguments are theirs."""

    rate: float = 10.0
    burst: int | None = None
    max_waiting: int = 100
    max_tokens: int = 100
    max_stock: int = 100
    min_remaining: float = 5.0
    max_attempts: int = 4
    max_delay: float = 1.0
    max_connections: int = 100
    read_timeout: float = 5.0
    quota: str = "unlimited"
    latency: float = 0.02
    jitter: float = 0.0
    opening: float = 0.0
    token_life: float = 60.0
    clock_skew: float = 0.0
    date_header: Literal["normal", "absent", "garbled"] = "normal"


@dataclass(frozen=True, slots=True, repr=False)
class Program(_Told):
    """A random program.

    Args:
        steps: what happens, one after the other, without any time passing of its own accord.
        setting: where.
        seed: of the order in which tasks wake, and of all other chance.
    """

    steps: tuple[Step, ...]
    setting: Setting = Setting()
    seed: int = 0


# How they are made. What comes first is what hypothesis shrinks to.


def _mostly(usual: T, *others: T, times: int = 1) -> st.SearchStrategy[T]:
    """Give the usual value ``times`` as often as all the others together."""
    return st.sampled_from((usual,) * (times * len(others)) + others)


_whos = st.builds(
    Who,
    room=_mostly(0, 1, 2, 3, times=2),
    user=_mostly(0, 1, times=3),
    talks=_mostly(False, True, times=4),
)
_hows = st.sampled_from(("plain", "fresh", "key-1", "key-2"))
_issue = st.builds(
    Issue,
    who=_whos,
    how=_hows,
    timeout=_mostly(None, 0.05, 1.0, 8.0),
    priority=_mostly(Priority.NORMAL, Priority.HIGH, Priority.BACKGROUND),
    callers=st.sampled_from((1, 1, 2, 5)),
    boto3=_mostly(False, True),
)
_ready = st.builds(Ready, who=_whos, how=_hows)
_prewarm = st.builds(
    Prewarm,
    who=st.lists(_whos, min_size=1, max_size=6).map(tuple),
    doors=_mostly(None, 0.5, 3.0, 50.0),
    budget=_mostly(1.0, 0.3, times=3),
)
_turn = st.just(Turn())
_advance = st.builds(
    Advance, st.sampled_from((0.02, 0.001, 0.1, 0.3, 0.5, 1.0, 3.0) * 2 + (20.0, 54.9, 55.1, 60.5))
)
_cancel = st.builds(Cancel, st.integers(0, 5))
_reload = st.builds(Reload, st.integers(0, 5))
_throttles = (FaultKind.THROTTLE_JSON, FaultKind.THROTTLE_HTML, FaultKind.THROTTLE_EMPTY)
_fail = st.builds(
    Fail,
    st.sampled_from(_throttles + tuple(FaultKind)),
    times=st.sampled_from((1, 1, 2, 5)),
    retry_after=_mostly(None, "1", "20", times=2),
)
_common = (
    _issue,
    _issue,
    _issue,
    _turn,
    _turn,
    _advance,
    _advance,
    _cancel,
    _reload,
    _ready,
    _prewarm,
)
_uncommon = (
    _fail,
    _fail,
    _fail,
    st.just(Recover()),
    st.builds(SlowDown, st.sampled_from((0.02, 0.0, 0.7, 4.0, 30.0))),
    st.builds(Unreachable, st.integers(1, 2)),
    st.builds(Invalidate, room=st.just(0)),
    st.builds(Invalidate, room=_mostly(0, None), user=st.just(0)),
    st.builds(Busy, st.sampled_from((0.02, 0.3, 1.5, 6.0))),
    st.builds(Suspend, st.sampled_from((20.0, 56.0, 3600.0))),
    st.builds(StepWall, st.sampled_from((1.0, -1.0, 56.0, -56.0, 3600.0, -3600.0))),
)
_close = st.builds(Close, st.sampled_from((5.0, 0.0, 0.5)))
_kinds: list[st.SearchStrategy[Step]] = [*_common * 6, *_uncommon * 2, _close]
_kind = st.sampled_from(_kinds)


@st.composite
def _step(draw: st.DrawFn) -> Step:
    # Not `one_of`, which would give each strategy the same share.
    return draw(draw(_kind))


_settings = st.builds(
    Setting,
    rate=_mostly(10.0, 0.4, 1.0, 2.0, 3.0, 200.0),
    burst=_mostly(None, 1, 3, 10),
    max_waiting=_mostly(100, 0, 1, 3, times=2),
    max_tokens=_mostly(100, 1, 2, times=2),
    max_stock=_mostly(100, 1, 2, times=2),
    min_remaining=_mostly(5.0, 0.0, 30.0, 59.0, times=2),
    max_attempts=st.sampled_from((4, 1, 2, 12)),
    max_delay=_mostly(1.0, 0.1),
    max_connections=_mostly(100, 1, 3),
    read_timeout=_mostly(5.0, 0.5),
    quota=_mostly("unlimited", "sliding:2", "bucket:2:2", "fixed:5"),
    latency=_mostly(0.02, 0.0, 0.3, 2.0),
    jitter=_mostly(0.0, 0.5),
    opening=_mostly(0.0, 0.1),
    token_life=_mostly(60.0, 20.0, times=4),
    clock_skew=_mostly(0.0, 300.0, -300.0, times=2),
    date_header=_mostly("normal", "absent", "garbled", times=2),
)


def programs() -> st.SearchStrategy[Program]:
    """Return a strategy for programs."""
    return st.builds(
        Program,
        steps=st.lists(st.lists(_step(), max_size=10), max_size=10).map(_joined),
        setting=_settings,
        seed=st.integers(0, 2**16),
    )


def _joined(lists: list[list[Step]]) -> tuple[Step, ...]:
    # One list would seldom be longer than a few steps.
    return tuple(step for each in lists for step in each)
