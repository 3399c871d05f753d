"""Rooms are created, found, listed and deleted, and limit who gets a token."""

from __future__ import annotations

import pytest

from aioivschat.emulator import Emulator, ServiceError
from support.emulators import EUROPE, answer, members, token_request


def test_room_is_created_found_and_deleted(emulator: Emulator) -> None:
    """A room is there from its creation to its deletion."""
    room = emulator.create_room({"name": "lobby"}, region="eu-west-1", account="210987654321")
    assert f"arn:aws:ivschat:eu-west-1:210987654321:room/{room['id']}" == room["arn"]
    assert (12, True) == (len(room["id"]), room["id"].isalnum())

    identifier = {"identifier": room["arn"]}
    assert room == emulator.get_room(identifier, region="eu-west-1")
    emulator.delete_room(identifier, region="eu-west-1")
    with pytest.raises(ServiceError, match="ResourceNotFoundException"):
        emulator.get_room(identifier, region="eu-west-1")


def test_rooms_are_listed_by_pages_that_survive_deletion(emulator: Emulator) -> None:
    """Pages list each room once, although one already listed is deleted between."""
    arns = [emulator.create_room({"name": f"room-{n}"})["arn"] for n in range(7)]
    first = emulator.list_rooms({"maxResults": 3})
    emulator.delete_room({"identifier": arns[2]})
    second = emulator.list_rooms({"maxResults": 3, "nextToken": first["nextToken"]})
    last = emulator.list_rooms({"maxResults": 3, "nextToken": second["nextToken"]})
    seen = [room["arn"] for page in (first, second, last) for room in page["rooms"]]
    assert arns == seen
    assert "nextToken" not in last


def test_rooms_are_listed_by_account_region_and_name(emulator: Emulator) -> None:
    """A list holds no room of another account, region or name."""
    wanted = emulator.create_room({"name": "lobby"})["arn"]
    emulator.create_room({"name": "hall"})
    emulator.create_room({"name": "lobby"}, region="eu-west-1")
    emulator.create_room({"name": "lobby"}, account="210987654321")
    rooms = emulator.list_rooms({"name": "lobby"})["rooms"]
    assert [wanted] == [room["arn"] for room in rooms]


@pytest.mark.parametrize("any_room", [True, False])
def test_room_that_was_deleted_has_no_tokens(any_room: bool) -> None:
    """A deleted room gives no tokens, whether or not all rooms are taken to exist."""
    emulator = Emulator(any_room=any_room)
    arn = emulator.create_room()["arn"]
    assert 200 == answer(emulator, token_request(roomIdentifier=arn)).status
    emulator.delete_room({"identifier": arn})
    assert 404 == answer(emulator, token_request(roomIdentifier=arn)).status


def test_unknown_room_is_not_found_if_rooms_must_exist() -> None:
    """If rooms must exist, an unknown one gives the error of the service model."""
    refusal = answer(Emulator(any_room=False))
    error = members(refusal)
    assert (404, "ResourceNotFoundException") == (
        refusal.status,
        refusal.headers["x-amzn-errortype"],
    )
    assert ("AbCdEf123456", "ROOM") == (error["resourceId"], error["resourceType"])


def test_room_of_another_region_is_not_found(emulator: Emulator) -> None:
    """A request must go to the region that is in the room's ARN."""
    assert 404 == answer(emulator, token_request(roomIdentifier=EUROPE)).status
    assert 200 == answer(emulator, token_request("eu-west-1", roomIdentifier=EUROPE)).status
