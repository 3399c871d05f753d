"""The admin surface of a running emulator, under ``/_emulator``.

- ``GET /_emulator``: settings and counts
- ``PATCH /_emulator``: changes settings, then as ``GET``
- ``POST /_emulator/faults``: queues a fault, or a list of faults
- ``DELETE /_emulator/faults``: clears the faults
- ``POST /_emulator/drop``: cuts the chat connections of ``{"user": ...}``, or all; their number
- ``POST /_emulator/reset``: returns to the state and settings of the start
"""

from __future__ import annotations

import json
from dataclasses import asdict
from http import HTTPStatus

from ._faults import Fault
from ._model import Emulator
from ._wire import Answer, parse_json_object

ADMIN_PREFIX = "/_emulator"


def answer_admin_request(emulator: Emulator, method: str, path: str, body: bytes) -> Answer:
    """Perform an admin request; answer 200 and JSON, 204, 400 with what is wrong, or 404."""
    try:
        match method, path.removeprefix(ADMIN_PREFIX):
            case "GET", "":
                return _make_state_answer(emulator)
            case "PATCH", "":
                emulator.configure(**_parse_body(body))
                return _make_state_answer(emulator)
            case "POST", "/faults":
                faults = json.loads(body)
                faults = faults if isinstance(faults, list) else [faults]
                emulator.fail_next(*[Fault.from_json(fault) for fault in faults])
            case "DELETE", "/faults":
                emulator.clear_faults()
            case "POST", "/drop":
                members = _parse_body(body)
                user = members.pop("user", None)
                if members or not isinstance(user, str | None):
                    raise ValueError("the body may hold a user id as user, and nothing else")
                return _make_json_answer(HTTPStatus.OK, {"dropped": emulator.chat.drop(user)})
            case "POST", "/reset":
                emulator.reset()
            case _:
                return _make_json_answer(HTTPStatus.NOT_FOUND, {"message": "no such admin request"})
    except (ValueError, RecursionError) as error:
        return _make_json_answer(HTTPStatus.BAD_REQUEST, {"message": str(error)})
    return Answer(HTTPStatus.NO_CONTENT, {}, b"")


def _make_state_answer(emulator: Emulator) -> Answer:
    state = {"settings": emulator.settings.to_json(), "counts": asdict(emulator.counts())}
    return _make_json_answer(HTTPStatus.OK, state)


def _parse_body(body: bytes) -> dict[str, object]:
    value = parse_json_object(body)
    if value is None:
        raise ValueError("the body must be a JSON object")
    return value


def _make_json_answer(status: int, value: object) -> Answer:
    return Answer(status, {"Content-Type": "application/json"}, json.dumps(value).encode())
