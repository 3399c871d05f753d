"""The command line: options with their ranges and defaults, and the texts of ``--help``.

Imports nothing else of the package, so that ``--help`` is quick. Defaults and limits of the library
are repeated here; a test compares them.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

_Number = TypeVar("_Number", int, float)

_QUOTA_PER_SECOND = 200.0  # requests for an account and region; not adjustable
_DEMO_QUOTA_PER_SECOND = 10.0  # so small that a few dozen viewers have to wait

_ONBOARD = """\
Issue a token for every attendee of a file, as fast as the quota allows, and
print one JSON line for each as it comes:

  {"line": 2, "room": "arn:...", "user": "viewer-0001", "token": "...",
   "tokenExpirationTime": "...", "sessionExpirationTime": "..."}
  {"line": 7, "error": {"code": "InvalidRequest", "message": "..."}}

A token lives one minute and connects once. A job whose first tokens would be
dead when the last one comes (more than 11,000 attendees at 200 a second) needs
--stream and somebody who consumes the output as it comes. A file made by
--output appears when the last token is there; with --stream it is there from
the start and grows by whole lines.

With --resume the same command, run again after any end, goes on where it was:
nobody is lost, and in a file nobody has two lines. On standard output the last
few lines before a kill may come again. The checkpoint holds no token.

