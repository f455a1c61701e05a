"""`watch`: what it draws on a terminal, and what it prints elsewhere."""

from __future__ import annotations

import os
import signal
import sys
from argparse import Namespace
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

import persistedstate
from persistedstate import _origins, _write_all
from persistedstate_tools.differences import Style
from persistedstate_tools.following import Teller, tell_on, teller_of
from persistedstate_tools.messages import printable

#: What ends `watch`: Ctrl-C, kill, a terminal that is closed, Ctrl-\.
_ENDING = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT")
#: Seconds for which what changed is marked.
_JUST_NOW = 2.0


class Screen:
    """A terminal on which a state is drawn again as it changes; the lines that changed just now are marked."""

    def __init__(self, teller: Teller, style: Style) -> None:
        self.teller, self.style = teller, style
        self.lines = self._read()
        #: The numbers of marked lines, since when; the first line that the window shows; and what is drawn.
        self.marked: set[int] = set()
        self.since = 0.0
        self.top = 0
        self.news = ""
        self.drawn: list[str] = []
        self.restore_keyboard: Callable[[], None] = lambda: None

    def _read(self) -> list[str]:
        self.stream = self.teller.stream
        text = self.teller.text().removeprefix("\ufeff").replace("\r\n", "\n").expandtabs()
        return [printable(line) for line in text.removesuffix("\n").split("\n")]

    def run(self) -> None:
        """Draw until a signal such as Ctrl-C; the terminal is then as it was."""
        wanted: dict[str, Any] = {**dict.fromkeys(_ENDING, self._end), "SIGTSTP": self._pause}
        handlers = {getattr(signal, name): handler for name, handler in wanted.items() if hasattr(signal, name)}
        heeded = {number for number in handlers if signal.getsignal(number) is not signal.SIG_IGN}  # not below nohup
        before = {number: signal.signal(number, handlers[number]) for number in heeded}
        try:
            self._enter()
            for trouble in self.teller.looks():
                self.look()
                self.draw(trouble)
        finally:
            self._leave()
            for number, handler in before.items():
                signal.signal(number, handler or signal.SIG_DFL)

    @staticmethod
    def _end(number: int, _: object) -> NoReturn:
        """End once: another signal must not keep the terminal from being given back."""
        for name in _ENDING:
            signal.signal(getattr(signal, name, number), signal.SIG_IGN)
        sys.exit(128 + number)

    def _pause(self, number: int, _: object) -> None:
        """Ctrl-Z: give the terminal back until the shell lets the command go on."""
        self._leave()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        signal.signal(number, self._pause)
        self._enter()

    def _enter(self) -> None:
        self.drawn, self.restore_keyboard = [], _silent_keyboard()
        self._put("\x1b[?1049h\x1b[?25l\x1b[?7l")  # another screen, no cursor, no wrapping

    def _leave(self) -> None:
        with suppress(OSError):  # the terminal may be gone
            self._put("\x1b[?7h\x1b[?25h\x1b[?1049l")
        self.restore_keyboard()

    @staticmethod
    def _put(text: str) -> None:
        """Write to the terminal past Python's buffer, which a signal handler must not touch."""
        _write_all(sys.stdout.fileno(), text.encode(sys.stdout.encoding, "backslashreplace"))

    def look(self) -> None:
        """Note what changed since the last look."""
        now = persistedstate._system.now()
        lines = self._read() if self.teller.stream is not self.stream else self.lines
        if lines != self.lines:
            origins = _origins(self.lines, lines)
            self.marked = {
                number for number, (origin, line) in enumerate(zip(origins, lines, strict=True))
                if origin is None or self.lines[origin] != line
            }  # fmt: skip
            self.lines, self.since = lines, now
            self.news = "   ".join(map(self.style.line, self.teller.take_differences()))
        elif now - self.since > _JUST_NOW:
            self.marked, self.news = set(), ""

    def draw(self, trouble: str) -> None:
        """Draw what differs from what is on the screen."""
        columns, rows = os.get_terminal_size(sys.stdout.fileno())
        frame = [f"{columns} {rows}", *self._frame(columns, max(rows, 3), trouble)]
        if frame != self.drawn:
            self.drawn = frame
            rest = "\x1b[K\r\n".join(frame[1:])
            self._put(f"\x1b[H{rest}\x1b[K\x1b[J")

    def _frame(self, columns: int, rows: int, trouble: str) -> list[str]:
        """Return the lines of the screen: a title, a window of the state with the marks, and the latest news."""
        height = rows - 2
        self._scroll(height)
        shown = range(self.top, min(self.top + height, len(self.lines)))
        place = f", lines {self.top + 1} to {shown.stop} of {len(self.lines)}" if len(shown) < len(self.lines) else ""
        window = [self._line(number, columns) for number in shown]
        window += [""] * (height - len(window))
        title = self.style.paint(self._fit(f"{os.path.basename(self.teller.file)}{place}, Ctrl-C ends", columns), "dim")
        last = self.style.paint(self._fit(trouble or self.news, columns), "red" if trouble else "yellow")
        return [title, *window, last]

    def _scroll(self, height: int) -> None:
        """Move the window to the first marked line, if it does not show any."""
        if self.marked and not any(self.top <= number < self.top + height for number in self.marked):
            self.top = min(self.marked) - height // 3
        self.top = max(0, min(self.top, len(self.lines) - height))

    def _line(self, number: int, columns: int) -> str:
        is_marked = number in self.marked
        line = self._fit(f"{'>' if is_marked else ' '} {self.lines[number]}", columns)
        return self.style.paint(line, "yellow") if is_marked else line

    def _fit(self, line: str, columns: int) -> str:
        return line if len(line) <= columns else line[: max(columns - len(self.style.more), 0)] + self.style.more


def _silent_keyboard() -> Callable[[], None]:
    """Keep what is typed from showing up on the screen, where the system can; return what undoes that."""
    try:
        import termios
    except ImportError:
        return lambda: None
    try:
        before = termios.tcgetattr(sys.stdin)
        silent = [*before[:3], before[3] & ~termios.ECHO, *before[4:]]
        termios.tcsetattr(sys.stdin, termios.TCSANOW, silent)
    except (termios.error, OSError, ValueError):  # no terminal
        return lambda: None

    def restore() -> None:
        with suppress(termios.error):
            termios.tcsetattr(sys.stdin, termios.TCSANOW, before)

    return restore


def run_watch(options: Namespace) -> int:
    teller, style = teller_of(options.file, options.path), Style()
    if style.is_terminal:
        Screen(teller, style).run()
    else:
        sys.stdout.write(teller.text())
        sys.stdout.flush()
        tell_on(teller, style, teller.take_differences)
    return 0
