"""Writers of a log: each counts one number up, from what it read, and notes what was acknowledged."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from processes import PATIENCE

from persistedstate_logs import Contents, News, Overtaken, Unknown

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from persistedstate_logs import Log


@contextmanager
def turn(log: Log, wait: float = PATIENCE) -> Iterator[None]:
    """Have the turn of a log."""
    log.take_turn(wait)
    try:
        yield
    finally:
        log.end_turn()


@contextmanager
def impatient(log: Any) -> Iterator[None]:
    """Let a log give up soon. Where it shall get its answers it may not: a busy machine gives them late."""
    patience, log._timeout = log._timeout, 0.3
    try:
        yield
    finally:
        log._timeout = patience


class Writer:
    """Counts `value` up. A record tells the writer, its own count, and the value: `w 3 17`."""

    def __init__(self, name: str, log: Log) -> None:
        self.name, self.log = name, log
        self.value = self.count = self.overtaken = self.unknown = self.told_trimmed = 0
        self.acknowledged: list[bytes] = []
        self.take(log.open(PATIENCE))

    def take(self, news: News | Contents) -> None:
        if isinstance(news, Contents):
            self.value = int(news.text or b"0")
            self.told_trimmed += 1
        if news.records:
            self.value = int(news.records[-1].split()[2])
        self.position = news.position

    def catch_up(self) -> None:
        self.take(self.log.read(self.position))

    def bump(self) -> None:
        """Count up once, whatever comes in between, as a state does: read on and try again, settle what is unknown."""
        self.count += 1
        while True:
            record = b"%b %d %d" % (self.name.encode(), self.count, self.value + 1)
            try:
                position = self.log.append(record, self.position)
            except Unknown:
                self.unknown += 1
            except Overtaken as overtaken:
                self.overtaken += 1
                if overtaken.is_held:
                    self.bump_in_turn(self.count)
                    return
                self.catch_up()
            else:
                self.note(record, position)
                return

    def bump_in_turn(self, count: int | None = None) -> None:
        """Count up within a turn; that may be lost while this process sleeps."""
        self.count = count or self.count + 1
        while True:
            with turn(self.log):
                self.catch_up()
                record = b"%b %d %d" % (self.name.encode(), self.count, self.value + 1)
                while True:
                    try:
                        position = self.log.append(record, self.position)
                    except Unknown:
                        self.unknown += 1
                    except Overtaken:
                        self.overtaken += 1
                        break
                    else:
                        self.note(record, position)
                        return

    def note(self, record: bytes, position: object) -> None:
        self.value += 1
        self.position = position  # type: ignore[assignment]
        self.acknowledged.append(record)

    def vacuum(self) -> None:
        self.log.replace(b"%d" % self.value, self.position, edit=False)


def check(records: Sequence[bytes], writers: Sequence[Writer], before: int = 0) -> None:
    """Assert that each acknowledged record is there once, and that no two have the same value."""
    values = [int(record.split()[2]) for record in records]
    acknowledged = [record for writer in writers for record in writer.acknowledged]
    assert values == list(range(before + 1, before + len(values) + 1))
    assert Counter(acknowledged) == Counter(records)
