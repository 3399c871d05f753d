"""Windows, played on this system: what Python does not have there is taken away.

``python -c "from support.windows import run; run()" ARGUMENTS`` runs the command so.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import Any, NoReturn

_MODULES = ("fcntl", "grp", "pty", "pwd", "resource", "syslog", "termios", "tty")
_OF_OS = (
    *("O_CLOEXEC", "O_DIRECTORY", "O_NOCTTY", "O_NOFOLLOW", "O_NONBLOCK", "O_SYNC"),
    *("fchmod", "fchown", "chown", "fork", "forkpty", "register_at_fork"),
    *("getuid", "geteuid", "getgid", "getegid", "getgroups", "setuid", "setsid", "killpg"),
    *("mkfifo", "pread", "pwrite", "posix_fallocate", "sendfile"),
)
_OF_SIGNAL = (
    *("SIGALRM", "SIGCHLD", "SIGHUP", "SIGKILL", "SIGPIPE", "SIGQUIT", "SIGUSR1", "SIGUSR2"),
    *("SIGWINCH", "alarm", "pthread_kill", "pthread_sigmask", "setitimer", "sigwait"),
)


def play_windows() -> None:
    """Take away what is missing on Windows."""
    for name in _MODULES:
        sys.modules[name] = None  # type: ignore[assignment]  # so that importing it fails
    for module, names in ((os, _OF_OS), (signal, _OF_SIGNAL)):
        for name in names:
            if hasattr(module, name):
                delattr(module, name)

    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise NotImplementedError

    loop: Any = asyncio.SelectorEventLoop
    loop.add_signal_handler = loop.remove_signal_handler = refuse


def run() -> NoReturn:
    """Run the command with the arguments of the process."""
    play_windows()
    from aioivschat.cli import main

    sys.exit(main())
