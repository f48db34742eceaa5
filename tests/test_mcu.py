"""Microcontrollers: estimates held against what was measured on boards, and calibration.

micronets.csv and mlperf_tiny.csv hold published measurements: MicroNets (Banbury et al., MLSys
2021), Table 4, whose KB are taken as 1,024 bytes, and MLPerf Tiny's closed division, with the MACs
of its networks.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from nas.arch import parse
from nas.calibrate import Measured, calibrate, fit_cycles, left_out, read_measurements, spread
from nas.calibrate import to_toml as profile_text
from nas.cli import main
from nas.cost import estimate
from nas.errors import UserError
from nas.estimates import duty
from nas.foreign import work_of_file
from nas.ledger import WIDTH, weight_widths
from nas.mcu import Work, latency_ms, model_bytes, work
from nas.network import build, to_onnx
from nas.published import published
from nas.quantize import quantize
from nas.shipped import decode, load_target
from nas.target import TargetProfile
from nas.trace import operations

IR = "ir_n2_k3x3_s1x1_e2_c16_relu6_q0_p0"
FACTS = Path(__file__).parent
BOARDS = {"stm32f446re": (3, 8), "stm32f746zg": (4, 8), "stm32f767zi": (4, 8)}


def facts(name: str) -> dict[str, list[dict[str, str]]]:
    """The rows of a CSV file by board."""
    found = defaultdict(list)
    with open(FACTS / name) as lines:
        for row in csv.DictReader(lines):
            found[row["board"]].append(row)
    return found


MICRONETS, MLPERF = facts("micronets.csv"), facts("mlperf_tiny.csv")
NETWORKS = {row["architecture"]: row for rows in MICRONETS.values() for row in rows}


def work_of(name: str) -> Work:
    entry = published()[name]
    architecture = parse(entry.architecture)
    found, quantization = operations(architecture, entry.classes), architecture.quantization
    widths = weight_widths(found, quantization)
    return work(found, widths, architecture.front_end.shape, WIDTH[quantization.scheme])


def measured(board: str) -> list[Measured]:
    return [
        Measured(work_of(row["architecture"]), float(row["latency_ms"])) for row in MICRONETS[board]
    ]


@pytest.mark.parametrize("board", BOARDS)
def test_a_network_s_time_is_predicted_from_the_others_on_micronets_boards(board):
    most_mean, most_worst = BOARDS[board]
    mcu = load_target(board).mcu
    error = left_out(mcu, measured(board))
    assert error.mean_percent <= most_mean and error.worst_percent <= most_worst
    assert mcu.latency_error == error, "the profile prints the error that was measured"


@pytest.mark.parametrize("board", BOARDS)
def test_the_profiles_of_micronets_boards_are_what_calibration_makes_of_the_measurements(board):
    target = load_target(board)
    again = calibrate(target, measured(board), "MicroNets").target.mcu
    assert again.cycles_per_dense_mac == target.mcu.cycles_per_dense_mac
    assert again.cycles_per_depthwise_mac == target.mcu.cycles_per_depthwise_mac


def test_peak_memory_is_within_5_percent_for_eight_of_the_nine_networks():
    mcu = load_target("stm32f446re")
    pairs = [(on(mcu, name).peak_ram_bytes, kb(row["sram_kb"])) for name, row in NETWORKS.items()]
    assert len(pairs) == 9
    assert sum(abs(found / known - 1) <= 0.05 for found, known in pairs) == 8
    assert spread(pairs) == mcu.mcu.ram_error


def test_the_model_s_flash_is_within_5_percent():
    mcu = load_target("stm32f446re").mcu
    pairs = [
        (model_bytes(work_of(name), mcu), kb(row["flash_kb"])) for name, row in NETWORKS.items()
    ]
    assert max(abs(found / known - 1) for found, known in pairs) <= 0.05
    assert spread(pairs) == mcu.flash_error


def test_energy_is_that_of_the_measured_boards():
    for board in ("stm32f446re", "stm32f746zg"):
        target = load_target(board)
        for row in MICRONETS[board]:
            found = on(target, row["architecture"]).energy_mj
            assert found == pytest.approx(float(row["energy_mj"]), rel=0.08)


def on(target: TargetProfile, name: str):
    entry = published()[name]
    return estimate(parse(entry.architecture), entry.classes, target)


def kb(text: str) -> float:
    return 1024 * float(text)


@pytest.mark.parametrize("board", MLPERF)
def test_the_profiles_of_mlperf_tiny_are_fitted_to_its_results(board):
    target, rows = load_target(board), MLPERF[board]
    mcu = target.mcu
    assert mcu.stack in rows[0]["stack"]
    table = [(int(r["dense_macs"]), int(r["depthwise_macs"]), float(r["latency_ms"])) for r in rows]
    dense, depthwise, ms = zip(*table, strict=True)
    cycles = [t * mcu.clock_mhz * 1e3 for t in ms]
    fitted = fit_cycles(dense, depthwise, cycles)
    assert [mcu.cycles_per_dense_mac, mcu.cycles_per_depthwise_mac] == pytest.approx(
        fitted, abs=1e-4
    )
    pairs = []
    for out in (0, 2):  # not image classification, which alone has no depthwise layer
        others = [i for i in range(3) if i != out]
        without = fit_cycles(
            *([column[i] for i in others] for column in (dense, depthwise, cycles))
        )
        pairs.append((without @ [dense[out], depthwise[out]], cycles[out]))
    assert spread(pairs) == mcu.latency_error


def test_the_arduino_s_time_is_borrowed_and_not_validated():
    borrowed, lender = load_target("arduino-nano-33-ble-sense").mcu, load_target("stm32f446re").mcu
    assert borrowed.latency_error is borrowed.ram_error is borrowed.flash_error is None
    asked = work_of("dscnn-s")
    assert latency_ms(asked, borrowed) == pytest.approx(latency_ms(asked, lender) * 180 / 64)


def test_time_energy_and_memory_add_up_from_the_profile():
    target = load_target("stm32f746zg")
    mcu, cost, asked = target.mcu, on(target, "dscnn-s"), work_of("dscnn-s")
    cycles = mcu.cycles_per_dense_mac * (cost.macs - 288_000)
    cycles += mcu.cycles_per_depthwise_mac * 288_000
    assert asked.depthwise_macs == 288_000
    assert cost.latency_ms == pytest.approx(cycles / 216e3)
    assert cost.energy_mj == pytest.approx(cost.latency_ms * mcu.active_mw / 1e3)
    # the first depthwise layer: 64 maps of 10 x 49 in, 64 of 5 x 25 out, 9 int16 of each unrolled
    assert asked.arena_bytes == 64 * 10 * 49 + 64 * 5 * 25 + 2 * 9 * 64
    front_end = 2 * (640 + 320) + 8 * 640 + 10 * 49
    assert cost.ram_bytes == cost.peak_ram_bytes + front_end


@pytest.mark.parametrize("text", ["float32", "float16", "int8_channel_head"])
def test_the_time_of_a_network_that_is_not_int8_throughout_is_not_known(text):
    entry = published()["dscnn-s"]
    other = entry.architecture.replace("int8_channel_none", text)
    cost = estimate(parse(other), 12, load_target("stm32f446re"))
    assert cost.latency_ms is cost.energy_mj is None
    assert cost.flash_bytes > on(load_target("stm32f446re"), "dscnn-s").flash_bytes


def test_operations_that_no_measurement_covers_are_named():
    cost = estimate(parse(published()["bcresnet-1"].architecture), 12, load_target("stm32f446re"))
    assert {"silu", "subspectralnorm"} <= set(cost.unmodelled)
    assert on(load_target("stm32f446re"), "micronet-kws-m").unmodelled == []


def test_one_decision_per_clip_gives_the_duty_cycle_and_the_days_of_a_battery():
    mcu = msgspec.structs.replace(load_target("stm32f446re").mcu, active_mw=100.0, idle_mw=1.0)
    found = duty(latency_ms=250, clip_s=1.0, mcu=mcu)
    assert found.duty_cycle == 0.25
    assert found.mean_mw == pytest.approx(25 + 0.75)
    assert found.days(battery_mwh=618) == pytest.approx(1)
    assert duty(250, 1.0, msgspec.structs.replace(mcu, active_mw=None)) is None


@pytest.mark.parametrize("block", ["ds_n2_k3x3_s2x2_c32_relu_q0_g1_p0", IR])
def test_an_onnx_file_of_an_architecture_asks_the_same_work_as_the_architecture(block):
    stem = "logmel_r8000_t1_f256_w256_h128_m20_d0_c1/conv_n1_k3x3_s2x2_c16_relu_q0_g0_p0"
    architecture = parse(f"{stem}/{block}/gap_c0_p0/int8_channel_none")
    model = to_onnx(build(architecture, 12), architecture.front_end.shape)
    clips = np.random.default_rng(0).standard_normal((4, *architecture.front_end.shape), np.float32)
    found, int8 = work_of_file(quantize(model, architecture.quantization, clips), "m.onnx")
    traced = operations(architecture, 12)
    widths = weight_widths(traced, architecture.quantization)
    assert int8
    assert found == work(traced, widths, architecture.front_end.shape, 1)
    floats, int8 = work_of_file(model, "m.onnx")
    assert not int8 and floats.dense_macs == found.dense_macs


def test_an_onnx_file_without_layers_to_count_is_refused():
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 1, 4, 4]) for n in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", ends[:1], ends[1:])
    with pytest.raises(UserError, match=r"relu.onnx has no convolution or dense layer"):
        work_of_file(helper.make_model(graph), "relu.onnx")


def test_calibrating_finds_the_cycles_that_made_the_measurements(tmp_path):
    target = load_target("arduino-nano-33-ble-sense")
    truth = msgspec.structs.replace(
        target.mcu, cycles_per_dense_mac=3.0, cycles_per_depthwise_mac=40.0, runtime_ram_bytes=9000
    )
    rows = [
        Measured(asked, latency_ms(asked, truth), asked.arena_bytes + 8 * asked.channels + 9000)
        for asked in map(work_of, ("dscnn-s", "dscnn-m", "micronet-kws-m", "micronet-ad-s"))
    ]
    found = calibrate(target, rows, "mine.csv")
    assert found.target.mcu.cycles_per_dense_mac == pytest.approx(3, abs=1e-3)
    assert found.target.mcu.cycles_per_depthwise_mac == pytest.approx(40, abs=1e-2)
    assert found.target.mcu.runtime_ram_bytes == 9000
    assert found.after.worst_percent < 0.01 < found.before.mean_percent
    assert found.target.mcu.sources["cycles_per_dense_mac"] == "mine.csv"
    text = profile_text(found.target, "refitted")
    assert decode(text, TargetProfile, "mine.toml") == found.target


def test_networks_too_alike_to_tell_the_layers_apart_are_refused():
    asked = work_of("dscnn-s")
    fast = replace(asked, dense_macs=2 * asked.dense_macs)
    rows = [Measured(asked, 100.0), Measured(fast, 90.0), Measured(asked, 101.0)]
    with pytest.raises(UserError, match="both must be above 0"):
        calibrate(load_target("stm32f446re"), rows, "mine.csv")


@pytest.mark.parametrize(
    "text, said",
    [
        ("", ["has the columns none", "architecture and latency_ms"]),
        ("network,ms\na,1\n", ["has the columns network, ms", "architecture and latency_ms"]),
        ("architecture,latency_ms,volts\n", ["volts", "ram_bytes"]),
        ("architecture,latency_ms\ndscnn-s,58\n", ["1 row(s)", "at least 3"]),
        ("architecture,latency_ms\ndscnn-s,fast\n", ["row 1: latency_ms is 'fast'"]),
        ("architecture,latency_ms\ndscnn-s,-3\n", ["row 1: latency_ms is '-3'", "above 0"]),
        ("architecture,latency_ms\ndscnn-s,\n", ["row 1: latency_ms is empty"]),
        ("architecture,latency_ms\ndscnn-x,58\n", ["row 1: unknown architecture 'dscnn-x'"]),
        ("architecture,latency_ms\nbcresnet-1,58\n", ["row 1: 'bcresnet-1' is not int8"]),
        ("architecture,latency_ms\nno.onnx,58\n", ["no.onnx: No such file"]),
        ("architecture,latency_ms\nmine.csv.onnx,58\n", ["mine.csv.onnx is not an ONNX file"]),
    ],
)
def test_a_mistake_in_the_measurements_is_one_sentence(text, said, tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text(text)
    (tmp_path / "mine.csv.onnx").write_bytes(b"not protobuf at all")
    with pytest.raises(UserError) as error:
        read_measurements(path)
    assert "\n" not in str(error.value)
    for part in said:
        assert part in str(error.value)


def test_a_float_onnx_file_is_no_measurement_of_an_int8_network(tmp_path):
    architecture = parse(published()["dscnn-s"].architecture)
    model = to_onnx(build(architecture, 12), architecture.front_end.shape)
    onnx.save(model, tmp_path / "net.onnx")
    (tmp_path / "mine.csv").write_text("architecture,latency_ms\nnet.onnx,58\n")
    with pytest.raises(UserError, match=r"'net.onnx' is not int8"):
        read_measurements(tmp_path / "mine.csv")


def test_calibrate_writes_a_profile_and_says_the_error_before_and_after(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    lines = ["architecture,latency_ms"]
    lines += [f"{row['architecture']},{row['latency_ms']}" for row in MICRONETS["stm32f446re"]]
    Path("mine.csv").write_text("\n".join(lines))
    assert main(["calibrate", "arduino-nano-33-ble-sense", "mine.csv", "--out", "new.toml"]) == 0
    said = capsys.readouterr().out
    assert "each network left out in turn: error 2.1 % mean, 3.8 % worst of 4 networks" in said
    assert "as arduino-nano-33-ble-sense estimated it: error" in said
    assert load_target("new.toml").mcu.latency_error.networks == 4
    assert main(["calibrate", "arduino-nano-33-ble-sense", "mine.csv", "--out", "new.toml"]) == 2
    assert "new.toml exists already" in capsys.readouterr().err
    assert main(["calibrate", "host", "mine.csv"]) == 2
    assert "'host' is no microcontroller" in capsys.readouterr().err
    assert main(["calibrate", "stm32f446re", "none.csv"]) == 2
    assert "none.csv: No such file" in capsys.readouterr().err


MCU = """
name = "board"
description = "a board"
source = "measured"
runtime = "mcu"
size_kind = "flash_bytes"
[limits]
size_bytes = 524288
ram_bytes = 131072
[mcu]
core = "Cortex-M4"
clock_mhz = 100.0
stack = "mine"
cycles_per_dense_mac = 2.0
cycles_per_depthwise_mac = 50.0
runtime_flash_bytes = 0
runtime_ram_bytes = 0
flash_bytes_per_channel = 28
flash_bytes_per_layer = 0
ram_bytes_per_channel = 8
"""


@pytest.mark.parametrize(
    "old, new, said",
    [
        ("clock_mhz = 100.0\n", "", "missing key 'mcu.clock_mhz'"),
        ("clock_mhz = 100.0", "clock_mhz = -16.0", "mcu.clock_mhz"),
        ("clock_mhz = 100.0", 'clock_mhz = "fast"', "mcu.clock_mhz"),
        ("[mcu]", "[mcu]\nwatts = 3", "unknown key 'mcu.watts'"),
        ("[limits]", "[limits]\nflash = 3", "unknown key 'limits.flash'"),
        ('"mcu"', '"onnxruntime"', "a table [mcu] contradicts runtime 'onnxruntime'"),
        ('"mcu"', '"tflite"', "runtime"),
        ("flash_bytes", "file_bytes", "size_kind is 'file_bytes'"),
        ("ram_bytes = 131072", "", "limits.ram_bytes"),
        ("[limits]", "threads = 4\n[limits]", "graph_optimization and [remote] contradict"),
        (MCU[MCU.index("[mcu]") :], "", "needs a table [mcu]"),
    ],
)
def test_a_profile_with_a_missing_or_contradictory_key_is_refused_by_name(old, new, said):
    assert decode(MCU, TargetProfile, "board.toml").mcu.clock_mhz == 100
    with pytest.raises(UserError) as error:
        decode(MCU.replace(old, new, 1), TargetProfile, "board.toml")
    assert str(error.value).startswith("board.toml") and "\n" not in str(error.value)
    assert said in str(error.value)
