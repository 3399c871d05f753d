"""The rooms of all accounts and regions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count, islice
from typing import Any

from ._validation import Arn, Members, read_room_arn, read_room_members
from ._wire import ServiceError, new_id

_PAGE_LIMIT_ROOMS = 50
_DIGITS = re.compile(r"[0-9]+")
# ListRooms returns a room's members without these.
_NOT_IN_SUMMARY = frozenset({"maximumMessageRatePerSecond", "maximumMessageLength"})
_DEFAULT_MEMBERS = read_room_members({})


@dataclass(frozen=True, slots=True)
class _Room:
    serial: int
    region: str
    account: str
    members: Mapping[str, Any]


class Rooms:
    """The rooms, with the operations of `Emulator`; a deleted room's ARN stays deleted."""

    def __init__(self) -> None:
        self._rooms: dict[str, _Room] = {}
        self._deleted: set[str] = set()
        self._serial = count(1)

    def create(
        self, body: Mapping[str, Any], *, region: str, account: str, now: str
    ) -> dict[str, Any]:
        """Create a room; ``now`` is the time in ISO 8601."""
        found = read_room_members(body)
        room_id = new_id()
        arn = f"arn:aws:ivschat:{region}:{account}:room/{room_id}"
        members = {"arn": arn, "id": room_id, "createTime": now, "updateTime": now, **found}
        self._rooms[arn] = _Room(next(self._serial), region, account, members)
        return dict(members)

    def get(self, body: Mapping[str, Any], *, region: str) -> dict[str, Any]:
        """Return a room's members."""
        arn = read_room_arn(body)
        self.require(arn, region, any_room=False)
        return dict(self._rooms[arn.text].members)

    def list(self, body: Mapping[str, Any], *, region: str, account: str) -> dict[str, Any]:
        """Return one page of rooms, and ``nextToken`` if another page follows."""
        members = Members(body)
        name = members.read_text("name", longest=128)
        handler = members.read_text("messageReviewHandlerUri", longest=170)
        logging = members.read_text("loggingConfigurationIdentifier", longest=128)
        limit = members.read_integer("maxResults", 1, _PAGE_LIMIT_ROOMS, _PAGE_LIMIT_ROOMS)
        # A page begins after a room's serial, not at a position: deleting rooms between two pages
        # makes the next page neither skip nor repeat a room.
        after = members.read_text("nextToken", pattern=_DIGITS) or "0"
        members.raise_problems()

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
        answer: dict[str, Any] = {"rooms": [_summarize_room(room.members) for room in page[:limit]]}
        if len(page) > limit:
            answer["nextToken"] = str(page[limit - 1].serial)
        return answer

    def delete(self, body: Mapping[str, Any], *, region: str) -> None:
        """Delete a room."""
        arn = read_room_arn(body)
        self.require(arn, region, any_room=False)
        del self._rooms[arn.text]
        self._deleted.add(arn.text)

    def require(self, arn: Arn, region: str, any_room: bool) -> None:
        """Raise a ``ResourceNotFoundException`` unless a room exists in a region.

        With ``any_room`` every room exists that was not deleted.
        """
        exists = arn.text not in self._deleted if any_room else arn.text in self._rooms
        if not exists or arn.region != region:
            raise ServiceError(
                404,
                "ResourceNotFoundException",
                f"Room {arn.room_id} does not exist in {region}",
                resourceId=arn.room_id,
                resourceType="ROOM",
            )

    def find_rules(self, arn: str, any_room: bool) -> Mapping[str, Any] | None:
        """Return a room's members, which limit its messages; None if it does not exist.

        A room that exists only by ``any_room`` has the defaults.
        """
        room = self._rooms.get(arn)
        if room is not None:
            return room.members
        return _DEFAULT_MEMBERS if any_room and arn not in self._deleted else None


def _summarize_room(members: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in members.items() if name not in _NOT_IN_SUMMARY}
