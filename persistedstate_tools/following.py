"""Following a state that a script changes, in a file or on a server."""

from __future__ import annotations

import select
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from typing import Any

import persistedstate
from persistedstate import (
    _GONE,
    StateDict,
    _apply,
    _engine,
    _Follower,
    _LogFollower,
    _parsed,
    _plain,
    _replay,
    _Root,
    _shown,
    _Stream,
    _Tree,
)
from persistedstate_tools.differences import Change, Style, differences, told
from persistedstate_tools.excerpts import text_of
from persistedstate_tools.messages import Refusal, complain, complaint
from persistedstate_tools.paths import parse_path, resolve

#: Seconds between two looks at a file that is followed.
_POLL = 0.1


class Teller(_Follower):
    """A follower that tells what changed: record by record, and by path where the file was renewed meanwhile.

    Or, for `watch`, what differs in the part of the state that a PATH names.
    """

    def __init__(self, name: str, path: str | None = None, followed: Any = None) -> None:
        self.file = _shown(name)
        self.news: list[Change] = []
        #: What was read last: the stream, the text of its snapshot, and the state with all records applied.
        self.stream: _Stream | None = None
        self.snapshot = ""
        self.latest = _Root({}, _Tree())
        super().__init__(followed or name, {}, None)
        self.steps = parse_path(path) if path is not None else []
        self.part = self._part()

    def _show(self, data: bytes) -> bool:
        stream = _parsed(self.path, data)
        is_renewed = self.stream is not None and not self._goes_on(stream)
        known = iter(self.stream.records if self.stream and not is_renewed else [])
        news = list(differences(_plain(self.latest), stream.value)) if is_renewed else []
        snapshot = stream.document.text()
        latest = _Root(stream.value, _Tree())
        before = _plain(self.latest if self.stream else latest) if stream.edited else {}

        def apply(root: StateDict, record: Any) -> None:
            if next(known, None) is None:
                news.extend(told(root, record))
            else:
                _apply(root, record)

        _replay(latest, stream, self.path, apply)
        if stream.edited:
            news = list(differences(before, _plain(latest)))
        stream.document.edits = latest._tree.edits
        self.stream, self.snapshot, self.latest = stream, snapshot, latest
        self.news += news
        sound = len(data) - stream.torn
        self.known = sound, hash(data[:sound])
        return bool(news)

    def _goes_on(self, stream: _Stream) -> bool:
        """Tell whether a stream is the one that was read last, with more records or none behind."""
        before = self.stream
        return (
            before is not None
            and stream.text.startswith(before.text)
            and len(stream.records) >= len(before.records)
            and stream.document.text() == self.snapshot
        )

    def take_news(self) -> list[Change]:
        """Return what changed since the last time."""
        news, self.news = self.news, []
        return news

    def _part(self) -> Any:
        """Return the part that is watched, `_GONE` where it is missing."""
        try:
            return _plain(resolve(self.latest, self.steps)[1])
        except Refusal:
            return _GONE

    def take_differences(self) -> list[Change]:
        """Return what differs in the part that is watched since the last time."""
        before, self.part = self.part, self._part()
        return list(differences(before, self.part, tuple(step[0] for step in self.steps)))

    def text(self) -> str:
        """Return the text of the part that is watched, or a comment that it is missing."""
        try:
            if self.stream is None:
                return ""
            return text_of(self.stream.document, self.latest, self.steps)
        except Refusal as missing:
            return f"# {missing}\n"

    def looks(self) -> Iterator[str]:
        """Look at the file again and again; yield why it cannot be read, "" if it can."""
        while True:
            started = persistedstate._system.now()
            trouble = ""
            try:
                self.refresh()
            except FileNotFoundError:
                trouble = f"{self.file} is gone; waiting for it to come back"
            except (OSError, persistedstate.StateCorrupt) as error:
                trouble = f"{complaint(error, self.file)[0]}; waiting for it to change"
            yield trouble
            persistedstate._system.sleep(max(_POLL, 2 * (persistedstate._system.now() - started)))


class _LogTeller(Teller, _LogFollower):
    """The same for a log on a server."""


def teller_of(place: str, path: str | None = None) -> Teller:
    """Return what tells of a file, or of the log at an address."""
    engine = _engine(place, fsync=False, readonly=True)
    return Teller(place, path) if engine is None else _LogTeller(place, path, engine(place))


def tell_on(teller: Teller, style: Style, news: Callable[[], list[Change]]) -> None:
    """Print what changes, until Ctrl-C."""
    said = ""
    for trouble in teller.looks():
        if trouble and trouble != said:
            complain(trouble)
        said = trouble
        style.print(news())
        if not _has_reader():
            raise BrokenPipeError


def _has_reader() -> bool:
    """Tell whether somebody still reads what is printed; True where the system does not tell."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        return not any(event & select.POLLERR for _, event in poll.poll(0))
    except (AttributeError, OSError):
        return True


def run_log(options: Namespace) -> int:
    teller, style = teller_of(options.file), Style()
    style.print(teller.take_news())
    if options.follow:
        tell_on(teller, style, teller.take_news)
    return 0
