"""Whatever AWS answers: a token, or an error of ours, and the same of both ways."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import AsyncExitStack
from functools import cache
from typing import Any

import botocore.session
import pytest
from botocore.awsrequest import HeadersDict
from botocore.parsers import create_parser
from hypothesis import example, given
from hypothesis import strategies as st

from aioivschat import ChatTokenError, MalformedResponse, PoolPolicy, Throttled, TokenRequest
from aioivschat._aws.clients import ClientPool, NewToken, _parse_reply
from aioivschat._aws.errors import translate_error
from aioivschat._aws.requests import parse_success
from support.fuzzing import Target, bounded
from support.raw_servers import BODY, DATE, REGION, RawServer, http, open_pool, raw_server
from support.services import ROOM

REQUEST = TokenRequest(ROOM, "canary-7Qd1", {"SEND_MESSAGE"}, {"name": "canary-Zx93"})
CANARIES = ("canary-7Qd1", "canary-Zx93")


@cache
def _parser() -> Any:
    model = botocore.session.Session().get_service_model("ivschat")
    return create_parser(model.protocol), model.operation_model("CreateChatToken").output_shape


def _parsed(body: bytes, headers: dict[str, str]) -> Any:
    """Return what botocore itself makes of a success, its exception if it cannot read it."""
    parser, shape = _parser()
    answer = {"status_code": 200, "headers": HeadersDict(headers), "body": body}
    try:
        return parser.parse(answer, shape)
    except Exception as error:
        return error


def check_reply(body: bytes, headers: dict[str, str]) -> None:
    """Check that what is read in the short way is what botocore reads, and that it is checked."""
    theirs = _parsed(body, headers)
    ours = parse_success(body, headers)
    if ours is not None:
        for member in ("token", "tokenExpirationTime", "sessionExpirationTime"):
            assert theirs[member] == ours[member]
        assert theirs["ResponseMetadata"]["RequestId"] == ours["ResponseMetadata"]["RequestId"]
    # As the pool does: an exception, whatever it is, becomes one of ours.
    try:
        if isinstance(theirs, Exception):
            raise theirs
        minted = _parse_reply(theirs, 4_000_000_000.0)
    except MalformedResponse:
        return
    except Exception as error:
        assert isinstance(translate_error(error, REQUEST, {}), MalformedResponse)
        return
    assert 0 < minted.life <= 60
    assert minted.token.token


_DIGITS = st.text("0123456789", min_size=1, max_size=5)
_TIMES = st.one_of(
    st.builds(
        "{}-{}-{}{}{}:{}:{}{}{}".format,
        st.sampled_from(["2099", "0001", "9999", "0000"]) | _DIGITS,
        st.sampled_from(["01", "12", "1", "13"]),
        st.sampled_from(["01", "31", "5", "00"]),
        st.sampled_from(["T", "T", " ", "t"]),
        st.sampled_from(["00", "23", "24"]),
        st.sampled_from(["59", "00", "60"]),
        st.sampled_from(["00", "59", "60", "61"]),
        st.just("") | _DIGITS.map(lambda text: f".{text}"),
        st.sampled_from(["Z", "Z", "", "+00:00", "-23:59", "+14:00", "+2400", " UTC", "z"]),
    ),
    st.text(max_size=12),
    st.integers(),
    st.floats(),
    st.none(),
)
_JSON = st.recursive(
    _TIMES | st.booleans(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)
_BODIES = st.one_of(
    st.binary(max_size=60),
    st.fixed_dictionaries(
        {},
        optional={
            "token": st.text(max_size=5) | _JSON,
            "tokenExpirationTime": _TIMES,
            "sessionExpirationTime": _TIMES,
            "__type": st.sampled_from(["ThrottlingException", "a#b:c"]) | _JSON,
            "message": st.text(max_size=5) | _JSON,
            "code": _JSON,
        },
    ).map(lambda members: json.dumps(members).encode("utf-8")),
    _JSON.map(lambda value: json.dumps(value).encode()),
    st.builds(lambda end: BODY[:end], st.integers(0, len(BODY))),
)
_TEXTS = st.text(st.characters(codec="latin-1", exclude_categories=["Cc"]), max_size=12)
_DATES = st.one_of(
    st.builds(
        "{}{} {} {} {}:{}:{} {}".format,
        st.sampled_from(["Mon, ", "", "Xyz, "]),
        st.sampled_from(["05", "31", "0", "-1"]) | _DIGITS,
        st.sampled_from(["Jan", "Feb", "jan", "XXX", "1"]),
        st.sampled_from(["2099", "99", "0", "9999", "10000", "-1"]) | _DIGITS,
        st.sampled_from(["10", "24", "-1"]),
        st.sampled_from(["00", "60"]),
        st.sampled_from(["00", "60"]),
        st.sampled_from(["GMT", "", "+0000", "-9999", "+2400", "EST", "+99999999999999"]) | _TEXTS,
    ),
    _TEXTS,
)
_HEADERS = st.fixed_dictionaries(
    {},
    optional={
        "Date": _DATES,
        "Retry-After": _DATES | st.integers().map(str) | _DIGITS,
        "x-amzn-RequestId": _TEXTS,
        "x-amzn-errortype": _TEXTS,
        "Content-Type": st.sampled_from(["application/json", "text/html"]) | _TEXTS,
        "X-Other": _TEXTS,
    },
)

_LATER = "Mon, 05 Jan 99999999999999999999 10:00:00 GMT"


@pytest.mark.fault(10)
@bounded
@given(body=_BODIES, headers=_HEADERS)
@example(BODY.replace(b"2099-01-05T11:00:00.000Z", b"9999-12-31T23:59:59-10:00"), {})
@example(BODY, {"Date": _LATER})
def test_a_success_is_read_as_botocore_reads_it(body: bytes, headers: dict[str, str]) -> None:
    """In the short way or the long one; what is no token is malformed, and nothing else."""
    check_reply(body, {name.lower(): value for name, value in headers.items()})


# The whole of it, over a connection.


class _Upstream:
    """A server that answers as it is told, and the two ways to it."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner()
        self._stack = AsyncExitStack()
        self._server, self._pools = self._runner.run(self._open())

    async def _open(self) -> tuple[RawServer, list[ClientPool]]:
        server = await self._stack.enter_async_context(raw_server(successes_first=4))
        pools = []
        for prepared in (True, False):
            pool, reasons = await self._stack.enter_async_context(
                open_pool(server.url, policy=PoolPolicy(prepared=prepared))
            )
            pools.append(pool)
            for _ in range(2):
                await pool.mint(REGION, REQUEST)
            assert [] == reasons
        # What one answer leaves of its connection is not another's.
        server.then = lambda writer: writer.close()
        return server, pools

    def outcomes(self, answer: bytes) -> list[object]:
        """Return what comes of an answer, prepared and in the general way."""
        self._server.answer = answer
        self._server.seen.clear()
        return [self._runner.run(self._mint(pool)) for pool in self._pools]

    async def _mint(self, pool: ClientPool) -> object:
        try:
            return await pool.mint(REGION, REQUEST)
        except Exception as error:
            return error

    def close(self) -> None:
        self._runner.run(self._stack.aclose())
        self._runner.close()


