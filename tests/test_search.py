"""The main job through the command line: a search, its front, its files, killing and continuing."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import msgspec
import numpy as np
import pytest
from searching import STUDY, children, wait_for, working_folder
from tones import SPACE, write_tones

from nas.arch import parse
from nas.cli import main
from nas.dataset import load
from nas.features import compute
from nas.measure import logits
from nas.pareto import front
from nas.score import score
from nas.settings import default_space
from nas.study import ask, load_study, look, open_study, record, start, withdraw

CONTRACT = {
    "trial",
    "architecture",
    "accuracy",
    "accuracy_low",
    "accuracy_high",
    "size_kb",
    "size_kind",
    "file_bytes",
    "parameter_bytes",
    "flash_bytes",
    "latency_ms",
    "latency_kind",
    "macs",
    "peak_ram_bytes",
    "quantization",
    "parameters",
    "float_accuracy",
    "artifact",
    "seconds",
}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with recordings, a space, a study file and a finished search."""
    folder = tmp_path_factory.mktemp("workplace")
    write_tones(folder / "tones")
    (folder / "tiny.toml").write_text(SPACE)
    (folder / "tones.toml").write_text(STUDY)
    done = nas(folder, "search", "tones.toml")
    assert done.returncode == 0, done.stderr
    (folder / "search.stdout").write_text(done.stdout)
    (folder / "search.stderr").write_text(done.stderr)
    return folder


def environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "NAS_CACHE": str(folder / "cache")}


def nas(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "nas", *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=300
    )


def in_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("NAS_CACHE", str(folder / "cache"))


def test_the_front_follows_the_contract_and_keeps_to_the_budget(workplace):
    rows = json.loads(nas(workplace, "front", "tones", "--json").stdout)
    assert rows
    for row in rows:
        assert row.keys() >= CONTRACT
        assert row["size_kb"] <= 12
        assert row["accuracy_low"] <= row["accuracy"] <= row["accuracy_high"]
        assert row["latency_kind"] == "measured" and row["latency_ms"] > 0
    sizes = [row["size_kb"] for row in rows]
    assert sizes == sorted(sizes)
    assert [r["accuracy"] for r in rows] == sorted({r["accuracy"] for r in rows})


def test_every_figure_is_that_of_the_bytes_on_disk(workplace, monkeypatch):
    in_folder(workplace, monkeypatch)
    dataset = load("tones")
    for result in load_study("tones").trials:
        if result.state != "complete":
            continue
        artifact = Path(result.artifact).read_bytes()
        architecture = parse(result.architecture)
        validation = compute(dataset, architecture.front_end).split("validation")
        found = score(
            logits(artifact, validation.features),
            validation.labels,
            validation.recordings,
            validation.clips,
            dataset.classes,
        )
        assert len(artifact) == result.file_bytes
        assert found == result.score
        assert Path(result.artifact).with_suffix(".safetensors").is_file()


def test_one_training_serves_several_number_formats(workplace, monkeypatch):
    in_folder(workplace, monkeypatch)
    learning = STUDY.replace("epochs = 3", "epochs = 8\nbatch = 8").replace("= 6", "= 10")
    (workplace / "formats.toml").write_text(learning.replace('"tones"', '"formats"', 1))
    flags = ("--budget-kb", "64", "--workers", "1")
    assert nas(workplace, "search", "formats.toml", *flags).returncode == 0
    trials = {t.trial: t for t in load_study("formats").trials}
    taken = [t for t in trials.values() if t.weights_of is not None]
    assert taken
    for trial in taken:
        parent = trials[trial.trained_by]
        assert parent.weights_of is None and parent.trial < trial.trial
        assert parent.architecture.rpartition("/")[0] == trial.architecture.rpartition("/")[0]
        files = [Path(t.artifact).with_suffix(".safetensors") for t in (trial, parent)]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_what_cannot_fit_is_recorded_and_never_trained(workplace, monkeypatch):
    in_folder(workplace, monkeypatch)
    flags = ("--name", "tight", "--budget-kb", "5", "--trials", "8")
    assert nas(workplace, "search", "tones.toml", *flags).returncode == 0
    trials = load_study("tight").trials
    infeasible = [t for t in trials if t.state == "infeasible"]
    assert infeasible
    for trial in infeasible:
        assert trial.seconds == 0 and trial.score is None and trial.artifact is None
        assert trial.cost.file_bytes > 5 * 1024
        assert "over" in trial.reason
    trained = [t for t in trials if t.state == "complete"]
    assert len(trained) >= 6
    assert all(t.file_bytes <= 1.01 * 5 * 1024 for t in trained)


