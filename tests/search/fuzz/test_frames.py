"""Whatever a chat client sends to the edge: it is relayed, or answered with an ERROR."""

from __future__ import annotations

import json

from hypothesis import example, given
from hypothesis import strategies as st

from aioivschat.emulator import Emulator
from support.fuzzing import Target, bounded
from support.services import ROOM

_ACTIONS = ["SEND_MESSAGE", "DELETE_MESSAGE", "DISCONNECT_USER"]
_CODES = {400, 401, 403, 404, 406, 413, 429, 500}


def check_frame(data: str | bytes) -> None:
    """Check what the sender of a frame gets, and what another in the room gets."""
    emulator = Emulator()
    talker, listener = (
        emulator.chat.connect(
            emulator.create_chat_token(
                {"roomIdentifier": ROOM, "userId": user, "capabilities": _ACTIONS}
            )["token"],
            lambda connection: None,
        )
        for user in ("talker", "listener")
    )
    emulator.chat.receive(talker, data)
    frames: list[list[dict[str, object]]] = [[], []]
    for each, connection in zip(frames, (talker, listener), strict=True):
        while (frame := connection.take()) is not None:
            frame.encode()  # as it goes over the wire
            each.append(json.loads(frame))
    (answer,) = frames[0]
    if answer["Type"] == "ERROR":
        assert answer["ErrorCode"] in _CODES
        assert [] == frames[1]
    else:
        assert answer["Type"] in ("MESSAGE", "EVENT")
        assert frames[0] == frames[1]
        assert isinstance(data, str)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)
_FRAMES = st.fixed_dictionaries(
    {"Action": st.sampled_from(_ACTIONS) | _JSON},
    optional={
        "RequestId": st.text(max_size=5) | _JSON,
        "Content": st.text(max_size=9) | st.integers(495, 505).map("x".__mul__) | _JSON,
        "Attributes": st.dictionaries(st.text(max_size=5), st.text(max_size=5)) | _JSON,
        "Id": st.text(max_size=5) | _JSON,
        "UserId": st.sampled_from(["listener", "x" * 129]) | _JSON,
        "Reason": st.text(max_size=5) | _JSON,
    },
)


@bounded
@given(
    _FRAMES.map(json.dumps) | _JSON.map(json.dumps) | st.text(max_size=20) | st.binary(max_size=9)
)
@example("[" * 100_000)
@example('{"Action": "SEND_MESSAGE", "Content": "x", "RequestId": "\\ud800"}')
def test_a_frame_is_relayed_or_answered(data: str | bytes) -> None:
    """Any frame gets one answer: it is relayed to all, or its sender gets an ERROR."""
    check_frame(data)


def _text(data: bytes) -> None:
    check_frame(data.decode(errors="replace"))


TARGETS = {
    "frames": Target(
        _text,
        (
            b'{"Action": "SEND_MESSAGE", "Content": "x", "Attributes": {"a": "b"}}',
            b'{"Action": "DISCONNECT_USER", "UserId": "listener", "RequestId": "r"}',
        ),
    ),
    "frame-members": Target(test_a_frame_is_relayed_or_answered),
}
