"""The admin surface of a running emulator, under ``/_emulator``.

- ``GET /_emulator``: settings and counts
- ``PATCH /_emulator``: changes settings; the same answer
- ``POST /_emulator/faults``: queues a fault, or a list of them
- ``DELETE /_emulator/faults``: clears them
- ``POST /_emulator/drop``: cuts every chat connection, or those of ``{"user": ...}``; how many
- ``POST /_emulator/reset``: the state and settings of the start
"""

from __future__ import annotations

import json
from dataclasses import asdict
from http import HTTPStatus

from ._faults import Fault
from ._model import Emulator
from ._wire import Answer, parse_object

PREFIX = "/_emulator"
_HEADERS = {"Content-Type": "application/json"}


def administer(emulator: Emulator, method: str, path: str, body: bytes) -> Answer:
    """Do what an admin request asks for.

    Args:
        emulator: the emulator.
        method: the HTTP method.
        path: the path, `PREFIX` included.
        body: the body.

    Returns:
        200 and JSON, 204, 400 with what is wrong, or 404.
    """
    try:
        match method, path.removeprefix(PREFIX):
            case "GET", "":
                return _state(emulator)
            case "PATCH", "":
                emulator.configure(**_object(body))
                return _state(emulator)
            case "POST", "/faults":
                faults = json.loads(body)
                faults = faults if isinstance(faults, list) else [faults]
                emulator.fail_next(*[Fault.from_json(fault) for fault in faults])
            case "DELETE", "/faults":
                emulator.clear_faults()
            case "POST", "/drop":
                return _answer(HTTPStatus.OK, {"dropped": emulator.chat.drop(_user(body))})
            case "POST", "/reset":
                emulator.reset()
            case _:
                return _answer(HTTPStatus.NOT_FOUND, {"message": "no such admin request"})
    except (ValueError, RecursionError) as error:
        return _answer(HTTPStatus.BAD_REQUEST, {"message": str(error)})
    return Answer(HTTPStatus.NO_CONTENT, {}, b"")


def _state(emulator: Emulator) -> Answer:
    state = {"settings": emulator.settings.to_json(), "counts": asdict(emulator.counts())}
    return _answer(HTTPStatus.OK, state)


def _user(body: bytes) -> str | None:
    members = _object(body)
    user = members.pop("user", None)
    if members or not isinstance(user, str | None):
        raise ValueError("the body may hold a user id as user, and nothing else")
    return user


def _object(body: bytes) -> dict[str, object]:
    value = parse_object(body)
    if value is None:
        raise ValueError("the body must be a JSON object")
    return value


def _answer(status: int, value: object) -> Answer:
    return Answer(status, _HEADERS, json.dumps(value).encode())
