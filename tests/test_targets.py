"""Rule sets and microcontrollers as targets of show, search, front, report and measure."""

from __future__ import annotations

import json

import msgspec
import pytest
from tones import SPACE, write_tones

from nas.arch import parse
from nas.cli import main
from nas.compliance import over_limits, sheet
from nas.cost import estimate
from nas.measure import reference_network
from nas.published import published
from nas.record import Budget, Cost, Proxy, StudyInputs
from nas.settings import Settings, budget_of
from nas.shipped import load_target, names, read
from nas.study import load_study

DCASE = ["dcase2020-1b", "dcase2021", "dcase2022", "dcase2023", "dcase2024", "dcase2025"]


def cost_of(name: str, target: str) -> Cost:
    entry = published()[name]
    return estimate(parse(entry.architecture), entry.classes, load_target(target))


def checks(name: str, target: str, accuracy: float | None = None) -> dict[str, tuple[str, bool]]:
    """Figure and verdict by the word that a rule begins with."""
    architecture = parse(published()[name].architecture)
    found = sheet(architecture, cost_of(name, target), load_target(target), accuracy)
    return {check.rule.split(":")[0]: (check.figure, check.passed) for check in found}


def test_the_dcase_2024_baseline_passes_with_its_published_figures():
    found = checks("cpmobile-dcase2024", "dcase2024")
    assert found == {
        "size": ("122,296", True),
        "MACs": ("29,419,156", True),
        "clip": ("1 s", True),
    }


def test_the_baseline_of_2024_breaks_the_int8_rule_of_2022():
    assert checks("cpmobile-dcase2024", "dcase2022")["format"] == ("float16", False)


@pytest.mark.parametrize("name", DCASE)
def test_a_rule_set_is_a_limit_in_bytes_of_parameters_and_says_what_was_not_verified(name):
    target = load_target(name)
    limit = {"dcase2020-1b": 512_000, "dcase2021": 131_072}.get(name, 128_000)
    assert (target.size_kind, target.limits.size_bytes) == ("parameter_bytes", limit)
    assert target.limits.macs == (None if name < "dcase2022" else 30_000_000)
    found = sheet(
        parse(published()["saleem2022"].architecture), cost_of("saleem2022", name), target
    )
    marked = {c.rule.split(":")[0] for c in found if c.rule.endswith("(rule not verified)")}
    assert marked == set(target.rules.unverified)


def test_an_accuracy_rule_is_open_until_the_network_was_tested():
    assert checks("dscnn-mlperf-tiny", "mlperf-tiny-kws")["accuracy"] == ("not tested yet", None)
    assert checks("dscnn-mlperf-tiny", "mlperf-tiny-kws", 0.91)["accuracy"] == ("91.0%", True)
    assert checks("dscnn-mlperf-tiny", "mlperf-tiny-kws", 0.89)["accuracy"] == ("89.0%", False)


def inputs_of(target: str, **settings: float) -> StudyInputs:
    profile = load_target(target)
    budget = budget_of(Settings(**settings), profile)
    return StudyInputs(
        *("", "", "", ["a", "b"], "", "", target), profile, profile.size_kind, budget, Proxy(), 0
    )


def over(name: str, inputs: StudyInputs) -> set[str]:
    architecture = parse(published()[name].architecture)
    shares = over_limits(architecture, cost_of(name, inputs.target), inputs)
    return {limit for limit, share in shares.items() if share > 0}


def test_what_a_target_rules_out_is_over_its_limits_before_training():
    assert over("dscnn-s", inputs_of("stm32f446re")) == set()
    assert over("dscnn-s", inputs_of("stm32f446re", max_latency_ms=100)) == {"latency_ms"}
    assert over("micronet-kws-l", inputs_of("stm32f446re")) == {"flash_bytes", "ram_bytes"}
    # the C of a bundle is int8's; the time of a network in float is not known, and meets no limit
    assert over("cpmobile-dcase2024", inputs_of("stm32f767zi")) == {"format"}
    assert over("cpmobile-dcase2024", inputs_of("stm32f767zi", max_latency_ms=1e6)) == {
        "format",
        "latency_ms",
    }
    assert over("cpmobile-dcase2024", inputs_of("dcase2022")) == {"format"}
    assert over("cpmobile-dcase2024", inputs_of("dcase2024", max_mmacs=29.418)) == {"macs"}
    assert Budget(1, norm_macs=True).macs_of(cost_of("cpmobile-dcase2024", "host")) == 29_419_156