@cache
def _upstream() -> _Upstream:
    return _Upstream()


@pytest.fixture(scope="module", autouse=True)
def _closed() -> Iterator[None]:
    """Close what the tests opened."""
    yield
    if _upstream.cache_info().currsize:
        _upstream().close()
        _upstream.cache_clear()


def _told(outcome: object) -> object:
    """Return all that can be told of an outcome, that must be a token or an error of ours."""
    if isinstance(outcome, NewToken):
        return outcome
    assert isinstance(outcome, ChatTokenError)
    assert (None, None) == (outcome.__cause__, outcome.__context__)
    text = f"{outcome!r} {outcome} {vars(outcome)}"
    assert not any(canary in text for canary in CANARIES)
    retry_after = getattr(outcome, "retry_after", None)
    assert retry_after is None or 0 <= retry_after <= 10
    return type(outcome).__name__, text


def check_answer(status: int, headers: dict[str, str], body: bytes) -> None:
    """Check what comes of a whole answer."""
    lines = [f"{name}: {value}".encode("latin-1") for name, value in headers.items()]
    answer = http(body, *lines, status=f"{status} Some")
    for name, line in (("Date", DATE), ("x-amzn-RequestId", "x-amzn-RequestId: r")):
        if name in headers:
            answer = answer.replace(f"{line}\r\n".encode(), b"", 1)
    prepared, general = map(_told, _upstream().outcomes(answer))
    assert general == prepared


_STATUSES = st.sampled_from([200, 200, 400, 403, 404, 418, 429, 500, 503, 599])


@pytest.mark.fault(10)
@bounded
@given(status=_STATUSES, headers=_HEADERS, body=_BODIES)
@example(429, {"Retry-After": _LATER}, b"")
@example(429, {"Retry-After": "9" * 400}, b"")
@example(503, {"Retry-After": "Mon, 05 Jan 2099 10:00:00 +99999999999999"}, b"")
@example(200, {"Date": _LATER}, BODY)
def test_an_answer_is_a_token_or_an_error_of_ours_either_way(
    status: int, headers: dict[str, str], body: bytes
) -> None:
    """With the same details, and nothing secret in it."""
    check_answer(status, headers, body)


@pytest.mark.fault(11)
@bounded
@given(headers=_HEADERS, body=_BODIES)
@example({}, b"[]")
@example({}, b'{"__type": 5}')
@example({}, b"[" * 100_000)
def test_a_429_is_throttling_whatever_comes_with_it(headers: dict[str, str], body: bytes) -> None:
    """Also where botocore could make nothing of the body."""
    check_answer(429, headers, body)
    for outcome in _upstream().outcomes(http(body, status="429 Slow Down")):
        assert isinstance(outcome, Throttled)


def _reply(data: bytes) -> None:
    check_reply(data, {"x-amzn-requestid": "r", "date": DATE.partition(": ")[2]})


TARGETS = {
    "replies": Target(_reply, (BODY, b"{}", BODY.replace(b".000Z", b"+01:00"))),
    "reply-members": Target(test_a_success_is_read_as_botocore_reads_it),
    "answers": Target(test_an_answer_is_a_token_or_an_error_of_ours_either_way),
}
