"""What the command line repeats of the library, so that ``--help`` need not load it."""

from __future__ import annotations

import dataclasses
import math
from argparse import Namespace

import pytest

from aioivschat import CachePolicy, InvalidConfiguration, Quota, TokenRequest
from aioivschat._models import TOKEN_LIFE_SECONDS
from aioivschat.cli.options import parse_options
from aioivschat.planning import LiveEvent

ROOM = "arn:aws:ivschat:us-east-1:123456789012:room/Lobby"
COMMANDS = {
    "onboard": ["onboard", "-"],
    "issue": ["issue", "--room", ROOM, "--user", "alice"],
    "plan": ["plan"],
    "rehearse": ["rehearse"],
}


@pytest.fixture(params=COMMANDS)
def options(request: pytest.FixtureRequest) -> Namespace:
    """Return the options of a command that is given only what it cannot do without."""
    return parse_options(COMMANDS[request.param])


def test_the_default_quota_is_that_of_the_library(options: Namespace) -> None:
    """``--rate``, ``--burst`` and ``--learnt`` default to the library's Quota."""
    assert Quota() == Quota(rate=options.rate, burst=options.burst, learnt=options.learnt)


@pytest.mark.parametrize("command", ["plan", "rehearse"])
def test_the_default_event_is_that_of_the_library(command: str) -> None:
    """Every option that is called like a member of LiveEvent has its default."""
    options = vars(parse_options(COMMANDS[command]))
    defaults = {
        field.name: field.default
        for field in dataclasses.fields(LiveEvent)
        if field.name in options and field.default is not dataclasses.MISSING
    }
    own = {"arrivals", "rooms"}  # a text; one for each region
    assert len(defaults.keys() - own) >= 6
    assert {name: options[name] for name in defaults.keys() - own} == {
        name: default for name, default in defaults.items() if name not in own
    }
    assert TokenRequest(ROOM, "alice").session_minutes == options["session_minutes"]


def test_help_tells_how_long_a_token_can_be_kept(capsys: pytest.CaptureFixture[str]) -> None:
    """The seconds of ``--prewarm`` and the size of a job follow from a token's life."""
    usable = TOKEN_LIFE_SECONDS - CachePolicy().min_remaining
    LiveEvent(1, prewarm=usable)
    with pytest.raises(InvalidConfiguration):
        LiveEvent(1, prewarm=math.nextafter(usable, math.inf))
    with pytest.raises(SystemExit):
        parse_options(["plan", "--help"])
    assert f"at most {usable:g} " in " ".join(capsys.readouterr().out.split())
    with pytest.raises(SystemExit):
        parse_options(["onboard", "--help"])
    most = f"more than {usable * Quota().rate:,.0f} attendees at {Quota().rate:g} a second"
    assert most in " ".join(capsys.readouterr().out.split())
