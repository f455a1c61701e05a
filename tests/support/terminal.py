"""A command in a pseudo-terminal: a test reads its screen, presses keys and changes the size of its window."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from typing import TYPE_CHECKING, Any

import pyte
from processes import PATIENCE

if TYPE_CHECKING:
    import signal
    from collections.abc import Callable, Mapping, Sequence

#: Makes the terminal the one from which Ctrl-C comes, then becomes the command.
WITH_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
)


class Terminal:
    """A terminal in which a command runs from the start."""

    def __init__(
        self, command: Sequence[str], environ: Mapping[str, str], columns: int = 60, rows: int = 10, **options: Any
    ) -> None:
        self._ours, self._theirs = pty.openpty()
        self._screen = pyte.Screen(columns, rows)
        self._stream = pyte.ByteStream(self._screen)
        self.resize(columns, rows)
        #: All that was written to the terminal.
        self.written = b""
        self.echoes_at_first = self.echoes
        self._process = subprocess.Popen(
            [sys.executable, "-c", WITH_TERMINAL, *command],
            env={**environ, "TERM": environ.get("TERM", "xterm")},
            stdin=self._theirs,
            stdout=self._theirs,
            stderr=self._theirs,
            start_new_session=True,
            **options,
        )
        self.pid = self._process.pid

    @property
    def lines(self) -> list[str]:
        """What the lines of the screen show."""
        return [line.rstrip() for line in self._screen.display]

    @property
    def colours(self) -> set[str]:
        """The colours in which something stands on the screen."""
        return {character.fg for line in self._screen.buffer.values() for character in line.values()}

    @property
    def echoes(self) -> bool:
        """Whether what is typed shows up."""
        return bool(termios.tcgetattr(self._theirs)[3] & termios.ECHO)

    def until(self, condition: Callable[[], object]) -> None:
        """Let time pass until the screen is as wanted; fail, with what it shows, when that does not come."""
        end = time.monotonic() + PATIENCE
        while not condition():
            if time.monotonic() > end or (not self._take(0.05) and self._process.poll() is not None):
                self._take(0)
                assert condition(), "\n".join(self.lines)

    def until_shown(self, *texts: str) -> None:
        """Let time pass until each of the texts is somewhere on the screen."""
        self.until(lambda: all(any(text in line for line in self.lines) for text in texts))

    def _take(self, seconds: float) -> bool:
        taken = False
        while select.select([self._ours], [], [], 0 if taken else seconds)[0]:
            data = os.read(self._ours, 65536)
            if not data:
                break
            self.written += data
            self._stream.feed(data)
            taken = True
        return taken

    def press(self, keys: str) -> None:
        """Type something."""
        os.write(self._ours, keys.encode())

    def resize(self, columns: int, rows: int) -> None:
        """Change the size of the window."""
        fcntl.ioctl(self._ours, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self._screen.resize(rows, columns)

    def close_window(self) -> None:
        """Take the terminal away, as a window that is closed does; nothing more is seen of it."""
        os.close(self._ours)
        self._ours = os.open(os.devnull, os.O_RDONLY)

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to the command."""
        self._process.send_signal(number)

    def finish(self, *codes: int) -> None:
        """Wait until the command ends with one of these exit codes, 0 if there are none."""
        self.until(lambda: self._process.poll() is not None)
        self._take(0)
        assert self._process.returncode in (codes or (0,)), "\n".join([str(self._process.returncode), *self.lines])

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        os.close(self._ours)
        os.close(self._theirs)
