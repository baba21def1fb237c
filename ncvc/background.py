"""Saving while training goes on: one function at a time in a thread, and no error lost.

Costs a thread while something is saved. Functions run at the same time as training only where they let other threads
run (file writes and hashes do). Knows nothing of what is saved.
"""

import sys
import threading
import time
from collections.abc import Callable


class BackgroundSaver:
    """Runs one function at a time in a thread; what it raises is raised in the caller's next call, once.

    The thread ends with the process: an exit without ``close`` leaves an unfinished folder, never a torn checkpoint.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def submit(self, function: Callable[[], object]) -> float:
        """Start ``function`` when the one before is done; the seconds waited for that."""
        waited = self.wait()

        def work() -> None:
            try:
                function()
            except BaseException as error:
                self._error = error

        self._thread = threading.Thread(target=work, name="checkpoint", daemon=True)
        self._thread.start()
        return waited

    def wait(self) -> float:
        """Wait until nothing is being saved and raise what went wrong; the seconds waited."""
        started = time.monotonic()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._raise()
        return time.monotonic() - started

    def poll(self) -> None:
        """Raise the error of a finished save, if any, without waiting."""
        if self._thread is None or not self._thread.is_alive():
            self._raise()

    def close(self, *, wait: bool = True, raise_errors: bool = True) -> None:
        """Wait for the save under way (unless ``wait=False``) and raise its error, or print it where one is raised."""
        try:
            if wait:
                self.wait()
            else:
                self.poll()
        except BaseException as error:
            if raise_errors:
                raise
            print(f"while saving in the background: {error}", file=sys.stderr, flush=True)

    def _raise(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error
