"""Commands on a real terminal: a pty of a given width, or a screen of tmux, as it looks in the end."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import shlex
import shutil
import struct
import subprocess
import sys
import termios
import time
import uuid
from dataclasses import dataclass

import pytest

LIMIT_S = 120.0
TMUX = shutil.which("tmux")
needs_tmux = pytest.mark.skipif(TMUX is None, reason="no tmux (Debian: apt-get install tmux)")


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


def pictured(*arguments: object, columns: int = 80, lines: int = 60) -> list[str]:
    """Run `hallmarks ARGUMENTS` on a screen of tmux; return its lines as they look when it is over.

    What is wider than the screen is on the next line, and what was overwritten is gone: wide characters,
    colours and moves of the cursor have been a terminal's business, not this test's.
    """
    program = [sys.executable, "-c", "from jobs.cli import main; main()", *map(str, arguments)]
    name = f"hallmarks-{uuid.uuid4().hex}"
    tmux = [str(TMUX), "-L", name, "-f", os.devnull]
    kept = {key: value for key, value in os.environ.items() if key not in ("TMUX", "NO_COLOR")}

    def ask(*words: str) -> str:
        done = subprocess.run(
            [*tmux, *words], capture_output=True, text=True, env=kept, timeout=LIMIT_S, check=True
        )
        return done.stdout

    size = ["-x", str(columns), "-y", str(lines)]
    over = shlex.join([*tmux, "wait-for", "-S", "over"])
    try:
        ask("new-session", "-d", *size, f"{shlex.join(program)}; {over}; exec cat")
        ask("wait-for", "over")
        return ask("capture-pane", "-p").rstrip("\n").split("\n")
    finally:
        subprocess.run([*tmux, "kill-server"], capture_output=True, check=False)


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
