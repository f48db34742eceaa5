"""Times networks side by side in ONNX Runtime: the one protocol of this machine and of devices.

nas sends this file with a call of `answer` behind it to a Python of its own, here or over ssh. It
needs Python 3.8, numpy and onnxruntime, writes no file but a lock, and leaves nothing running.
"""

from __future__ import annotations

import base64
import contextlib
import json
import math
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

SECONDS_PER_BURST = 0.004
SECONDS_BETWEEN_MOMENTS = 0.08
SETTLED_SHARE = 0.003  # a time that falls by less has not fallen
SETTLED_MOMENTS = 3


def answer(order: dict[str, Any]) -> None:
    """Prints one line of JSON: the times and facts, or what is missing or refused here.

    `order` holds `networks` (base64 of ONNX files with one float32 input of fixed shape),
    `provider`, `threads` (0: all cores), `level` (of graph optimisation, as ONNX Runtime names
    it), `moments` (fewest and most) and `seconds` of a moment for each network.
    """
    # Else ONNX Runtime 1.32 leaves an identifier and a database in the user's home.
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    try:
        import numpy
        import onnxruntime
    except ImportError as error:
        return _say(missing=error.name or str(error))
    known = onnxruntime.get_available_providers()
    if order["provider"] not in known:
        provider = order["provider"]
        return _say(refused=f"no provider '{provider}' here; it has {', '.join(known)}")
    try:
        times = _times(order, numpy, onnxruntime)
    except Exception as error:
        # ONNX Runtime's exceptions share no base class of their own.
        return _say(refused=(str(error).strip().splitlines() or [type(error).__name__])[0])
    figures = [_figures(seconds, numpy) for seconds in times]
    _say(times=figures, facts=dict(_facts(), onnxruntime=onnxruntime.__version__))


def _say(**said: Any) -> None:
    print(json.dumps(said))


def _figures(seconds: list[float], numpy: Any) -> dict[str, float]:
    """Fastest, median and 95th percentile in ms; from all runs of all moments."""
    median, high = numpy.percentile(seconds, [50, 95])
    return {
        "latency_ms": 1e3 * _fastest(seconds),
        "latency_median_ms": 1e3 * median,
        "latency_p95_ms": 1e3 * high,
    }


def _fastest(seconds: list[float]) -> float:
    """That of a thousand runs, never the lowest: a virtual machine's kernel takes what its host
    stole off the CPU time of a later run, and may leave it nothing (3 of 300,000 runs, measured).
    """
    return sorted(seconds)[math.ceil((len(seconds) - 1) / 1000)]


def _times(order: dict[str, Any], numpy: Any, onnxruntime: Any) -> list[list[float]]:
    """Seconds of every run of each network, from as many moments as it takes until none gets
    faster any more. A moment has sessions of its own: where its memory lies changes a time."""
    networks = [base64.b64decode(text) for text in order["networks"]]
    fewest, most = order["moments"]
    taken: list[list[float]] = [[] for _ in networks]
    fastest: list[list[float]] = []
    for moment in range(most):
        if moment:
            time.sleep(SECONDS_BETWEEN_MOMENTS)
        with _measuring_alone(pin=order["threads"] == 1):
            runs = [_runner(network, order, numpy, onnxruntime) for network in networks]
            _moment(runs, taken, order["seconds"] * len(networks), _clock(order))
        fastest.append([_fastest(seconds) for seconds in taken])
        if len(fastest) >= fewest and _settled(fastest):
            break
    return taken


def _settled(fastest: list[list[float]]) -> bool:
    """Whether the last moments have made no network faster."""
    before, now = fastest[max(0, len(fastest) - 1 - SETTLED_MOMENTS)], fastest[-1]
    return all(now[i] > (1 - SETTLED_SHARE) * before[i] for i in range(len(now)))


def _clock(order: dict[str, Any]) -> Callable[[], float]:
    """On one thread its own CPU time, which stands still while another process has the CPU: a run
    longer than the scheduler's slice is never left alone on a busy machine."""
    alone = order["threads"] == 1 and order["provider"] == "CPUExecutionProvider"
    return time.thread_time if alone else time.perf_counter