def test_show_prints_every_estimate_with_its_error_and_the_sheet(capsys):
    flags = ["--target", "stm32f446re", "--battery-mwh", "1000"]
    assert main(["show", "dscnn-s", *flags]) == 0
    said = capsys.readouterr().out
    cost = cost_of("dscnn-s", "stm32f446re")
    assert f"time {cost.latency_ms:.4g} ms per decision (error 2.1 % mean, 3.8 % worst" in said
    assert f"energy {cost.energy_mj:.4g} mJ per decision" in said
    days = 1000 / (cost.latency_ms / 1e3 * 163) / 24
    assert f"a battery of 1000 mWh lasts {days:.3g} days, idling not counted" in said
    assert "pass  size: at most 524,288 bytes of flash" in said
    assert main(["show", "bcresnet-1", "--target", "arduino-nano-33-ble-sense"]) == 0
    assert "time and energy not known" in capsys.readouterr().out
    assert main(["show", "dscnn-s", "--target", "arduino-nano-33-ble-sense", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert any("(not validated)" in line for line in shown["estimates"] if "time" in line)
    assert [check["passed"] for check in shown["compliance"]] == [True, True]


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--battery-mwh", "100"], "--battery-mwh needs a microcontroller, target 'host'"),
        (["--target", "stm32f446re", "--battery-mwh", "-1"], "--battery-mwh is -1"),
        (["--target", "stm32f447"], "did you mean 'stm32f446re'"),
    ],
)
def test_a_mistaken_flag_of_show_is_one_sentence(flags, said, capsys):
    assert main(["show", "dscnn-s", *flags]) == 2
    assert said in capsys.readouterr().err


def test_measure_never_passes_the_host_s_time_off_as_a_microcontroller_s(tmp_path, capsys):
    (tmp_path / "float.onnx").write_bytes(reference_network())
    path = str(tmp_path / "float.onnx")
    assert main(["measure", path, "--target", "stm32f446re"]) == 2
    assert "target 'stm32f446re' knows the time of int8 networks only" in capsys.readouterr().err


def test_a_search_for_a_microcontroller_refuses_what_does_not_fit_and_estimates_the_rest(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    write_tones(tmp_path / "tones")
    (tmp_path / "tiny.toml").write_text(SPACE)
    (tmp_path / "study.toml").write_text("[proxy]\nepochs = 2\n")
    command = ["search", "study.toml", "--name", "board", "--data", "tones", "--trials", "3"]
    command += ["--space", "tiny.toml", "--target", "stm32f446re", "--max-latency-ms", "20"]
    assert main([*command, "--workers", "1"]) == 0
    assert "estimated for STM32F446RE" in " ".join(capsys.readouterr().out.split())
    record = load_study("board")
    complete = [r for r in record.trials if r.state == "complete"]
    assert complete and all(r.architecture.endswith("int8_channel_none") for r in complete)
    for r in complete:
        built = estimate(parse(r.architecture), len(record.inputs.classes), record.inputs.profile)
        assert r.latency.latency_kind == "estimated"
        assert r.latency.latency_ms == pytest.approx(built.latency_ms) and built.latency_ms <= 20
        assert "error 2.1 % mean" in r.latency.device
        assert msgspec.structs.replace(r.cost) == built
    assert main(["front", "board", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows[0]["latency_kind"] == "estimated" and rows[0]["size_kind"] == "flash_bytes"
    assert rows[0]["energy_mj"] == pytest.approx(rows[0]["latency_ms"] * 163 / 1e3)
    artifact = rows[0]["artifact"]
    assert main(["measure", artifact, "--target", "stm32f446re", "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)
    assert measured["latency_kind"] == "estimated"
    assert measured["latency_ms"] == pytest.approx(rows[0]["latency_ms"])
    assert main(["report", "board", "--battery-mwh", "500"]) == 0
    page = (tmp_path / "studies/board/report.html").read_text()
    assert "a battery of 500 mWh lasts" in page and "there, estimated" in page


def test_a_provider_that_onnx_runtime_lacks_is_told_before_the_search(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    write_tones(tmp_path / "tones", clips_per_class=4)
    text = read("targets", "host")[1].replace("CPUExecution", "TPUExecution")
    (tmp_path / "tpu.toml").write_text(text)
    assert main(["search", "--data", "tones", "--target", "tpu.toml", "--trials", "1"]) == 2
    said = capsys.readouterr().err
    assert "TPUExecutionProvider" in said and "CPUExecutionProvider" in said


def test_every_rule_set_is_listed():
    assert {*DCASE, "mlperf-tiny-kws"} <= set(names("targets"))