def test_the_estimate_of_the_file_is_within_100_bytes_or_1_percent(workplace, monkeypatch):
    in_folder(workplace, monkeypatch)
    for trial in load_study("tones").trials:
        if trial.state == "complete":
            allowed = max(100, 0.01 * trial.file_bytes)
            assert abs(trial.cost.file_bytes - trial.file_bytes) <= allowed


def test_a_search_shows_its_progress_and_no_library_speaks(workplace):
    lines = (workplace / "search.stderr").read_text().splitlines()
    assert len(lines) >= 6
    known = re.compile(
        r"trial \d+: |\d+ trials done|timing the \d+ networks of the front together$"
    )
    assert all(known.match(line) for line in lines), lines
    out = (workplace / "search.stdout").read_text()
    assert out.startswith("Ship trial ") and "report.html" in out
    ship = out.split(":")[0].removeprefix("Ship trial ")
    assert out.endswith(f"\nNext: nas export tones --trial {ship}\n")
    assert (workplace / "studies" / "tones" / "report.html").is_file()


def test_the_same_command_again_adds_nothing(workplace):
    before = nas(workplace, "front", "tones", "--all", "--json").stdout
    again = nas(workplace, "search", "tones.toml")
    assert again.returncode == 0
    assert nas(workplace, "front", "tones", "--all", "--json").stdout == before


def test_more_trials_continue_the_study(workplace):
    before = json.loads(nas(workplace, "front", "tones", "--all", "--json").stdout)
    assert nas(workplace, "search", "tones.toml", "--trials", "7").returncode == 0
    after = json.loads(nas(workplace, "front", "tones", "--all", "--json").stdout)
    assert after[: len(before)] == before
    assert sum(row["state"] == "complete" for row in after) == 7
    texts = [row["architecture"] for row in after if row["state"] == "complete"]
    assert len(texts) == len(set(texts))


def test_a_search_begins_with_the_front_of_another_study(workplace):
    front = [
        r["architecture"] for r in json.loads(nas(workplace, "front", "tones", "--json").stdout)
    ]
    trials = str(3 * len(front))  # other formats of them may come in between
    flags = ["--name", "second", "--from", "tones", "--trials", trials, "--workers", "1"]
    for _ in range(2):  # the second time, nothing is begun again
        assert nas(workplace, "search", "tones.toml", *flags).returncode == 0
        rows = json.loads(nas(workplace, "front", "second", "--all", "--json").stdout)
        texts = [row["architecture"] for row in rows if row["state"] == "complete"]
        assert texts[0] == front[0] and [t for t in texts if t in front] == front
        assert len(texts) == len(set(texts))


def test_a_front_outside_the_space_cannot_be_begun_with(workplace, monkeypatch, capsys):
    in_folder(workplace, monkeypatch)
    flags = ["--name", "third", "--from", "tones", "--space", "small"]
    assert main(["search", "tones.toml", *flags]) == 2
    error = capsys.readouterr().err
    assert "--from tones: none of the" in error and "search space 'small'" in error


@pytest.mark.slow
def test_a_search_ends_within_a_minute_of_its_time_though_a_trial_would_take_hours(
    workplace, tmp_path
):
    study = copy_of(workplace, tmp_path) / "tones.toml"
    study.write_text(STUDY.replace("epochs = 3", "epochs = 100000"))
    start = time.monotonic()
    done = nas(tmp_path, "search", "tones.toml", "--trials", "100", "--minutes", "0.1")
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - start < 60 + 6
    rows = json.loads(nas(tmp_path, "front", "tones", "--all", "--json").stdout)
    cut = [row for row in rows if row["state"] == "failed"]
    assert len(cut) == 2 and all(row["reason"] == "the search was ended" for row in cut)