def _moment(
    runs: list[Callable[[], Any]],
    taken: list[list[float]],
    seconds: float,
    clock: Callable[[], float],
) -> None:
    """Bursts of each network in turn, equally long, whatever a run takes."""
    for run in runs:
        _burst(run, clock)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for number, run in enumerate(runs):
            taken[number] += _burst(run, clock)


def _burst(run: Callable[[], Any], clock: Callable[[], float]) -> list[float]:
    """Seconds of each run, at least two."""
    seconds: list[float] = []
    while len(seconds) < 2 or sum(seconds) < SECONDS_PER_BURST:
        start = clock()
        run()
        seconds.append(clock() - start)
    return seconds


def _runner(
    network: bytes, order: dict[str, Any], numpy: Any, onnxruntime: Any
) -> Callable[[], Any]:
    """A function of no arguments that runs the network once on fixed noise."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = order["threads"]
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, order["level"])
    # Threads that spin between runs disturb each other and the neighbours: times do not repeat.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # As predict.py runs it; what others have quantised may lack the zero points that this takes.
    options.add_session_config_entry("session.x64quantprecision", "1")
    try:
        return _started(network, options, order, numpy, onnxruntime)
    except Exception:
        options.add_session_config_entry("session.x64quantprecision", "0")
        return _started(network, options, order, numpy, onnxruntime)


def _started(
    network: bytes, options: Any, order: dict[str, Any], numpy: Any, onnxruntime: Any
) -> Callable[[], Any]:
    """Raises what ONNX Runtime raises if it cannot load the network, or run it."""
    session = onnxruntime.InferenceSession(network, options, providers=[order["provider"]])
    value = session.get_inputs()[0]
    noise = numpy.random.default_rng(0).standard_normal(value.shape, numpy.float32)

    def run() -> Any:
        return session.run(None, {value.name: noise})

    run()
    return run


@contextlib.contextmanager
def _measuring_alone(pin: bool) -> Iterator[None]:
    """One measuring process per machine at a time, on one CPU if `pin`; both undone after."""
    import fcntl

    path = os.path.join(tempfile.gettempdir(), "nas-measure.lock")
    if not os.path.exists(path):
        with contextlib.suppress(OSError):
            os.close(os.open(path, os.O_CREAT, 0o666))
    # Read-only, so that every user of the machine can take the lock that one of them created.
    with open(path) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        allowed = os.sched_getaffinity(0) if pin and hasattr(os, "sched_getaffinity") else None
        try:
            if allowed:
                os.sched_setaffinity(0, {max(allowed)})
            yield
        finally:
            if allowed:
                os.sched_setaffinity(0, allowed)


def _facts() -> dict[str, Any]:
    """What is known of the device without asking for rights; what cannot be read is left out."""
    cores = (
        os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    )
    cpu = f"/sys/devices/system/cpu/cpu{max(cores)}/cpufreq/"
    khz = _number(cpu + "scaling_cur_freq") or _number(cpu + "cpuinfo_max_freq")
    clock_mhz = khz / 1e3 if khz else float(_cpuinfo("cpu MHz") or 0)
    heat = _number("/sys/class/thermal/thermal_zone0/temp")
    facts = {
        "cpu": _cpuinfo("Model") or _cpuinfo("model name") or platform.machine(),
        "cores": len(cores),
        "machine": platform.machine(),
        "system": platform.system() + " " + platform.release(),
        "clock_mhz": clock_mhz or None,
        "governor": _text(cpu + "scaling_governor"),
        "temperature_c": heat / 1e3 if heat else None,
        "python": platform.python_version(),
    }
    return {key: value for key, value in facts.items() if value is not None}


def _cpuinfo(wanted: str) -> str | None:
    for line in (_text("/proc/cpuinfo") or "").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == wanted:
            return value.strip()
    return None


def _number(path: str) -> float | None:
    try:
        return float(_text(path) or "")
    except ValueError:
        return None


def _text(path: str) -> str | None:
    try:
        with open(path) as file:
            return file.read().strip() or None
    except OSError:
        return None
