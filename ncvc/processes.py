"""Worker processes that end with the process that started them, and start without importing its program."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import types
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

Argument = TypeVar("Argument")
Result = TypeVar("Result")


def exit_with_parent() -> None:
    """Initializer of a worker: end when the process that started it ends, killed or not; leave Ctrl-C to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextlib.contextmanager
def without_main_module() -> Iterator[None]:
    """Hide the running program while a worker starts, which would else import all of it, torch included."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def in_order(
    function: Callable[[Argument], Result],
    arguments: Iterable[Argument],
    *,
    workers: int,
    start: Callable[..., None],
    start_with: tuple[Any, ...],
    doing: str,
) -> Generator[Result, None, None]:
    """``function`` of every argument, in their order, by ``workers`` processes that begin with ``start(*start_with)``.

    Arguments are drawn as places become free, so memory stays flat. Raises ``RuntimeError`` when a process dies.
    """
    # Never fork: this process may run threads. Other platforms' default is spawn.
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    pool = ProcessPoolExecutor(
        max_workers=workers,
        mp_context=multiprocessing.get_context(method),
        initializer=start,
        initargs=start_with,
    )
    under_way: deque[Future[Result]] = deque()
    try:
        for argument in arguments:
            with without_main_module():
                under_way.append(pool.submit(function, argument))
            if len(under_way) > 2 * workers:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
    except BrokenProcessPool as error:
        raise RuntimeError(
            f"one of data.workers={workers} {doing} processes died (killed for memory?); set data.workers lower"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