@pytest.mark.slow
def test_a_search_by_time_ends_within_a_minute_of_it_with_its_front_timed_together(
    workplace, tmp_path, monkeypatch
):
    folder, start = copy_of(workplace, tmp_path), time.monotonic()
    in_folder(folder, monkeypatch)
    done = nas(folder, "search", "tones.toml", "--trials", "1000", "--minutes", "0.5")
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - start < 60 + 30
    assert "of the front together" in done.stderr
    record = load_study("tones")
    points = front(record.trials, record.inputs.size_kind, record.inputs.budget)
    times = [p.latency.latency_ms / p.latency.reference_ratio for p in points]
    assert times == pytest.approx([times[0]] * len(times))


@pytest.mark.parametrize(
    "flag, value, said",
    [
        ("--seed", "5", "seed was 0, now 5"),
        ("--budget-kb", "13", "budget.size_bytes was 12288, now 13312"),
        ("--max-mmacs", "5", "budget.macs was None, now 5000000"),
        ("--space", "small", "the choices of the search space are others"),
        ("--target", "host-all", "target was host, now host-all"),
    ],
)
def test_a_study_with_other_inputs_is_refused_and_the_difference_named(
    workplace, monkeypatch, capsys, flag, value, said
):
    in_folder(workplace, monkeypatch)
    assert main(["search", "tones.toml", flag, value]) == 2
    error = capsys.readouterr().err
    assert "study 'tones' exists with other inputs" in error and said in error
    assert error.count("\n") == 1


def test_kill_9_in_mid_search_loses_no_finished_trial(workplace, tmp_path):
    (tmp_path / "tones").symlink_to(workplace / "tones")
    (tmp_path / "tiny.toml").write_text(SPACE)
    command = [sys.executable, "-m", "nas", "search", "--data", "tones", "--space", "tiny.toml"]
    command += ["--name", "killed", "--trials", "8", "--budget-kb", "12", "--workers", "2"]
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(
            command, cwd=tmp_path, env=environment(workplace), stdout=log, stderr=log
        )
        wait_for(lambda: (tmp_path / "log").read_text().count("trial ") >= 2)
        workers = children(process.pid)
        assert len(workers) == 2
        process.send_signal(signal.SIGKILL)
        process.wait()
    before = finished(tmp_path)
    assert before
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))
    again = subprocess.run(command, cwd=tmp_path, env=environment(workplace), capture_output=True)
    assert again.returncode == 0
    after = finished(tmp_path)
    assert before.items() <= after.items()
    rows = json.loads(nas(tmp_path, "front", "killed", "--all", "--json").stdout)
    assert sum(row["state"] == "complete" for row in rows) == 8
    for row in rows:
        if row["state"] == "failed":
            assert "ended while this trial ran" in row["reason"]
        if row["state"] == "complete":
            assert (tmp_path / row["artifact"]).stat().st_size == row["file_bytes"]


def finished(folder: Path) -> dict[int, str]:
    """Result by trial number, straight from the database."""
    with sqlite3.connect(folder / "studies" / "killed" / "study.db") as database:
        rows = database.execute(
            "select number, value_json from trials join trial_user_attributes "
            "using (trial_id) where key = 'result' and state = 'COMPLETE'"
        )
        return dict(rows.fetchall())


def test_one_seed_gives_the_same_architectures_and_accuracies_again(workplace, tmp_path):
    outcomes = []
    for run in ("a", "b"):
        (tmp_path / run).mkdir()
        (tmp_path / run / "tones").symlink_to(workplace / "tones")
        (tmp_path / run / "tiny.toml").write_text(SPACE)
        (tmp_path / run / "tones.toml").write_text(STUDY)
        arguments = ["search", "tones.toml", "--trials", "14", "--workers", "1"]
        assert (
            subprocess.run(
                [sys.executable, "-m", "nas", *arguments],
                cwd=tmp_path / run,
                env=environment(workplace),
                capture_output=True,
            ).returncode
            == 0
        )
        rows = json.loads(nas(tmp_path / run, "front", "tones", "--all", "--json").stdout)
        outcomes.append([(r["architecture"], r["state"], r["accuracy"]) for r in rows])
    assert outcomes[0] == outcomes[1]


