"""What settings may be, and what an invalid one does."""

from __future__ import annotations

from typing import Any

import pytest

from aioivschat.emulator import Emulator
from support.emulators import answer


@pytest.mark.parametrize(
    "setting",
    [
        {"latency": -1},
        {"latency": "1"},
        {"jitter": float("nan")},
        {"clock_skew": float("inf")},
        {"token_life": True},
        {"any_room": 1},
        {"date_header": "wrong"},
        {"quota": "nonsense"},
        {"quota": 200},
        {"unheard_of": 1},
    ],
)
def test_invalid_setting_changes_nothing(emulator: Emulator, setting: dict[str, Any]) -> None:
    """An invalid setting is refused, at construction and later, and changes nothing."""
    before = emulator.settings
    with pytest.raises(ValueError, match=r".+"):
        emulator.configure(**{"minute": 1.0, **setting})
    assert before == emulator.settings
    with pytest.raises(ValueError, match=r".+"):
        Emulator(**setting)


@pytest.mark.parametrize(
    ("setting", "sent"), [("absent", None), ("garbled", "yesterday, around noon")]
)
def test_date_header_can_be_wrong(emulator: Emulator, setting: str, sent: str | None) -> None:
    """The Date header can be left out, or be no date."""
    emulator.configure(date_header=setting)
    assert sent == answer(emulator).headers.get("Date")


@pytest.mark.parametrize("value", ["nonsense", None, True])
def test_refusal_is_one_of_three(value: Any) -> None:
    """A refusal that is none of the three raises ValueError."""
    with pytest.raises(ValueError, match="refusal"):
        Emulator(refusal=value)
