"""Single-threaded worker processes that evaluate architectures, and die with their parent.

Two threads inside one training were seen to take 20 times longer than one on a busy two-core
machine, so parallelism is processes only. A worker that is killed is a failed trial, not a
failed search.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path

import msgspec

from nas.arch import parse
from nas.pipeline import Job
from nas.record import TrialResult


class Order(msgspec.Struct, frozen=True):
    """One architecture to evaluate; the artefact goes to `stem`.onnx."""

    trial: int
    architecture: str
    seed: int
    stem: str


@dataclass
class Worker:
    """A process, the pipe to it, and the order that it is at (None: idle)."""

    process: multiprocessing.process.BaseProcess
    pipe: Connection
    order: Order | None = None
    since: float = 0.0

    def give(self, order: Order) -> None:
        self.order, self.since = order, time.monotonic()
        with contextlib.suppress(OSError):  # a dead worker is found when its answer is awaited
            self.pipe.send_bytes(msgspec.json.encode(order))

    def take(self) -> TrialResult:
        """The result of its order; one that says so if the process died over it."""
        order, self.order = self.order, None
        assert order is not None
        try:
            return msgspec.json.decode(self.pipe.recv_bytes(), type=TrialResult)
        except (EOFError, OSError):
            self.process.join()
            return failed(order, f"the worker process died ({_death(self.process.exitcode)})")


def failed(order: Order, reason: str) -> TrialResult:
    return TrialResult(
        architecture=order.architecture,
        state="failed",
        reason=reason,
        trial=order.trial,
        finished_at=time.time(),
    )


@contextlib.contextmanager
def pool(count: int, job: Job, log: Path) -> Iterator[list[Worker]]:
    """`count` idle workers; they are ended, busy or not, on the way out."""
    workers = [start(job, log) for _ in range(count)]
    try:
        yield workers
    finally:
        for worker in workers:
            worker.process.kill()
        for worker in workers:
            worker.process.join()


def start(job: Job, log: Path) -> Worker:
    """A new worker; what libraries print in it goes to the log file."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, job, log), daemon=True)
    process.start()
    theirs.close()
    return Worker(process, ours)


def ready(workers: list[Worker], timeout_s: float) -> list[Worker]:
    """Busy workers that have a result, or have died."""
    busy = {worker.pipe: worker for worker in workers if worker.order}
    return [busy[pipe] for pipe in wait(list(busy), timeout_s) if isinstance(pipe, Connection)]


def _death(exit_code: int | None) -> str:
    if exit_code == -9:
        return "killed, perhaps for want of memory"
    return f"signal {-exit_code}" if exit_code and exit_code < 0 else f"exit code {exit_code}"


def _work(pipe: Connection, job: Job, log: Path) -> None:
    threading.Thread(target=_die_with_parent, daemon=True).start()
    with log.open("a") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        while True:
            order = msgspec.json.decode(pipe.recv_bytes(), type=Order)
            pipe.send_bytes(msgspec.json.encode(_evaluate(order, job)))


def _evaluate(order: Order, job: Job) -> TrialResult:
    """Any exception is a recorded result: one bad network must not end a search."""
    from nas.pipeline import evaluate_architecture

    try:
        result = evaluate_architecture(parse(order.architecture), job, order.seed, Path(order.stem))
        return msgspec.structs.replace(result, trial=order.trial)
    except Exception as error:
        return failed(order, f"{type(error).__name__}: {error}")


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent:
        parent.join()
        os._exit(1)