def test_from_python_the_same_functions_give_dataclasses(workplace, monkeypatch):
    import nas as package

    in_folder(workplace, monkeypatch)
    front = package.front("tones")
    rows = json.loads(nas(workplace, "front", "tones", "--json").stdout)
    assert [t.trial for t in front] == [r["trial"] for r in rows]
    result = package.evaluate(front[0].architecture, data="tones", epochs=2)
    assert result.file_bytes == pytest.approx(front[0].file_bytes, abs=100)
    assert 0 <= result.score.accuracy_low <= result.score.accuracy <= 1
    assert np.isclose(sum(map(sum, result.score.confusion)), len(load("tones").split("validation")))


def copy_of(workplace: Path, folder: Path) -> Path:
    """Another working folder with the same recordings, space and study file."""
    return working_folder(folder, workplace / "tones")


def start_search(folder: Path, workplace: Path, *flags: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "nas", "search", "tones.toml", *flags],
        cwd=folder,
        env=environment(workplace),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_end_with_130_keep_what_is_finished_and_leave_no_process(
    workplace, tmp_path, sent
):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as for a script's background command
    process = start_search(copy_of(workplace, tmp_path), workplace)
    signal.signal(signal.SIGINT, before)
    wait_for(lambda: len(children(process.pid)) == 2)
    workers = children(process.pid)
    time.sleep(2)
    process.send_signal(sent)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err and err.endswith("every finished trial is kept\n")
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


def test_a_killed_worker_is_a_failed_trial_and_the_search_goes_on(workplace, tmp_path):
    process = start_search(copy_of(workplace, tmp_path), workplace, "--trials", "3")
    log = tmp_path / "studies" / "tones" / "workers.log"
    wait_for(lambda: log.exists() and len(children(process.pid)) == 2)
    os.kill(int(children(process.pid)[0]), signal.SIGKILL)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    rows = json.loads(nas(tmp_path, "front", "tones", "--all", "--json").stdout)
    reasons = [row["reason"] for row in rows if row["state"] == "failed"]
    assert len(reasons) == 1 and "killed" in reasons[0]
    assert sum(row["state"] == "complete" for row in rows) == 3


def test_a_trial_killed_between_storing_and_telling_its_result_is_not_lost(
    workplace, tmp_path, monkeypatch
):
    import shutil

    shutil.copytree(workplace / "studies", tmp_path / "studies")
    before = {t.trial: t for t in _trials(tmp_path, monkeypatch)}
    complete = max(n for n, t in before.items() if t.state == "complete")
    with sqlite3.connect(tmp_path / "studies" / "tones" / "study.db") as database:
        database.execute("update trials set state = 'RUNNING' where number = ?", (complete,))
        database.execute(
            "update trial_user_attributes set value_json = replace(value_json, "
            "'born', 'long_dead_born') where key = 'started'"
        )
    assert {t.trial: t for t in _trials(tmp_path, monkeypatch)} == before


