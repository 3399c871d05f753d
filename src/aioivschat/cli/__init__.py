"""The command ``aioivschat``: tokens for a user, a file or a demo, and the engine of a fleet.

Exit status: 0 if all went well, 2 if a row failed or the command was used wrongly, 1 for any other
failure, 130 after an interrupt (128 and the signal's number after another signal).

Here is what reads the command line; a module beside it does what is asked for, and is imported only
then: ``--help`` is quick.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from typing import Any

OK, FAILED, ROWS_FAILED, INTERRUPTED = 0, 1, 2, 130

_QUOTA = 200.0  # requests a second for an account and region; not adjustable
_DEMO_QUOTA = 10.0  # so small that a few dozen viewers have to wait

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

  Rows that cannot be read are reported by line; all others are done.

example:
  printf 'user,capabilities\\nviewer-1,SEND_MESSAGE\\nviewer-2,\\n' |
    aioivschat onboard - --room arn:aws:ivschat:us-east-1:123456789012:room/Lobby

exit status: 0 all have a token; 2 a row failed; 1 another failure; 130 interrupted
"""

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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: the command line without the program's name; ``None``: that of the process.

    Returns:
        The exit status.
    """
    options = _parser().parse_args(arguments)
    try:
        status: int = import_module(options.module).run(options)
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        from aioivschat.cli.process import explain

        return explain(error)
    return status


class _Version(argparse.Action):
    """Prints the version, which takes longer to find out than all of ``--help``."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        print(f"{parser.prog} {version('aioivschat')}")
        parser.exit()


def _parser() -> argparse.ArgumentParser:
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
    _add_fleet(commands)
    return parser


def _add_onboard(commands: Any) -> None:
    onboard = commands.add_parser(
        "onboard",
        help="issue a token for every attendee of a file",
        description=_ONBOARD,
        epilog=_FILE_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    onboard.set_defaults(module="aioivschat.cli.onboard", parser=onboard)
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
    _add_target(onboard)
    add(
        "--rate",
        type=_above_zero,
        default=_QUOTA,
        metavar="N",
        help="requests a second allowed to an account and region (default: 200)",
    )
    add(
        "--burst",
        type=_whole,
        metavar="N",
        help="size of the quota's bucket, where it is known; the default never sends more than "
        "--rate in any second",
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
    issue = commands.add_parser(
        "issue",
        help="issue one token",
        description="Issue one token and print it as a JSON line. Without --aws or\n"
        "--endpoint-url it comes from a local emulator.",
        epilog=_ISSUE_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    issue.set_defaults(module="aioivschat.cli.issue", parser=issue, rate=_QUOTA, burst=None)
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
        type=_pair,
        metavar="KEY=VALUE",
        help="what the room shows about the user; may be repeated",
    )
    add("--session-minutes", type=int, default=60, metavar="N", help="1 to 180 (default: 60)")
    _add_target(issue)
    add(
        "--timeout",
        type=_above_zero,
        default=30.0,
        metavar="S",
        help="seconds that it may take (default: 30)",
    )


def _add_demo(commands: Any) -> None:
    demo = commands.add_parser(
        "demo",
        help="open a page with two people in one chat room",
        description=_DEMO,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    demo.set_defaults(module="aioivschat.cli.demo", parser=demo)
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
        default=_DEMO_QUOTA,
        metavar="N",
        help="tokens a second that the emulator allows (default: %(default)g)",
    )
    add("--no-open", action="store_true", help="do not open the page in a browser")


def _add_fleet(commands: Any) -> None:
    fleet = commands.add_parser("fleet", help="look at the engine that a fleet shares")
    checks = fleet.add_subparsers(required=True, metavar="COMMAND")
    check = checks.add_parser(
        "check",
        help="say whether a Valkey or Redis suits, and what to change",
        description=_FLEET_CHECK,
        epilog=_FLEET_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    check.set_defaults(module="aioivschat.cli.fleet", parser=check)
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
    plan = commands.add_parser(
        "plan",
        help="tell how the doors of an event will fare",
        description=_PLAN,
        epilog=_EVENT_HELP.format(command="plan", attendees=50000, seconds=120, prewarm=50),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    plan.set_defaults(module="aioivschat.cli.plan", parser=plan)
    _add_event(plan)


def _add_rehearse(commands: Any) -> None:
    rehearse = commands.add_parser(
        "rehearse",
        help="let the crowd of an event in for real, beside its plan",
        description=_REHEARSE,
        epilog=_EVENT_HELP.format(command="rehearse", attendees=2000, seconds=5, prewarm=3)
        + "\nexit status: 0 all got in; 2 somebody failed; 1 another failure; 130 interrupted,\n"
        "or not agreed to\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    rehearse.set_defaults(module="aioivschat.cli.rehearse", parser=rehearse)
    _add_event(rehearse)
    add = rehearse.add_argument
    add(
        "--room",
        action="append",
        default=[],
        metavar="ARN",
        help="a room of the event, instead of --rooms and --regions; may be repeated",
    )
    _add_target(rehearse)
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
    add(
        "--rate",
        type=_above_zero,
        default=_QUOTA,
        metavar="N",
        help="requests a second allowed to the account in each region (default: 200)",
    )
    add("--burst", type=_whole, metavar="N", help="size of the quota's bucket, where it is known")
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


def _add_target(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--aws", action="store_true", help="ask AWS, with the credentials that boto3 would use"
    )
    parser.add_argument(
        "--endpoint-url",
        metavar="URL",
        help="ask this endpoint, with the credentials that boto3 would use",
    )
    parser.add_argument("--profile", metavar="NAME", help="profile of the AWS configuration")


def _above_zero(text: str) -> float:
    with suppress(ValueError):
        number = float(text)
        if number > 0 and math.isfinite(number):
            return number
    raise argparse.ArgumentTypeError("must be a number above 0")


def _whole(text: str) -> int:
    with suppress(ValueError):
        number = int(text)
        if number >= 1:
            return number
    raise argparse.ArgumentTypeError("must be a whole number, at least 1")


def _port(text: str) -> int:
    with suppress(ValueError):
        number = int(text)
        if 0 <= number <= 65535:
            return number
    raise argparse.ArgumentTypeError("must be a port, 0 to 65535")


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError("must be KEY=VALUE")
    return key, value
