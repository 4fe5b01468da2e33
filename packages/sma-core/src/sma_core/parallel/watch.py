"""Signs of life: every process learns which one failed, and none outlives it by a minute.

Each process has a thread that beats in the store through which the processes met, and listens for
the beat of the next one in the ring. What fails says so in the store; what is silent for too long
is accused there by its neighbour. The first entry counts. A thread that reads it prints it at once,
for the process itself may hang in a collective, and ends the process by force if it does.
"""

import itertools
import os
import sys
import threading
import time
from contextlib import suppress
from datetime import timedelta
from typing import Any

from torch import distributed as dist

_BEAT = 1.0  # seconds between two signs of life
_GRACE = 10.0  # seconds for a process to end by itself, once a failure is known
_FAREWELL = 5.0  # seconds that a process stays for the others to read why it ends
_STORE_TIMEOUT = timedelta(seconds=10)
_DONE = b"done"
_JOINED = itertools.count()  # every process joins as many runs, so this numbers them alike
# What errors of collectives say where they have no class of their own.
_MARKS = ("gloo", "nccl", "connection closed by peer", "connection reset", "process group")


class Watch:
    """The thread of one process.

    Parameters
    ----------
    rank, size
        Of this process, and of the run.
    silence
        Seconds without a beat after which the neighbour counts as lost.
    """

    def __init__(self, rank: int, size: int, *, silence: float) -> None:
        self._rank, self._size, self._silence = rank, size, silence
        # A connection of its own: the process may be blocked in one that it shares.
        self._store = self._connect()
        # The store may outlive a run: torchrun starts failed processes again with the same one.
        again = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        self._prefix = f"sma/{again}/{next(_JOINED)}"
        self._known = threading.Event()
        self._closed = threading.Event()
        self._failure = ""
        self._thread = threading.Thread(target=self._run, name="sma-watch", daemon=True)
        self._thread.start()

    def report(self, message: str) -> None:
        """Say that this process fails, and wait until the others have read it."""
        self._closed.set()
        self._thread.join(_GRACE)
        with suppress(dist.DistError):  # if the store is down already, all see that
            self._accuse(self._rank, message)
            self._acknowledge()
            self._await_readers(self._size)

    def blame(self, error: BaseException) -> str | None:
        """Give the failure of another process that `error` follows from; None when it is our own.

        A collective fails within milliseconds of a peer's death, and the neighbour's silence tells
        who it was: this waits for it.
        """
        if not self._known.is_set() and _of_collective(error):
            self._known.wait(self._silence + _GRACE)
        if not self._known.is_set():
            return None
        self._closed.set()  # this process ends by itself
        self._thread.join(_GRACE)
        with suppress(dist.DistError):
            self._await_readers(self._size - 1)  # all but the one that failed
        return self._failure

    def close(self) -> None:
        """Leave in order."""
        self._closed.set()
        self._thread.join(_GRACE)
        with suppress(dist.DistError):  # the process that held the store has left already
            self._store.set(f"{self._prefix}/beat/{self._rank}", _DONE.decode())

    def _connect(self) -> Any:
        return dist.TCPStore(  # type: ignore[attr-defined]
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            wait_for_workers=False,
            timeout=_STORE_TIMEOUT,
        )

    def _run(self) -> None:
        neighbour = (self._rank + 1) % self._size
        heard, when, count = b"", time.monotonic(), 0
        while not self._closed.wait(_BEAT if count else 0.0):
            count += 1
            try:
                self._store.set(f"{self._prefix}/beat/{self._rank}", str(count))
                key = f"{self._prefix}/beat/{neighbour}"
                beat = self._store.get(key) if self._store.check([key]) else b""
                if beat != heard:
                    heard, when = beat, time.monotonic()
                silent = time.monotonic() - when
                if silent > self._silence and heard != _DONE:
                    self._accuse(
                        neighbour,
                        f"gave no sign of life for {silent:.0f} s: killed, frozen or cut off",
                    )
                if self._store.check([f"{self._prefix}/failure"]):
                    self._failure = self._store.get(f"{self._prefix}/failure").decode()
                    self._acknowledge()
            except dist.DistError as error:
                self._failure = (
                    f"the store at {os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']} is "
                    f"gone, and with it rank 0 or its torchrun ({error})"
                )
            if self._failure:
                self._end()
                return

    def _accuse(self, rank: int, message: str) -> None:
        text = f"rank {rank} of {self._size} failed, and the run with it: {message}"
        self._store.compare_set(f"{self._prefix}/failure", "", text)

    def _acknowledge(self) -> None:
        self._store.set(f"{self._prefix}/read/{self._rank}", "")

    def _await_readers(self, number: int) -> None:
        """Stay until so many have read the failure: the store may go with this process."""
        end = time.monotonic() + _FAREWELL
        while time.monotonic() < end and self._readers() < number:
            time.sleep(0.1)

    def _readers(self) -> int:
        keys = [f"{self._prefix}/read/{rank}" for rank in range(self._size)]
        return sum(self._store.check([key]) for key in keys)

    def _end(self) -> None:
        """Make the failure known, and end the process if it does not."""
        self._known.set()
        if self._closed.is_set():
            return
        print(f"rank {self._rank}: {self._failure}", file=sys.stderr, flush=True)
        if not self._closed.wait(_GRACE):
            os._exit(1)


def _of_collective(error: BaseException) -> bool:
    if isinstance(error, dist.DistError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(mark in text for mark in _MARKS)
