"""Following a file that a script changes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import persistedstate
from persistedstate import _GONE, StateCorrupt, _apply, _Follower, _parsed, _plain, _replay, _Root, _Tree
from persistedstate_tools.differences import differences, told
from persistedstate_tools.excerpts import text_of
from persistedstate_tools.messages import Refusal, complaint
from persistedstate_tools.paths import resolve

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from persistedstate import StateDict, _Stream
    from persistedstate_tools.differences import Change
    from persistedstate_tools.paths import Step


#: Seconds between two looks at a file that is followed; and for which `watch` marks what changed.
_POLL, _JUST_NOW = 0.1, 2.0


class Teller(_Follower):
    """A follower that tells what changed: record by record, and by path where the file was renewed meanwhile."""

    def __init__(self, path: str) -> None:
        self.news: list[Change] = []
        #: What was read last: the stream, its value without and with the records.
        self.stream: _Stream | None = None
        self.snapshot = ""
        self.latest = _Root({}, _Tree())
        self.shown: dict[Any, Any] = {}
        super().__init__(path, {})

    def _value(self, data: bytes) -> tuple[dict[Any, Any], int]:
        stream = _parsed(self.path, data)
        is_renewed = self.stream is not None and not self._goes_on(stream)
        known = iter(self.stream.records if self.stream and not is_renewed else [])
        news = list(differences(self.shown, stream.value)) if is_renewed else []
        snapshot = stream.document.text()
        latest = _Root(stream.value, _Tree())

        def apply(root: StateDict, record: Any) -> None:
            if next(known, None) is None:
                news.extend(told(root, record))
            else:
                _apply(root, record)

        _replay(latest, stream, self.path, apply)
        self.stream, self.snapshot, self.latest, self.shown = stream, snapshot, latest, _plain(latest)
        self.news += news
        return _plain(latest), len(data) - stream.torn

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

    def text(self, steps: Sequence[Step] = ()) -> str:
        return text_of(self.stream.document, self.latest, steps) if self.stream else ""


def looks(follower: _Follower, name: str) -> Iterator[str]:
    """Look at a file again and again; yield why it cannot be read, "" if it can."""
    while True:
        started = persistedstate._system.now()
        trouble = ""
        try:
            follower.refresh()
        except FileNotFoundError:
            trouble = f"{name} is gone; waiting for it to come back"
        except (OSError, StateCorrupt) as error:
            trouble = f"{complaint(error, name)[0]}; waiting for it to change"
        yield trouble
        persistedstate._system.sleep(max(_POLL, 2 * (persistedstate._system.now() - started)))


def watched_part(teller: Teller, steps: Sequence[Step]) -> Any:
    """Return the part of a state that is watched, `_GONE` where it is missing."""
    try:
        return resolve(teller.shown, steps)[1]
    except Refusal:
        return _GONE


def watched_text(teller: Teller, steps: Sequence[Step]) -> str:
    """Return the text of the part that is watched, or a comment that it is missing."""
    try:
        return teller.text(steps)
    except Refusal as missing:
        return f"# {missing}\n"
