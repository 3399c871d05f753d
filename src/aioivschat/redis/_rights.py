"""Which rights the user of a fleet needs, each tried by itself."""

from __future__ import annotations

import asyncio
import hashlib
import re
import secrets
from collections.abc import Awaitable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from aioivschat.redis._commands import is_answer
from aioivschat.redis._connecting import open_pubsub
from aioivschat.redis._subscription import name_refused_right
from aioivschat.redis._token_store import as_bytes

_ANSWER_TIMEOUT_SECONDS = 5.0

NOTHING_HEARD = "invalidations are asked for every second, and do not arrive at once"
_NOTHING_SHARED = "the fleet shares nothing, as if the engine were away"
_NO_CLUSTER = "a cluster cannot be used"

_SCRIPT_COMMANDS: dict[str, tuple[str, ...]] = {
    "DEL": (),
    "EXPIRE": ("1",),
    "GET": (),
    "HDEL": ("field",),
    "HGET": ("field",),
    "HGETALL": (),
    "HLEN": (),
    "HMGET": ("field",),
    "HSET": ("field", "1"),
    "LPOP": (),
    "MGET": (),
    "PEXPIRE": ("1000",),
    "PTTL": (),
    "RPUSH": ("1",),
    "SET": ("1", "PX", "1000"),
    "ZADD": ("1", "member"),
    "ZPOPMIN": ("1",),
    "ZRANGEBYSCORE": ("-inf", "+inf"),
    "ZREMRANGEBYSCORE": ("-inf", "+inf"),
    "ZREVRANGE": ("0", "0", "WITHSCORES"),
}
"""What the fleet's scripts do with keys; each with what follows the key."""

# KEYS: a name that nothing else uses. ARGV: none. RETURNS: an empty text.
_NO_COMMAND = "return ''"
_NO_COMMAND_SHA = hashlib.sha1(_NO_COMMAND.encode(), usedforsecurity=False).hexdigest()

# Runs one command on a key; what it wrote is gone afterwards, whichever right is lacking.
# KEYS: a name that nothing else uses. ARGV: the command and its further arguments. RETURNS: why it
# was refused, or an empty text.
_ON_KEY = """
local answer = redis.pcall(ARGV[1], KEYS[1], unpack(ARGV, 2))
redis.pcall('PEXPIRE', KEYS[1], 1000)
redis.pcall('DEL', KEYS[1])
return type(answer) == 'table' and answer.err or ''
"""
# The same without a key.
_WITHOUT_KEY = """
local answer = redis.pcall(unpack(ARGV))
return type(answer) == 'table' and answer.err or ''
"""


@dataclass(frozen=True, slots=True)
class LackingRight:
    """A right that a user does not have.

    Args:
        rule: of an access list, to be added.
        name: what was refused.
        lost: what a fleet does without.
    """

    rule: str
    name: str
    lost: str

    @property
    def cluster_only(self) -> bool:
        """Whether a single server does without it."""
        return self.lost == _NO_CLUSTER


class RightTrials:
    """Tries each right that a fleet needs.

    Args:
        client: of redis-py.
        namespace: the fleet's.

    Attributes:
        heard: whether a message was heard that was published here.
    """

    def __init__(self, client: Any, namespace: str) -> None:
        self.heard = False
        self._lacking: dict[str, LackingRight] = {}  # by their rules
        self._client = client
        self._channel = f"{namespace}:events"
        self._pattern, self._key = f"~{{{namespace}}}:*", f"{{{namespace}}}:check"
        self._quota_pattern = f"~{{{namespace}:*}}:*"
        self._quota_key = f"{{{namespace}:account:region}}:check"
        self._may_eval = False

    @property
    def lacking(self) -> list[LackingRight]:
        """The rights that are not there, each once."""
        return list(self._lacking.values())

    async def run(self) -> None:
        """Try them all; an error says that the engine does not answer."""
        client, keys = self._client, (1, self._key)
        self._may_eval = await self._try("EVAL", _NOTHING_SHARED, client.eval(_NO_COMMAND, *keys))
        await self._try("EVALSHA", _NOTHING_SHARED, client.evalsha(_NO_COMMAND_SHA, *keys))
        for command, arguments in _SCRIPT_COMMANDS.items():
            trial = self._call(command, self._key, *arguments, script=_ON_KEY)
            await self._try(command, _NOTHING_SHARED, trial)
        trial = self._client.execute_command("GET", self._quota_key)
        await self._try("GET", _NOTHING_SHARED, trial, self._quota_pattern)
        await self._try("TIME", _NOTHING_SHARED, self._call("TIME"))
        await self._try_messages()
        for command in ("CLUSTER SLOTS", "COMMAND"):
            await self._try(command, _NO_CLUSTER, client.execute_command(command))

    def _call(self, *command: str, script: str = _WITHOUT_KEY) -> Any:
        """Run a command as the fleet does, in a script; by itself where none may run."""
        if not self._may_eval:
            return self._client.execute_command(*command)
        arguments = [part for part in command if part != self._key]
        return self._client.eval(script, 1, self._key, *arguments)

    async def _try_messages(self) -> None:
        text = f"check:{secrets.token_hex(8)}"
        async with open_pubsub(self._client) as pubsub:

            async def subscribe() -> None:
                await pubsub.subscribe(self._channel)
                await pubsub.get_message(timeout=_ANSWER_TIMEOUT_SECONDS / 2)

            listens = await self._try("SUBSCRIBE", NOTHING_HEARD, subscribe())
            publishing = self._call("PUBLISH", self._channel, text)
            if await self._try("PUBLISH", NOTHING_HEARD, publishing) and listens:
                with suppress(TimeoutError):
                    async with asyncio.timeout(_ANSWER_TIMEOUT_SECONDS):
                        while not self.heard:
                            message = await pubsub.get_message(timeout=_ANSWER_TIMEOUT_SECONDS)
                            self.heard = (
                                bool(message) and as_bytes(message["data"]) == text.encode()
                            )

    async def _try(self, command: str, lost: str, trial: Awaitable[Any], pattern: str = "") -> bool:
        """Note the right that a trial lacks; return whether it lacks none."""
        try:
            answer = await asyncio.wait_for(trial, _ANSWER_TIMEOUT_SECONDS)
        except Exception as error:
            if not is_answer(error):
                raise
            refusal = str(error)
        else:
            refusal = as_bytes(answer).decode() if isinstance(answer, bytes | str) else ""
        rule = f"+{command.lower().replace(' ', '|')}"
        if re.search("permission|user executing the script", refusal):
            name = name_refused_right(refusal, command)
            if name.endswith("key"):
                rule = pattern or self._pattern
            elif name.endswith("channel"):
                rule = f"&{self._channel}"
        elif re.search("unknown.* command", refusal, re.IGNORECASE):
            name = f"no command {command}"
        else:
            return True
        self._lacking.setdefault(rule, LackingRight(rule, name, lost))
        return False
