"""The command line: `python -m persistedstate_stores copy SOURCE TARGET`."""
# ruff: noqa: T201 - printing is its task

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return 0, or 1 with the reason on stderr when the copy is not complete."""
    chosen = _parser().parse_args(arguments)
    try:
        return asyncio.run(_copy(chosen.source, chosen.target))
    except KeyboardInterrupt:
        print("\nstopped; run it again to go on", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m persistedstate_stores")
    commands = parser.add_subparsers(required=True, metavar="copy")
    copying = commands.add_parser(
        "copy",
        help="copy all entries, with what remains of their lives, and read them back",
        description="Copy all entries of a store to another one, with what remains of their lives, and read them back. "
        "What the target has already is not written again: after an interruption, run it again.",
        epilog="A store is the path of a state file, or redis://HOST/DB, rediss://…, valkey://HOST/DB, "
        "memcached://HOST:PORT, dynamodb://TABLE?region_name=…, mongodb://HOST/DB, "
        "elasticsearch+http://HOST:PORT/PREFIX, disk:FOLDER, filetree:FOLDER.",
    )
    copying.add_argument("source", help="where to copy from; it is not changed, and a state file may be in use")
    copying.add_argument("target", help="where to copy to; a state file must not be in use")
    return parser


async def _copy(source: str, target: str) -> int:
    is_shown = sys.stderr.isatty()
    try:
        from persistedstate_stores.copy import copy  # noqa: PLC0415 - to show the help, no framework is needed

        done = await copy(source, target, progress=show if is_shown else None)
    except Exception as error:  # noqa: BLE001 - each client of a server has its own
        print(f"\nerror: {error}" if is_shown else f"error: {error}", file=sys.stderr)
        return 1
    if is_shown:
        print(file=sys.stderr)
    print(
        f"{done.entries} entries in {done.collections} collections, {done.written} of them written, "
        "all read back from the target"
    )
    return 0


def show(stage: str, done: int, total: int) -> None:
    """Show on stderr how far a stage has come, over what was shown before."""
    width = max(10, min(40, shutil.get_terminal_size().columns - 40))
    filled = width * done // total if total else width
    print(f"\r{stage:>12} [{'#' * filled:<{width}}] {done}/{total} ", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
