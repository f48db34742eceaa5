"""Single-threaded worker processes that evaluate architectures, and die with their parent.

A worker is `python -m nas.workers`: it never imports the user's own script. Orders and answers
are JSON over a pipe; what libraries print goes to a log file. A worker that is killed is a failed
trial, not a failed search.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path

import msgspec
import torch

from nas.arch import parse
from nas.dataset import load
from nas.errors import UserError
from nas.features import compute
from nas.pipeline import Job, evaluate_architecture
from nas.record import Proxy, Trained, Training, TrialResult
from nas.target import TargetProfile


class Task(msgspec.Struct, frozen=True):
    """What all orders of a search have in common: the recordings' place and that of Job."""

    data: str
    data_fingerprint: str
    target: TargetProfile
    proxy: Proxy
    max_latency_ms: float | None = None


class Order(msgspec.Struct, frozen=True):
    """One architecture to train by its own settings and evaluate; the artefact goes to
    `stem`.onnx. `bars` say what accuracy it must reach after how many epochs; the weights are those
    of a trial `before`, if given."""

    trial: int
    architecture: str
    training: Training
    seed: int
    stem: str
    bars: dict[int, float]
    before: Trained | None = None


class Answer(msgspec.Struct, frozen=True):
    """The result of an order. `trouble` says what the user must mend (a full disk, recordings
    that have gone) where no trial could succeed."""

    result: TrialResult
    trouble: str = ""


@dataclass
class Worker:
    """A process, the pipe to it, and the order that it is at (None: idle)."""

    process: subprocess.Popen[bytes]
    pipe: Connection
    order: Order | None = None

    def give(self, order: Order) -> None:
        """Hands the order over and returns at once."""
        self.order = order
        with contextlib.suppress(OSError):  # a dead worker is found when its answer is awaited
            self.pipe.send_bytes(msgspec.json.encode(order))

    def take(self) -> Answer:
        """The answer to its order; one that says so if the process died over it."""
        order, self.order = self.order, None
        if order is None:
            raise ValueError("an idle worker has no answer")
        try:
            return msgspec.json.decode(self.pipe.recv_bytes(), type=Answer)
        except (EOFError, OSError):
            code = self.process.wait()
            return Answer(failed(order, f"the worker process died ({_death(code)})"))

    def alive(self) -> bool:
        """Whether the process still runs."""
        return self.process.poll() is None


def failed(order: Order, reason: str) -> TrialResult:
    """The result of an order that came to nothing."""
    return TrialResult(order.architecture, "failed", reason, finished_at=time.time())


@contextlib.contextmanager
def pool(count: int, task: Task, log: Path) -> Iterator[list[Worker]]:
    """`count` idle workers; they are ended, busy or not, on the way out."""
    workers = [start(task, log) for _ in range(count)]
    try:
        yield workers
    finally:
        for worker in workers:
            worker.process.kill()
        for worker in workers:
            worker.process.wait()


def start(task: Task, log: Path) -> Worker:
    """A new worker, in a session of its own so that Ctrl-C reaches its parent only."""
    ours, theirs = Pipe()
    command = [sys.executable, "-m", "nas.workers", str(theirs.fileno())]
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    theirs.close()
    with contextlib.suppress(OSError):
        ours.send_bytes(msgspec.json.encode(task))
    return Worker(process, ours)


def ready(workers: list[Worker], timeout_s: float) -> list[Worker]:
    """Busy workers that have an answer, or have died."""
    busy = {worker.pipe: worker for worker in workers if worker.order}
    return [busy[pipe] for pipe in wait(list(busy), timeout_s) if isinstance(pipe, Connection)]


def _death(exit_code: int) -> str:
    if exit_code == -9:
        return "killed, perhaps for want of memory"
    return f"signal {-exit_code}" if exit_code < 0 else f"exit code {exit_code}"


def _work(pipe: Connection) -> None:
    """Answers orders until the parent closes the pipe."""
    torch.set_num_threads(1)
    threading.Thread(target=_die_with, args=(os.getppid(),), daemon=True).start()
    with contextlib.suppress(EOFError):
        task = msgspec.json.decode(pipe.recv_bytes(), type=Task)
        job: Job | None = None
        while True:
            order = msgspec.json.decode(pipe.recv_bytes(), type=Order)
            try:
                job = job or _job(task)
                compute(
                    job.dataset, parse(order.architecture).front_end
                )  # fails for outside reasons
                answer = Answer(_evaluate(order, job))
            except UserError as error:
                answer = Answer(failed(order, str(error)), trouble=str(error))
            except OSError as error:
                mend = "check disk space, permissions or --artifacts; the same command then goes on"
                answer = Answer(failed(order, str(error)), trouble=f"{error}; {mend}")
            pipe.send_bytes(msgspec.json.encode(answer))


def _job(task: Task) -> Job:
    dataset = load(task.data, tolerate_bad_files=True)
    if dataset.fingerprint != task.data_fingerprint:
        raise UserError(
            f"{task.data}: the recordings or their splits have changed since the search began; "
            "put back what they were, or search anew under another --name"
        )
    return Job(dataset, task.target, task.proxy, task.max_latency_ms)


def _evaluate(order: Order, job: Job) -> TrialResult:
    """An exception of the network's own is a recorded result: it must not end a search."""
    job = replace(job, proxy=msgspec.structs.replace(job.proxy, **order.training))
    try:
        return evaluate_architecture(
            parse(order.architecture), job, order.seed, order.stem, order.bars, before=order.before
        )
    except OSError:
        raise
    except Exception as error:
        return failed(order, f"{type(error).__name__}: {error}")


def _die_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)


if __name__ == "__main__":
    _work(Connection(int(sys.argv[1])))
