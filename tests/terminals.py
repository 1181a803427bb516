"""Commands on a real terminal: a pty of a given width."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import sys
import termios
import time
from dataclasses import dataclass

LIMIT_S = 120.0


@dataclass(frozen=True)
class Shown:
    """How a command ended, and what its terminal shows, both streams together."""

    returncode: int
    text: str

    @property
    def lines(self) -> list[str]:
        return self.text.splitlines()


def on_terminal(
    *arguments: object, keys: str = "", columns: int = 80, environment: dict[str, str] | None = None
) -> Shown:
    """Run `hallmarks ARGUMENTS` on a terminal, and type.

    Args:
        keys: typed a line at a time, each once the command asks for one.
    """
    command = [sys.executable, "-c", "from jobs.cli import main; main()", *map(str, arguments)]
    process, terminal = pty.fork()
    if process == 0:
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        os.environ.pop("NO_COLOR", None)
        os.environ |= {"TERM": "xterm", "COLUMNS": str(columns)} | (environment or {})
        os.execv(sys.executable, command)
    shown = _spoken(terminal, keys.splitlines(keepends=True))
    _, status = os.waitpid(process, 0)
    os.close(terminal)
    return Shown(os.waitstatus_to_exitcode(status), shown.replace("\r\n", "\n"))


def _spoken(terminal: int, lines: list[str]) -> str:
    shown = b""
    answered = 0
    end = time.monotonic() + LIMIT_S
    while time.monotonic() < end:
        ready, _, _ = select.select([terminal], [], [], 1.0)
        try:
            shown += os.read(terminal, 65536) if ready else b""
        except OSError:  # the command has closed it
            break
        asked = shown.count(b"sql> ") + shown.count(b"...> ")
        if asked > answered and lines and shown.rstrip().endswith(b">"):
            answered = asked
            os.write(terminal, lines.pop(0).encode())
    return shown.decode(errors="replace")
