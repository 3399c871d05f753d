"""A process that has imported what the command needs, and forks once for each command.

``python -m support.fork_server DESCRIPTOR``: the descriptor is of a socket, over which each command
comes as four descriptors. The first is a socket of the command's own: it brings what to run as
JSON, and takes the process's id and exit status, a line each. The others are its standard streams.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import pkgutil
import resource
import signal
import socket
import sys
import threading
from importlib import import_module
from typing import Any, NoReturn

LIBRARIES = (
    "aioivschat.emulator.server",
    "aioivschat.redis",
    "aiobotocore.config",
    "aiobotocore.httpsession",
    "aiobotocore.session",
    "matplotlib.backends.backend_agg",
    "matplotlib.backends.backend_svg",
    "matplotlib.figure",
    "rich.progress",
)


def import_libraries() -> None:
    """Import what most of a command's time goes into."""
    command = import_module("aioivschat.cli")
    modules = [
        f"{command.__name__}.{found.name}" for found in pkgutil.iter_modules(command.__path__)
    ]
    for name in (*modules, *LIBRARIES):
        import_module(name)
    # A child that collects would copy all these objects.
    gc.freeze()


def wait_for_command(requests: socket.socket) -> list[str]:
    """Fork for each command that comes; return its arguments, in the process that is to run it."""
    # Nobody waits for the children of this process; theirs are waited for.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        _, received, *_ = socket.recv_fds(requests, 1, 4)
        if not received:
            os._exit(0)
        if os.fork() == 0:
            requests.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            return _fork_command(received)
        for descriptor in received:
            os.close(descriptor)


def _fork_command(received: list[int]) -> list[str]:
    """Return in a child that runs the command; report here how it ends."""
    with socket.socket(fileno=received[0]) as asker, asker.makefile("rw") as lines:
        request = json.loads(lines.readline())
        if child := os.fork():
            for descriptor in received[1:]:
                os.close(descriptor)
            print(child, file=lines, flush=True)
            _, status = os.waitpid(child, 0)
            print(os.waitstatus_to_exitcode(status), file=lines, flush=True)
            os._exit(0)
    _become(request, received[1:])
    arguments: list[str] = request["arguments"]
    return arguments


def _become(request: dict[str, Any], streams: list[int]) -> None:
    """Have the environment, directory and streams of a process that was started for the command."""
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    os.umask(request["umask"])
    if (limit := request["file_limit"]) is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    for number, descriptor in enumerate(streams):
        os.dup2(descriptor, number)
        os.close(descriptor)
    encoding = os.environ.get("PYTHONIOENCODING", "utf-8")
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        # Lines of standard error go out at once, as in a process that Python itself started.
        stream = os.fdopen(
            number,
            "w" if number else "r",
            buffering=1 if number == 2 else -1,
            encoding=encoding,
            closefd=False,
        )
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def end(status: int) -> NoReturn:
    """End the process with all that Python does then, but for clearing each module.

    That would take longer than most commands do: it copies all that the server has imported.
    """
    # Waits for threads, as for one that still reads.
    getattr(threading, "_shutdown")()  # noqa: B009  # the stubs leave it out
    atexit._run_exitfuncs()
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except (OSError, ValueError) as error:
            print(f"Exception ignored in: {stream!r}\n{error!r}", file=sys.stderr)
            status = 120
    # What is forgotten complains: a task that was left, or a file.
    gc.collect()
    if sys.stderr is not None:
        sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    import_libraries()
    from aioivschat.cli import main

    sys.argv[1:] = wait_for_command(socket.socket(fileno=int(sys.argv[1])))
    try:
        code = main()
    except SystemExit as error:
        if not isinstance(error.code, int):
            raise
        code = error.code
    finally:
        # What coverage writes at the exit is not the command's.
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    end(code)
