"""The rooms of all accounts and regions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count, islice
from typing import Any

from ._validation import Arn, Members, room_arn, room_members
from ._wire import ServiceError, new_id

_PAGE_LIMIT = 50
_DIGITS = re.compile(r"[0-9]+")
# A summary, as ListRooms gives it, has all members of a room but these.
_NOT_IN_SUMMARY = frozenset({"maximumMessageRatePerSecond", "maximumMessageLength"})
_DEFAULTS = room_members({})


@dataclass(frozen=True, slots=True)
class _Room:
    serial: int
    region: str
    account: str
    members: Mapping[str, Any]


class Rooms:
    """Creates, finds, lists and deletes rooms; a deleted ARN is remembered as deleted."""

    def __init__(self) -> None:
        self._rooms: dict[str, _Room] = {}
        self._deleted: set[str] = set()
        self._serial = count(1)

    def create(
        self, body: Mapping[str, Any], *, region: str, account: str, now: str
    ) -> dict[str, Any]:
        """Create a room and return its members; ``now`` is the time in ISO 8601."""
        found = room_members(body)
        room_id = new_id()
        arn = f"arn:aws:ivschat:{region}:{account}:room/{room_id}"
        members = {"arn": arn, "id": room_id, "createTime": now, "updateTime": now, **found}
        self._rooms[arn] = _Room(next(self._serial), region, account, members)
        return dict(members)

    def get(self, body: Mapping[str, Any], *, region: str) -> dict[str, Any]:
        """Return a room's members."""
        return dict(self._find(room_arn(body), region).members)

    def list(self, body: Mapping[str, Any], *, region: str, account: str) -> dict[str, Any]:
        """Return one page of summaries, in order of creation, and the token of the next page."""
        members = Members(body)
        name = members.text("name", longest=128)
        handler = members.text("messageReviewHandlerUri", longest=170)
        logging = members.text("loggingConfigurationIdentifier", longest=128)
        limit = members.integer("maxResults", 1, _PAGE_LIMIT, _PAGE_LIMIT)
        # The last room seen, not a position: rooms deleted between two pages shift nothing.
        after = members.text("nextToken", pattern=_DIGITS) or "0"
        members.close()

        matching = (
            room
            for room in self._rooms.values()
            if (room.region, room.account) == (region, account)
            and room.serial > int(after)
            and (not name or room.members["name"] == name)
            and (not handler or room.members["messageReviewHandler"].get("uri") == handler)
            and (not logging or logging in room.members["loggingConfigurationIdentifiers"])
        )
        page = list(islice(matching, limit + 1))
        answer: dict[str, Any] = {"rooms": [_summary(room) for room in page[:limit]]}
        if len(page) > limit:
            answer["nextToken"] = str(page[limit - 1].serial)
        return answer

    def delete(self, body: Mapping[str, Any], *, region: str) -> None:
        """Delete a room."""
        arn = room_arn(body)
        self._find(arn, region)
        del self._rooms[arn.text]
        self._deleted.add(arn.text)

    def admit(self, arn: Arn, *, region: str, any_room: bool) -> None:
        """Raise unless tokens can be made for a room in a region.

        Args:
            arn: the room.
            region: where the request went.
            any_room: every room exists that was not deleted.

        Raises:
            ServiceError: a ``ResourceNotFoundException``.
        """
        exists = arn.text not in self._deleted if any_room else arn.text in self._rooms
        if not exists or arn.region != region:
            raise _not_found(arn, region)

    def rules(self, arn: str, *, any_room: bool) -> Mapping[str, Any] | None:
        """Return what holds for messages in a room, the limits among the room's members.

        Args:
            arn: the room's ARN.
            any_room: every room exists that was not deleted, and has the defaults.

        Returns:
            None if the room does not exist.
        """
        room = self._rooms.get(arn)
        if room is not None:
            return room.members
        return _DEFAULTS if any_room and arn not in self._deleted else None

    def _find(self, arn: Arn, region: str) -> _Room:
        room = self._rooms.get(arn.text)
        if room is None or arn.region != region:
            raise _not_found(arn, region)
        return room


def _summary(room: _Room) -> dict[str, Any]:
    return {name: value for name, value in room.members.items() if name not in _NOT_IN_SUMMARY}


def _not_found(arn: Arn, region: str) -> ServiceError:
    return ServiceError(
        404,
        "ResourceNotFoundException",
        f"Room {arn.room_id} does not exist in {region}",
        resourceId=arn.room_id,
        resourceType="ROOM",
    )
