"""Declared states in a log: what others write there is told as in a shared file, and the advice fits."""

from __future__ import annotations

import enum

import pytest
from test_shared import Peer

from logs.test_states import kind, url  # noqa: F401 - the fixtures
from persistedstate import PersistedState, StateCorrupt, plain

pytest.importorskip("msgspec")


class Mode(enum.Enum):
    FAST = "fast"
    SLOW = "slow"


class Importer(PersistedState):
    retry: int = 3
    mode: Mode = Mode.FAST


def test_what_others_wrote_that_is_not_declared_is_told(url: str) -> None:  # noqa: F811
    with Importer(url) as state, Peer(url) as peer:  # type: ignore[arg-type]
        peer.do("state.update(retry='many', mode='quick')")
        with pytest.warns(RuntimeWarning, match=r'\(retry: expected int, but it is "many", and 1 more\)'):
            assert state.refresh()

        assert plain(state) == {"retry": "many", "mode": "quick"}
        with pytest.raises(StateCorrupt) as caught:
            _ = state.mode
        assert str(caught.value) == (
            f'{url}: mode: expected "fast" or "slow", but it is "quick"\n'
            "mend it with `persistedstate edit ADDRESS`, or with `persistedstate set ADDRESS mode VALUE`"
        )
        state.update(retry=4, mode="slow")
        assert peer.do("state.refresh(); said = plain(state)") == {"retry": 4, "mode": "slow"}
        peer.do("state.mode = 'quick'; state.close()")
    with pytest.raises(StateCorrupt, match=r": mode: expected .*\n.*edit ADDRESS"):
        Importer(url)
    with PersistedState(url) as other:
        other.mode = "slow"
    with Importer(url) as state:
        assert state.mode is Mode.SLOW


def test_what_a_script_assigns_that_is_not_declared_reaches_nobody(url: str) -> None:  # noqa: F811
    with Importer(url) as state, Peer(url) as peer:  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"STATE\.retry: expected int"):
            state.retry = "many"  # type: ignore[assignment]
        with state.transaction():
            for number in range(3):
                state.retry = number
                with pytest.raises(TypeError, match=r"STATE\.retry: expected int"):
                    state.retry = "many"  # type: ignore[assignment]

        assert state.retry == 2
        assert peer.do("state.refresh(); said = plain(state)") == {"retry": 2, "mode": "fast"}
        peer.do("state.close()")
