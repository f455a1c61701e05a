"""The command line: `python -m persistedstate_stores copy SOURCE TARGET`."""
# ruff: noqa: T201 - printing is its task

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
import warnings
from typing import TYPE_CHECKING

from persistedstate_stores._addresses import is_of_pystator

if TYPE_CHECKING:
    from collections.abc import Callable


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return 0, or 1 with the reason on stderr when the copy is not complete."""
    chosen = _parser().parse_args(arguments)
    with warnings.catch_warnings():
        # The frameworks warn their developers: of beartype, or of stores that may change.
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", RuntimeWarning)
        warnings.showwarning = _show_warning
        try:
            return _copy(chosen.source, chosen.target)
        except KeyboardInterrupt:
            print("\nstopped; run it again to go on", file=sys.stderr)
            return 130


def _show_warning(message: Warning | str, *_where: object, **_more: object) -> None:
    print(f"warning: {message}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m persistedstate_stores")
    commands = parser.add_subparsers(required=True, metavar="copy")
    copying = commands.add_parser(
        "copy",
        help="copy all entries, with what remains of their lives, and read them back",
        description="Copy all entries of a store to another one, with what remains of their lives, or all machines of "
        "pystator, with versions, events and history; then read them back. What the target has already is not written "
        "again: after an interruption, run it again.",
        epilog="A store is the path of a state file, or FILE#KEY for what is under a key of it, or redis://HOST/DB, "
        "rediss://…, valkey://HOST/DB, memcached://HOST:PORT, dynamodb://TABLE?region_name=…, mongodb://HOST/DB, "
        "elasticsearch+http://HOST:PORT/PREFIX, disk:FOLDER, filetree:FOLDER. Those of pystator are sqlite:///FILE, "
        "postgresql://HOST/DB, pystator+mongodb://HOST/DB, pystator+redis://HOST/DB.",
    )
    copying.add_argument("source", help="where to copy from; it is not changed, and a state file may be in use")
    copying.add_argument("target", help="where to copy to; a state file must not be in use")
    return parser


def _copy(source: str, target: str) -> int:
    is_shown = sys.stderr.isatty()
    try:
        said = _result(source, target, show if is_shown else None)
    except Exception as error:  # noqa: BLE001 - each client of a server has its own
        reason = str(error) or type(error).__name__
        print(f"\nerror: {reason}" if is_shown else f"error: {reason}", file=sys.stderr)
        return 1
    if is_shown:
        print(file=sys.stderr)
    print(said)
    return 0


def _result(source: str, target: str, progress: Callable[[str, int, int], object] | None) -> str:
    """Copy, and return what to say of it; to show the help, no framework is needed."""
    if is_of_pystator(source) or is_of_pystator(target):
        from persistedstate_stores import copy_machines  # noqa: PLC0415

        made = copy_machines.copy(source, target, progress=progress)
        left = f"; {made.left} left behind, for which the target has no place" if made.left else ""
        found = f"{made.entities} entities, {made.events} events and {made.transitions} transitions"
        return f"{found}, {made.written} of them written, all read back from the target{left}"
    from persistedstate_stores.copy import copy  # noqa: PLC0415

    done = asyncio.run(copy(source, target, progress=progress))
    found = f"{done.entries} entries in {done.collections} collections"
    return f"{found}, {done.written} of them written, all read back from the target"


def show(stage: str, done: int, total: int) -> None:
    """Show on stderr how far a stage has come, over what was shown before."""
    width = max(10, min(40, shutil.get_terminal_size().columns - 40))
    filled = width * done // total if total else width
    print(f"\r{stage:>12} [{'#' * filled:<{width}}] {done}/{total} ", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