Without --aws or --endpoint-url the tokens come from a local emulator.
"""

_FILE_HELP = """\
the file of attendees:
  CSV with a header (.csv), or JSON lines with the same keys (.jsonl, .ndjson);
  otherwise a file that begins with { is JSON lines. A row is one line.

    room              the room's ARN; may be left out with --room
    user              the user's id, 1 to 128 characters
    capabilities      SEND_MESSAGE DELETE_MESSAGE DISCONNECT_USER: any of these,
                      separated by spaces (JSON: a list); none: may view
    attributes        a JSON object, text to text, at most 1,024 bytes
    session_minutes   1 to 180; 60 if it is left out

  Rows that cannot be read are reported by line; all others are done. Rows of
  commas are blank lines. White space at the edge of a cell is an error.

example:
  printf 'user,capabilities\\nviewer-1,SEND_MESSAGE\\nviewer-2,\\n' |
    aioivschat onboard - --room arn:aws:ivschat:us-east-1:123456789012:room/Lobby

exit status: 0 all have a token; 2 a row failed; 1 another failure; 130 interrupted
"""

_ISSUE = """\
Issue one token and print it as a JSON line. Without --aws or
--endpoint-url it comes from a local emulator."""

_ISSUE_EXAMPLE = """\
example:
  aioivschat issue --room arn:aws:ivschat:us-east-1:123456789012:room/Lobby \\
    --user viewer-1 --capability SEND_MESSAGE --attribute displayName=Viewer
"""

_DEMO = """\
Run a chat room on this machine and open its page: a host and a viewer who
chat, lose their connection and come back, a crowd that wants in, and beside
them what becomes of their tokens. Nothing goes to AWS. Ctrl-C ends it.
"""

_FLEET_CHECK = """\
Look at a Valkey or Redis as a fleet would use it, and say what to change: version,
role, eviction, memory, persistence, rights, latency, and a cluster's slots.
"""

_FLEET_EXAMPLE = """\
addresses:
  redis://user:password@host:6379/0   a single server; rediss:// with TLS
  redis+cluster://host:port,host:port a cluster
  redis+sentinel://host:port/name     the master of that name

exit status: 0 it suits; 1 it does not
"""

_PLAN = """\
Tell how the doors of an event will fare: how long viewers wait, when the last
one is in, what the crowd asks for afterwards, and what would make it better.
Nothing is sent anywhere: the real service runs in virtual time.
"""

_REHEARSE = """\
Let the crowd of an event in for real, and show the plan beside what was
measured. Without --aws or --endpoint-url the tokens come from a local emulator.
Ctrl-C ends it and shows what was measured so far.
"""

_REHEARSE_STATUS = """
exit status: 0 all got in; 2 somebody failed; 1 another failure; 130 interrupted,
or not agreed to
"""

_EVENT_HELP = """\
arrivals:
  at-once            all at the moment when the doors open
  uniform:SECONDS    evenly over so many seconds
  ramp:SECONDS       more and more; the last second sees twice the mean
  FILE.csv           a header or none, then rows of a second and the arrivals in
                     it; scaled to --attendees, if given

example:
  aioivschat {command} --attendees {attendees} --arrivals ramp:{seconds} --prewarm {prewarm}

docs/guide.md plans an event from beginning to end, and describes --json.
"""


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options, with the command's ``module`` and ``parser``.

    ``--help``, ``--version`` and wrong use end the process.
    """
    parser = argparse.ArgumentParser(
        prog="aioivschat", description="Issue Amazon IVS Chat tokens at the pace AWS allows."
    )
    parser.add_argument(
        "--version", action=_Version, nargs=0, help="show program's version number and exit"
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_onboard(commands)
    _add_issue(commands)
    _add_plan(commands)
    _add_rehearse(commands)
    _add_demo(commands)
    _add_fleet_check(commands)
    return parser.parse_args(arguments)


class _Version(argparse.Action):
    """Prints the version, which takes longer to find out than all of ``--help``."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        print(f"{parser.prog} {version('aioivschat')}")
        parser.exit()


def _add_command(
    commands: Any,
    name: str,
    summary: str,
    description: str,
    epilog: str | None = None,
    *,
    module: str | None = None,
) -> argparse.ArgumentParser:
    """Add a command that is run by ``aioivschat.cli.NAME``, or by another module there."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(module=f"aioivschat.cli.{module or name}", parser=parser)
    return parser


def _add_onboard(commands: Any) -> None:
    onboard = _add_command(
        commands, "onboard", "issue a token for every attendee of a file", _ONBOARD, _FILE_HELP
    )
    add = onboard.add_argument
    add("attendees", metavar="ATTENDEES", help="the file; - for standard input")
    add(
        "--output",
        metavar="FILE",
        help="write there instead of to standard output: readable by you only, and complete or "
        "absent",
    )
    add("--force", action="store_true", help="replace FILE if it exists")
    add(
        "--stream",
        action="store_true",
        help="tokens are taken while they come: any number of attendees, and FILE grows",
    )
    add(
        "--resume",
        metavar="CHECKPOINT",
        help="keep account of who is done there, and go on from it if it exists",
    )
    add("--format", choices=("csv", "jsonl"), help="instead of going by the file's extension")
    add("--room", metavar="ARN", help="the room of rows that name none")
    _add_token_source(onboard)
    _add_quota(
        onboard, "an account and region", "; the default never sends more than --rate in any second"
    )
    add(
        "--timeout",
        type=_above_zero,
        metavar="S",
        help="seconds that one attendee's token may take (default: as long as it takes)",
    )
    add(
        "--in-flight",
        type=_whole,
        metavar="N",
        help="requests under way or waiting at once (default: two seconds of --rate)",
    )
    add("--quiet", action="store_true", help="no progress bar and no summary")


def _add_issue(commands: Any) -> None:
    issue = _add_command(commands, "issue", "issue one token", _ISSUE, _ISSUE_EXAMPLE)
    issue.set_defaults(rate=_QUOTA_PER_SECOND, burst=None, learnt=None)
    add = issue.add_argument
    add("--room", required=True, metavar="ARN", help="the room's ARN")
    add("--user", required=True, metavar="ID", help="the user's id, 1 to 128 characters")
    add(
        "--capability",
        action="append",
        default=[],
        metavar="NAME",
        help="SEND_MESSAGE, DELETE_MESSAGE or DISCONNECT_USER; may be repeated",
    )
    add(
        "--attribute",
        action="append",
        default=[],
        type=_parse_pair,
        metavar="KEY=VALUE",
        help="what the room shows about the user; may be repeated",
    )
    add("--session-minutes", type=int, default=60, metavar="N", help="1 to 180 (default: 60)")
    _add_token_source(issue)
    add(
        "--timeout",
        type=_above_zero,
        default=30.0,
        metavar="S",
        help="seconds that it may take (default: 30)",
    )


def _add_demo(commands: Any) -> None:
    demo = _add_command(commands, "demo", "open a page with two people in one chat room", _DEMO)
    add = demo.add_argument
    add(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="address to listen on (default: %(default)s; any other lets others in)",
    )
    add(
        "--port", type=_port, default=0, metavar="N", help="port to listen on (default: a free one)"
    )
    add(
        "--rate",
        type=_above_zero,
        default=_DEMO_QUOTA_PER_SECOND,
        metavar="N",
        help="tokens a second that the emulator allows (default: %(default)g)",
    )
    add("--no-open", action="store_true", help="do not open the page in a browser")


def _add_fleet_check(commands: Any) -> None:
    fleet = commands.add_parser("fleet", help="look at the engine that a fleet shares")
    checks = fleet.add_subparsers(required=True, metavar="COMMAND")
    check = _add_command(
        checks,
        "check",
        "say whether a Valkey or Redis suits, and what to change",
        _FLEET_CHECK,
        _FLEET_EXAMPLE,
        module="fleet",
    )
    check.add_argument(
        "url",
        metavar="URL",
        help="its address, as RedisTier takes it; - reads it from standard input, as others see "
        "a command line with its password",
    )
    check.add_argument(
        "--namespace",
        default="aioivschat",
        metavar="NAME",
        help="the fleet's (default: %(default)s)",
    )


def _add_plan(commands: Any) -> None:
    event_help = _EVENT_HELP.format(command="plan", attendees=50000, seconds=120, prewarm=50)
    plan = _add_command(
        commands, "plan", "tell how the doors of an event will fare", _PLAN, event_help
    )
    _add_event(plan)


def _add_rehearse(commands: Any) -> None:
    event_help = _EVENT_HELP.format(command="rehearse", attendees=2000, seconds=5, prewarm=3)
    rehearse = _add_command(
        commands,
        "rehearse",
        "let the crowd of an event in for real, beside its plan",
        _REHEARSE,
        event_help + _REHEARSE_STATUS,
    )
    _add_event(rehearse)
    add = rehearse.add_argument
    add(
        "--room",
        action="append",
        default=[],
        metavar="ARN",
        help="a room of the event, instead of --rooms and --regions; may be repeated",
    )
    _add_token_source(rehearse)
    add("--yes", action="store_true", help="spend the account's quota without asking first")
    add("--quiet", action="store_true", help="no live view")


def _add_event(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--attendees", type=_whole, metavar="N", help="how many come")
    add(
        "--arrivals",
        default="at-once",
        metavar="CURVE",
        help="when they come: at-once (default), uniform:SECONDS, ramp:SECONDS, or FILE.csv",
    )
    _add_quota(parser, "the account in each region")
    add(
        "--prewarm",
        type=float,
        default=0.0,
        metavar="S",
        help="seconds before the doors that may be used to mint ahead, at most 55 (default: 0)",
    )
    add("--rooms", type=_whole, metavar="N", help="rooms (default: one for each region)")
    add("--regions", type=_whole, default=1, metavar="N", help="regions (default: 1)")
    add("--session-minutes", type=int, default=60, metavar="N", help="1 to 180 (default: 60)")
    add(
        "--reconnects",
        type=float,
        default=1.0,
        metavar="N",
        help="lost connections of a viewer an hour (default: 1; count yours)",
    )
    add(
        "--renew",
        choices=("session", "token"),
        default="session",
        help="what clients are given as tokenExpirationTime: the session's end (default), or "
        "AWS's own value, which costs a token about every 30 s",
    )
    add(
        "--patience",
        type=_above_zero,
        default=10.0,
        metavar="S",
        help="seconds that a viewer waits gladly (default: 10)",
    )
    add(
        "--latency",
        type=float,
        default=0.02,
        metavar="S",
        help="seconds from a request to its token (default: 0.02)",
    )
    add("--json", action="store_true", help="print one JSON object instead of table and chart")
    add("--plot", metavar="FILE", help="draw a picture, .svg or .png (needs aioivschat[plot])")


def _add_quota(parser: argparse.ArgumentParser, whose: str, more: str = "") -> None:
    parser.add_argument(
        "--rate",
        type=_above_zero,
        default=_QUOTA_PER_SECOND,
        metavar="N",
        help=f"requests a second allowed to {whose} (default: %(default)g)",
    )
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument(
        "--burst",
        type=_whole,
        metavar="N",
        help=f"size of the quota's bucket, where it is known{more}",
    )
    shape.add_argument(
        "--learnt",
        type=_whole,
        metavar="N",
        help="requests that a former run saw served at once, to begin with and go on learning",
    )


def _add_token_source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--aws", action="store_true", help="ask AWS, with the credentials that boto3 would use"
    )
    parser.add_argument(
        "--endpoint-url",
        metavar="URL",
        help="ask this endpoint, with the credentials that boto3 would use",
    )
    parser.add_argument("--profile", metavar="NAME", help="profile of the AWS configuration")
    parser.add_argument(
        "--allow-http",
        metavar="HOST",
        help="the endpoint may be HTTP on this other host, as an emulator in a container has it",
    )


def _number(
    convert: Callable[[str], _Number], is_allowed: Callable[[_Number], bool], allowed: str
) -> Callable[[str], _Number]:
    """Return the type of an option: a number within a range."""

    def parse(text: str) -> _Number:
        with suppress(ValueError):
            number = convert(text)
            if is_allowed(number):
                return number
        raise argparse.ArgumentTypeError(f"must be {allowed}")

    return parse


_above_zero = _number(float, lambda number: 0 < number < math.inf, "a number above 0")
_whole = _number(int, lambda number: number >= 1, "a whole number, at least 1")
_port = _number(int, lambda number: 0 <= number <= 65535, "a port, 0 to 65535")


def _parse_pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError("must be KEY=VALUE")
    return key, value
