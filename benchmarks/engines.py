"""What a change costs where the state is in Valkey or Redis, beside a bare round trip to the same server.

    python benchmarks/engines.py [SECONDS]

Starts servers of its own on loopback; needs the extras `redis` and `logs`. Prints a table, see results/engines.md. All
rows of a server are measured in turn, again and again, for so many seconds, and the median of the rounds is told.
"""

from __future__ import annotations

import multiprocessing
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "support")]

import redis  # noqa: E402 - the path comes first
from logs import servers  # noqa: E402

from persistedstate import PersistedState  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable

SERVERS = {"nothing": (), "process crash": ("--appendonly", "yes"), "power loss": servers.ALWAYS}
WRITERS = (1, 2, 4)


def main() -> None:
    """Print the table."""
    seconds = float(sys.argv[1]) if sys.argv[1:] else 20.0
    print("| changes | the server survives | per round trip or change | in bare round trips |\n|---|---|---|---|")
    for survives, options in SERVERS.items():
        with tempfile.TemporaryDirectory() as folder, servers.running(Path(folder) / "server", *options) as server:
            for row in alone(server, survives, seconds):
                print(row, flush=True)
            if survives != "nothing":
                continue
            for writers in WRITERS:
                print(together(server, survives, writers, seconds / 4), flush=True)
    version = platform.python_version()
    print(
        f"\n{platform.python_implementation()} {version}, {platform.system()} {platform.machine()}, redis-py", end=" "
    )
    print(redis.__version__, "and", Path(servers.program()).name)


def alone(server: servers.Server, survives: str, seconds: float) -> list[str]:
    """Return a row for each way of changing, of one process."""
    client = redis.Redis(port=server.port)
    script = client.script_load("return redis.call('INCR', KEYS[1])")
    with PersistedState(server.url("alone"), counter=0) as state:

        def transaction(changes: int) -> None:
            with state.transaction():
                for _ in range(changes):
                    state.counter += 1

        def plain() -> None:
            state.counter += 1

        ways: dict[str, Callable[[], Any]] = {
            "a bare round trip: `EVALSHA` of an `INCR` by redis-py": lambda: client.evalsha(script, 1, "bare"),
            "`STATE.counter += 1`": plain,
            "`with STATE.transaction(): STATE.counter += 1`": lambda: transaction(1),
            "ten of them in one transaction, all together": lambda: transaction(10),
        }
        samples: dict[str, list[float]] = {way: [] for way in ways}
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            for way, run in ways.items():
                samples[way].append(timed(run, 20))
    client.close()
    medians = {way: statistics.median(values) for way, values in samples.items()}
    bare = next(iter(medians.values()))
    return [f"| {way} | {survives} | {told(median)} | {median / bare:.2f} |" for way, median in medians.items()]


def timed(run: Callable[[], Any], times: int) -> float:
    """Return the seconds of one call."""
    start = time.perf_counter()
    for _ in range(times):
        run()
    return (time.perf_counter() - start) / times


def told(seconds: float) -> str:
    """Return a time as the table tells it."""
    return f"{1e6 * seconds:.0f} µs" if seconds < 1e-3 else f"{1e3 * seconds:.2f} ms"


def together(server: servers.Server, survives: str, writers: int, seconds: float) -> str:
    """Return a row of several processes that count one number up."""
    context = multiprocessing.get_context("spawn")
    barrier, counts = context.Barrier(writers), context.Queue()
    arguments = server.url(f"together-{writers}"), barrier, counts, seconds
    processes = [context.Process(target=counted, args=arguments) for _ in range(writers)]
    for process in processes:
        process.start()
    done = [counts.get() for _ in processes]
    for process in processes:
        process.join()
    with PersistedState(arguments[0]) as state:
        assert state.counter == sum(done)
    rate, share = sum(done) / seconds, min(done) / (sum(done) / writers)
    fair = f", the poorest has {share:.0%} of its fair share" if writers > 1 else ""
    return f"| the transaction, {writers} at once: {rate:,.0f} a second{fair} | {survives} | {told(1 / rate)} | |"


def counted(url: str, barrier: Any, counts: Any, seconds: float) -> None:
    """Count up for so many seconds, when all others are ready, too."""
    done = 0
    with PersistedState(url, counter=0) as state:
        barrier.wait()
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            with state.transaction():
                state.counter += 1
            done += 1
        barrier.wait()
    counts.put(done)


if __name__ == "__main__":
    main()
