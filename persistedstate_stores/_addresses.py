"""What both kinds of copies know of addresses, and how they tell what went wrong."""

from __future__ import annotations

from urllib.parse import urlsplit

from persistedstate import _shown

#: How the addresses of pystator's stores begin. Redis and MongoDB without the prefix are stores of py-key-value.
_OF_PYSTATOR = ("sqlite:", "postgres:", "postgresql:", "postgres+", "postgresql+", "pystator+")
#: Milliseconds in which a server of MongoDB must answer; its client would wait for 30 s, each time it is asked.
_PATIENCE_MS = 5000


class CopyError(Exception):
    """The copy is not complete; the text says why. Nothing is lost, and another run goes on from here."""


def is_of_pystator(address: str) -> bool:
    """Tell whether an address names one of pystator's own stores."""
    return address.startswith(_OF_PYSTATOR)


def patient(url: str) -> str:
    """Return the URL of a MongoDB with the time in which it must answer, unless it says one."""
    parts = urlsplit(url)
    if "serverselectiontimeoutms" in parts.query.lower():
        return url
    query = "&".join(filter(None, [parts.query, f"serverSelectionTimeoutMS={_PATIENCE_MS}"]))
    return parts._replace(path=parts.path or "/", query=query).geturl()


def described(error: BaseException) -> str:
    """Return an error as a message tells it; the long text of SQLAlchemy only with what the driver said."""
    error = getattr(error, "orig", None) or error
    return f"{type(error).__name__}: {_shown(str(error))}" if str(error) else type(error).__name__