def _trials(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(folder)
    return load_study("tones").trials


def test_a_study_file_may_name_its_database(workplace, tmp_path):
    folder = copy_of(workplace, tmp_path)
    url = f"sqlite:///{tmp_path}/own.db"
    study = (folder / "tones.toml").read_text().replace("[proxy]", f'storage = "{url}"\n\n[proxy]')
    (folder / "tones.toml").write_text(study)
    done = nas_in(folder, workplace, "search", "tones.toml", "--trials", "1")
    assert done.returncode == 0, done.stderr
    assert re.search(rf"\nNext: nas export tones --trial \d+ --storage {url}\n$", done.stdout)


def test_short_clips_are_searched_in_a_space_of_their_own(workplace, tmp_path):
    flags = ["--data", workplace / "tones", "--trials", "1", "--workers", "1", "--name", "own"]
    done = nas_in(tmp_path, workplace, "search", *map(str, flags))
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(nas(tmp_path, "front", "own", "--json").stdout)
    assert parse(row["architecture"]).front_end.hop in (160, 256)
    assert default_space(2.0) == "small"


def test_of_two_processes_that_start_the_same_at_once_the_first_goes_on(
    workplace, tmp_path, monkeypatch
):
    monkeypatch.chdir(workplace)
    known = load_study("tones")
    monkeypatch.chdir(copy_of(workplace, tmp_path))
    study = open_study("tones", None, known.inputs, lambda said: None)
    trial = ask(study, 0)  # this process has asked, but not chosen yet
    process = start_search(tmp_path, workplace, "--trials", "8", "--workers", "1")
    wait_for(lambda: len(study.get_trials()) > 1)
    first = min(known.trials, key=lambda t: t.trial)
    start(trial, first.architecture, first.training)
    wait_for(lambda: look(study)[0])
    withdraw(study, trial)
    assert process.wait(timeout=200) == 0
    _, again, *others = load_study("tones").trials
    assert (again.architecture, again.state) == (first.architecture, "repeated")
    assert again.reason == "trial 0 is running it"
    # What the first was running came to nothing, so the search tries it after all.
    assert first.architecture in {t.architecture for t in others if t.state == "complete"}


def test_an_exhausted_space_ends_with_what_it_holds(workplace, tmp_path, monkeypatch):
    folder = copy_of(workplace, tmp_path)
    narrow = SPACE.replace("[4, 8, 16]", "[4]").replace("[8, 16, 24, 512]", "[8]")
    narrow = narrow.replace('["ds", "ir"]', '["ds"]').replace(', "float16", "int8"', "")
    (folder / "tiny.toml").write_text(narrow)
    done = nas_in(folder, workplace, "search", "tones.toml", "--trials", "4")
    assert done.returncode == 0, done.stderr
    assert "seems exhausted" in done.stderr
    rows = json.loads(nas(folder, "front", "tones", "--all", "--json").stdout)
    assert [row["state"] for row in rows if row["state"] == "complete"] == ["complete"]
    assert len(rows) < 20, "all that the space holds was known, and proposals went on"

    # What int8 broke is known as well: it would break again.
    (row,) = [row for row in rows if row["state"] == "complete"]
    monkeypatch.chdir(folder)
    record_ = load_study("tones")
    (made,) = [trial for trial in record_.trials if trial.trial == row["trial"]]
    broken = msgspec.structs.replace(made, state="failed", reason="int8 broke it", score=None)
    other = copy_of(workplace, tmp_path / "other")
    (other / "tiny.toml").write_text(narrow)
    monkeypatch.chdir(other)
    study = open_study("tones", None, record_.inputs, lambda said: None)
    record(study, ask(study, 0), broken, record_.inputs)
    done = nas_in(other, workplace, "search", "tones.toml", "--trials", "4")
    assert done.returncode == 0 and "seems exhausted" in done.stderr, done.stderr
    states = {trial.state for trial in load_study("tones").trials}
    assert states == {"failed", "repeated"}


def test_a_space_may_search_the_augmentation_and_export_trains_by_what_was_found(
    workplace, tmp_path
):
    folder = copy_of(workplace, tmp_path)
    one = SPACE.replace("[4, 8, 16]", "[4]").replace("[8, 16, 24, 512]", "[8]")
    one = one.replace('["ds", "ir"]', '["ds"]').replace(', "float16", "int8"', "")
    (folder / "tiny.toml").write_text(
        one + "[training]\ngain = [0.0, 2.5]\nfrequency_mask = [0, 4]\nmixup = [0.2]\n"
    )
    done = nas_in(folder, workplace, "search", "tones.toml", "--trials", "5")
    assert done.returncode == 0, done.stderr
    rows = json.loads(nas(folder, "front", "tones", "--all", "--json").stdout)
    complete = [row for row in rows if row["state"] == "complete"]
    assert {row["training"] for row in complete} == {
        f"mixup=0.2 gain={gain} frequency_mask={bands}" for gain in ("0", "2.5") for bands in (0, 4)
    }
    assert len(complete) == 4
    first = {row["training"]: row["trial"] for row in reversed(complete)}
    for row in rows:
        if row["state"] == "repeated" and row["accuracy"] is not None:
            assert row["reason"] == f"same architecture as trial {first[row['training']]}"
    trial = first["mixup=0.2 gain=2.5 frequency_mask=0"]
    done = nas_in(
        folder, workplace, "export", "tones", "--trial", f"{trial}", "--epochs", "2", "--out", "x"
    )
    assert done.returncode == 0, done.stderr
    recipe = (folder / "x" / "README.md").read_text()
    assert '"mixup": 0.2, "gain": 2.5, "frequency_mask": 0,' in recipe


def nas_in(folder: Path, workplace: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "nas", *arguments]
    return subprocess.run(
        command,
        cwd=folder,
        env=environment(workplace),
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_a_search_from_a_script_without_a_main_guard_works(workplace, tmp_path):
    folder = copy_of(workplace, tmp_path)
    (folder / "script.py").write_text(
        "import nas\n"
        "record = nas.search('tones.toml', trials=1, workers=1)\n"
        "print([t.state for t in record.trials if t.state != 'infeasible'])\n"
    )
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=folder,
        env=environment(workplace),
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.stdout == "['complete']\n", done.stderr


def test_a_target_of_ones_own_is_frozen_in_the_study_and_exports(workplace, tmp_path):
    folder = copy_of(workplace, tmp_path)
    own = (Path(__file__).parents[1] / "targets" / "host.toml").read_text()
    (folder / "mine.toml").write_text(own.replace('name = "host"', 'name = "mine"'))
    flags = ["--target", "mine.toml", "--trials", "1"]
    assert nas_in(folder, workplace, "search", "tones.toml", *flags).returncode == 0
    (folder / "mine.toml").unlink()
    done = nas_in(folder, workplace, "export", "tones", "--out", "bundle", "--epochs", "1")
    assert done.returncode == 0, done.stderr
    assert nas_in(folder, workplace, "report", "tones").returncode == 0
    page = (folder / "studies" / "tones" / "report.html").read_text()
    assert re.search(r"On the test split trial \d+ scored", page)
    missed = ["export", "tones", "--max-kb", "0.1"]
    assert "no network within 0.1 KB" in nas_in(folder, workplace, *missed).stderr


@pytest.mark.filterwarnings("ignore")  # Optuna's, for what the search uses of it
def test_a_network_over_the_latency_limit_is_timed_and_refused_before_it_is_trained(
    workplace, tmp_path, monkeypatch, capsys
):
    in_folder(workplace, monkeypatch)
    monkeypatch.setattr("nas.engine.MOST_SLOW_IN_A_ROW", 2)
    flags = ["--name", "hurry", "--workers", "1", "--max-latency-ms", "0.0001"]
    assert main(["search", "tones.toml", *flags]) == 2
    said = capsys.readouterr().err
    assert "the last 2 networks are all slower than --max-latency-ms 0.0001" in said
    trials = [t for t in load_study("hurry").trials if t.latency]
    assert len(trials) == 2 and {t.state for t in trials} == {"infeasible"}
    for trial in trials:
        assert re.fullmatch(r"measured [\d.]+ ms before training, over 0.0001 ms", trial.reason)
        assert trial.seconds_training == 0 and trial.score is None
    assert main(["front", "hurry", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    assert main(["export", "hurry"]) == 2


def test_the_front_is_timed_again_together_once_and_keeps_those_times(workplace, monkeypatch):
    in_folder(workplace, monkeypatch)
    record = load_study("tones")
    points = front(record.trials, record.inputs.size_kind, record.inputs.budget)
    assert points
    for point in points:
        reference = point.latency.latency_ms / point.latency.reference_ratio
        first = points[0].latency
        assert reference == pytest.approx(first.latency_ms / first.reference_ratio)
    again = nas(workplace, "search", "tones.toml")
    assert again.returncode == 0 and "together" not in again.stderr
    assert [r.latency for r in load_study("tones").trials] == [r.latency for r in record.trials]


def test_a_device_that_is_not_at_hand_gives_no_latency_and_meets_no_limit(workplace, monkeypatch):
    in_folder(workplace, monkeypatch)
    target = ["--name", "far", "--target", "raspberry-pi-4", "--trials", "1"]
    limited = nas(workplace, "search", "tones.toml", *target, "--max-latency-ms", "5")
    assert limited.returncode == 2
    assert "no device of target 'raspberry-pi-4' is at hand" in limited.stderr
    assert nas(workplace, "search", "tones.toml", *target).returncode == 0
    rows = json.loads(nas(workplace, "front", "far", "--json").stdout)
    assert [(row["latency_ms"], row["latency_kind"]) for row in rows] == [(None, "none")]
    page = (workplace / "studies" / "far" / "report.html").read_text()
    assert "raspberry-pi-4" in page


def test_a_published_network_that_was_evaluated_is_a_mark_on_the_page(workplace):
    flags = ["--data", "tones", "--epochs", "1", "--json"]
    done = nas(workplace, "evaluate", "dscnn-mlperf-tiny", *flags)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures.keys() >= CONTRACT - {"trial"} and Path(figures["artifact"]).name
    assert figures["class_accuracy"].keys() == {"high", "low", "mid"}
    assert sum(map(sum, figures["confusion"])) == 12
    assert nas(workplace, "report", "tones").returncode == 0
    page = (workplace / "studies" / "tones" / "report.html").read_text()
    assert "dscnn-mlperf-tiny" in page and "Trained here for 1 epochs" in page
    # one whose quantisation broke has no accuracy and is no mark
    (made,) = [
        p for p in (workplace / "studies/evaluated").glob("*.json") if "mlperf" in p.read_text()
    ]
    broken = json.loads(made.read_text()) | {"name": "dscnn-s"}
    broken["result"] |= {"state": "failed", "reason": "int8 broke it"}
    del broken["result"]["score"]
    (made.parent / "broken.json").write_text(json.dumps(broken))
    assert nas(workplace, "report", "tones").returncode == 0
    again = (workplace / "studies" / "tones" / "report.html").read_text()
    assert again.count("Trained here for 1 epochs") == page.count("Trained here for 1 epochs")


def test_an_evaluation_shows_each_class_group_and_device_the_worst_first(workplace, tmp_path):
    folder = copy_of(workplace, tmp_path)
    names = sorted(path.relative_to(folder / "tones") for path in folder.glob("tones/*/*.wav"))
    rows = [
        f"{name},{name.parent},speaker{i % 20},{'ab'[i % 2]},lyon" for i, name in enumerate(names)
    ]
    manifest = folder / "tones" / "all.csv"
    manifest.write_text("\n".join(["filename,label,group,device,city", *rows]))
    network = "conv_n1_k3x3_s2x2_c8_relu_q0_g0_p0/gap_c0_p0/float32"
    done = nas_in(
        folder,
        workplace,
        "evaluate",
        f"logmel_r8000_t0.5_f256_w256_h128_m20_d0_c1/{network}",
        "--data",
        "tones/all.csv",
        "--epochs",
        "2",
    )
    assert done.returncode == 0, done.stderr
    tables = done.stdout.split("\naccuracy by ")[1:]
    assert [table.split()[0] for table in tables] == ["class", "group", "device", "city"]
    for table, count in zip(tables, (3, 4, 2, 1), strict=True):
        lines = table.splitlines()[1:]
        shares = [float(line.split()[1]) for line in lines]
        assert len(lines) == count
        assert shares == sorted(shares)


def test_a_live_page_is_written_again_until_interrupted(workplace):
    page = workplace / "studies" / "tones" / "report.html"
    process = subprocess.Popen(
        [sys.executable, "-m", "nas", "report", "tones", "--live"],
        cwd=workplace,
        env=environment(workplace),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline().strip().endswith("report.html")
    first = page.stat().st_mtime_ns
    assert re.search(r"\"refresh_s\": ?10\b", page.read_text())
    wait_for(lambda: page.stat().st_mtime_ns > first)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130


def test_two_studies_are_compared_on_one_page(workplace, tmp_path):
    flags = ["--name", "again", "--trials", "1", "--seed", "3"]
    assert nas(workplace, "search", "tones.toml", *flags).returncode == 0
    done = nas(workplace, "report", "tones", "again")
    assert done.returncode == 0, done.stderr
    page = (workplace / "studies" / "tones" / "report.html").read_text()
    assert "again" in page and "tones" in page


def test_optuna_dashboard_opens_a_study(workplace):
    pytest.importorskip("optuna_dashboard", reason="needs optuna-dashboard (extra 'dashboard')")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    storage = f"sqlite:///{workplace / 'studies' / 'tones' / 'study.db'}"
    script = Path(sys.executable).with_name("optuna-dashboard")
    server = subprocess.Popen(
        [script, storage, "--host", "127.0.0.1", "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        found: list[str] = []

        def answered() -> bool:
            with contextlib.suppress(OSError):
                url = f"http://127.0.0.1:{port}/api/studies"
                with urllib.request.urlopen(url, timeout=5) as answer:
                    found.extend(s["study_name"] for s in json.load(answer)["study_summaries"])
            return bool(found)

        wait_for(answered)
        assert found == ["tones"]
    finally:
        server.terminate()
        server.wait()
