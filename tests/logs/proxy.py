"""A proxy that cuts connections: before it forwards what a client sends, or behind it, so that the reply is lost."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

FORWARD, BEFORE, BEHIND = "forward", "before", "behind"


def at_random(chance: random.Random, share: float) -> Callable[[bytes], str]:
    """Return a fate that cuts so many of the requests, half of them on either side."""
    return lambda _: chance.choice((BEFORE, BEHIND)) if chance.random() < share else FORWARD


def of_scripts(fate: str) -> Callable[[bytes], str]:
    """Return a fate that meets only the requests of scripts, or of statements on the tables of states."""
    return lambda data: fate if b"\r\nEVAL" in data or b"persistedstate_" in data else FORWARD


class Proxy:
    """Forwards to a port; `fate` tells what becomes of each piece that a client sends. `cuts` counts."""

    def __init__(self, port: int) -> None:
        self.target = port
        self.fate: Callable[[bytes], str] = lambda _: FORWARD
        self.cuts = {BEFORE: 0, BEHIND: 0}
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                self._start(self._serve, client)

    def _start(self, function: Callable[..., None], *arguments: socket.socket) -> threading.Thread:
        thread = threading.Thread(target=function, args=arguments, daemon=True)
        thread.start()
        self._threads.append(thread)  # behind that: `close` joins what is in there
        return thread

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.target)) as server:
            back = self._start(self._forward, server, client)
            try:
                while data := client.recv(1 << 16):
                    fate = self.fate(data)
                    if fate != FORWARD:
                        self.cuts[fate] += 1
                        client.shutdown(socket.SHUT_RDWR)  # no reply comes through any more
                    if fate != BEFORE:
                        server.sendall(data)
                    if fate != FORWARD:
                        break
                server.shutdown(socket.SHUT_WR)
                back.join()
            finally:  # to close a socket does not wake who reads from it
                server.shutdown(socket.SHUT_RDWR)

    def _forward(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                with contextlib.suppress(OSError):
                    target.sendall(data)
            target.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End it; its clients have to be closed before."""
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for thread in self._threads:
            thread.join(60)
