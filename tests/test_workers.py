"""A worker process by itself: what it answers when its surroundings are not as they should be."""

from __future__ import annotations

import shutil
from pathlib import Path

from tones import write_tones

from nas.dataset import load
from nas.record import Proxy
from nas.shipped import load_target
from nas.workers import Order, Task, pool, ready

NETWORK = (
    "logmel_r8000_t0.5_f256_w256_h128_m20_d0_c1/conv_n1_k3x3_s2x2_c4_relu_q0_g0_p0/"
    "gap_c0_p0/float32"
)


def test_a_worker_trains_on_no_other_recordings_than_the_search_began_with(tmp_path: Path) -> None:
    tones = write_tones(tmp_path / "tones")
    task = Task(str(tones), load(str(tones)).fingerprint, load_target("host"), Proxy(epochs=1))
    for name in ("low", "mid"):
        shutil.copy(tones / name / "00.wav", tones / name / "copied-in-meanwhile.wav")
    with pool(1, task, tmp_path / "log") as (worker,):
        worker.give(Order(0, NETWORK, {}, 0, str(tmp_path / "0"), {}))
        assert ready([worker], timeout_s=120) == [worker]
        answer = worker.take()
    assert answer.result.state == "failed"
    assert "have changed since the search began" in answer.trouble
