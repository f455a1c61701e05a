"""What the tests of the engines share. A module about another engine, or about several, has a `kind` of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from logs import servers
from logs.proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import Iterator

    from logs.servers import Server


@pytest.fixture(scope="module")
def kind() -> type[Server]:
    """The engine."""
    return servers.Server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, kind: type[Server]) -> Iterator[Server]:
    """One for the tests that neither kill nor change it."""
    with servers.running(tmp_path_factory.mktemp("server"), kind=kind) as server:
        yield server


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A name that no other test uses."""
    return str(request.node.name).replace("[", "-").replace("]", "")


@pytest.fixture
def proxied(server: Server) -> Iterator[Proxy]:
    """A way to the server that can be cut."""
    proxy = Proxy(server.port)
    yield proxy
    proxy.close()
