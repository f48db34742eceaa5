"""An exported bundle is whole, true to its figures, and runs without this package."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import onnxruntime
import pytest
import soundfile
import soxr
import torch

import nas
from nas import api, features, pipeline
from nas.arch import parse
from nas.bundle import export
from nas.cost import estimate
from nas.dataset import load
from nas.errors import UserError
from nas.firmware import missing_tools
from nas.measure import EXACT, logits
from nas.pipeline import Job, evaluate_architecture
from nas.record import Budget, Proxy, StudyInputs, StudyRecord, in_full
from nas.score import score
from nas.shipped import load_target

RATE_HZ = 8000
INT8 = "int8_channel_none"
ARCHITECTURE = (
    f"logmel_r{RATE_HZ}_t0.5_f256_w256_h128_m20_d0_c1"
    "/conv_n1_k3x3_s2x2_c8_relu_q0_g0_p0/ds_n1_k3x3_s2x2_c16_relu_q0_g0_p0/gap_c0_p0"
    f"/{INT8}"
)
TONES_HZ = {"high": 2500, "low": 300, "mid": 900}
PROXY = Proxy(epochs=6, batch=8)
PREDICT = Path(nas.__file__).parent / "assets" / "bundle" / "predict.py"


def write_tones(root: Path, seconds: list[float]) -> Path:
    """Ten noisy tones per class, of these lengths in turn; speakers a to e hold two each."""
    random = np.random.default_rng(0)
    lines = ["filename,label,group"]
    for label, hz in TONES_HZ.items():
        for i in range(10):
            time = np.arange(round(seconds[i % len(seconds)] * RATE_HZ)) / RATE_HZ
            tone = np.sin(2 * np.pi * hz * random.uniform(0.8, 1.25) * time)
            audio = 0.3 * tone + random.normal(0, 0.05, len(time))
            name = f"{label}-{i}.wav"
            root.mkdir(exist_ok=True, parents=True)
            soundfile.write(root / name, audio, RATE_HZ)
            lines.append(f"{name},{label},{'abcde'[i // 2]}")
    (root / "clips.csv").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """(record of one trial, that trial, job): a real trial on tones, through the pipeline."""
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NAS_CACHE", str(folder / "cache"))
        dataset = load(write_tones(folder / "tones", [0.5, 0.2, 1.3, 0.58, 0.53]))
        job = Job(dataset, load_target("host"), PROXY)
        result = evaluate_architecture(parse(ARCHITECTURE), job, 5, str(folder / "00002"))
        result = msgspec.structs.replace(result, trial=2)
        inputs = StudyInputs(
            data=str(dataset.root),
            data_fingerprint=dataset.fingerprint,
            data_note="",
            classes=list(dataset.classes),
            space_name="none",
            space="",
            target="host",
            profile=load_target("host"),
            size_kind="file_bytes",
            budget=Budget(size_bytes=64 * 1024),
            proxy=PROXY,
            seed=3,
        )
        yield StudyRecord("tones-study", inputs, [result]), result, job


@pytest.fixture(scope="module")
def bundle(study, tmp_path_factory):
    """(what export returned, the folder)."""
    out = tmp_path_factory.mktemp("out") / "bundle"
    return export(*study, out, epochs=25), out


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def predict(folder, *arguments, python=sys.executable):
    command = [python, "-I", folder / "predict.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_the_bundle_holds_what_was_returned_and_its_checksums_are_right(bundle):
    exported, out = bundle
    files = files_in(out)
    assert exported.out == str(out) and exported.files == sorted(files)
    listed = dict(reversed(line.split("  ")) for line in files["SHA256SUMS"].decode().splitlines())
    del files["SHA256SUMS"]
    assert listed == {n: hashlib.sha256(content).hexdigest() for n, content in files.items()}
    assert exported.file_bytes == len(files["model.onnx"])
    assert files["architecture.txt"].decode().strip() == exported.architecture == ARCHITECTURE
    assert json.loads(files["labels.json"]) == list(TONES_HZ)


def test_validation_accuracy_is_that_of_the_shipped_file(bundle, study):
    exported, out = bundle
    _, result, job = study
    part = features.compute(job.dataset, parse(ARCHITECTURE).front_end).split("validation")
    outputs = logits((out / "model.onnx").read_bytes(), part.features)
    again = score(outputs, part.labels, part.recordings, part.clips, job.dataset.classes)
    assert exported.validation_accuracy == again.accuracy
    assert exported.promised_accuracy == result.score.accuracy


def test_test_accuracy_is_what_predict_reaches_on_the_test_recordings(bundle, study):
    exported, out = bundle
    dataset = study[2].dataset
    clips = dataset.split("test")
    done = predict(out, "--json", *[dataset.root / clip.path for clip in clips])
    answers = [document["label"] for document in json.loads(done.stdout)]
    right = [answer == clip.label for answer, clip in zip(answers, clips, strict=True)]
    assert len(set(answers)) > 1
    assert np.mean(right) == pytest.approx(exported.test_accuracy)  # the classes are balanced
    assert exported.test_accuracy_low <= exported.test_accuracy <= exported.test_accuracy_high


def test_front_end_settings_and_normalisation_are_enough_to_make_the_features(bundle, study):
    dataset = study[2].dataset
    told = json.loads((bundle[1] / "frontend.json").read_text())
    found = features.compute(dataset, parse(ARCHITECTURE).front_end)
    assert told["shape"] == [1, 20, 32] and told["fft"] == 256 and told["samples"] == 4000
    np.testing.assert_array_equal(np.float32(told["mean"]), found.mean)
    np.testing.assert_array_equal(np.float32(told["std"]), found.std)


def test_the_model_card_states_figures_classes_and_the_command_that_rebuilds_it(bundle, study):
    exported, out = bundle
    text = (out / "README.md").read_text()
    assert "$" not in text and "None" not in text
    for name in TONES_HZ:
        assert f"| {name} |" in text
    for accuracy in (exported.test_accuracy, exported.validation_accuracy):
        assert f"{100 * accuracy:.1f} %" in text
    assert "nas export tones-study --trial 2 --epochs 25" in text
    assert (out / "confusion.svg").read_text().count("<rect") == 1 + 3 * 3


def test_the_same_seed_gives_the_same_network_and_so_does_evaluate(study, bundle, tmp_path):
    record, result, job = study
    again = tmp_path / "again"
    export(record, result, job, again, epochs=25)
    assert (again / "model.onnx").read_bytes() == (bundle[1] / "model.onnx").read_bytes()
    torch.set_num_threads(1)
    recipe = in_full(PROXY, 25)
    longer = evaluate_architecture(
        parse(ARCHITECTURE), replace(job, proxy=recipe), 5, str(tmp_path / "x"), in_full=True
    )
    assert Path(longer.artifact).read_bytes() == (again / "model.onnx").read_bytes()


def test_the_card_of_a_default_recipe_has_a_command_that_needs_no_study(
    study, tmp_path, monkeypatch
):
    record, result, job = study
    job = replace(job, proxy=Proxy(epochs=1))
    export(record, result, job, tmp_path / "out", epochs=2)
    text = (tmp_path / "out" / "README.md").read_text()
    command = shlex.split(re.search("^    (nas evaluate .+)$", text, re.MULTILINE)[1])
    flags = dict(zip(command[3::2], command[4::2], strict=True))
    assert flags["--data"] == f"PATH/TO/{job.dataset.name}"
    monkeypatch.chdir(tmp_path)
    rebuilt = api.evaluate(
        command[2],
        data=str(job.dataset.root),
        target=flags["--target"],
        epochs=int(flags["--epochs"]),
        seed=int(flags["--seed"]),
    )
    assert Path(rebuilt.artifact).read_bytes() == (tmp_path / "out" / "model.onnx").read_bytes()


def test_the_card_s_commands_name_a_target_of_the_user_s_own_and_the_database(study, tmp_path):
    record, result, job = study
    inputs = msgspec.structs.replace(record.inputs, target="our-board")
    url = "postgresql://me:***@server/nas"
    record = msgspec.structs.replace(record, inputs=inputs, storage=url)
    export(record, result, replace(job, proxy=Proxy(epochs=1)), tmp_path / "out", epochs=1)
    text = (tmp_path / "out" / "README.md").read_text()
    assert "--target PATH/TO/our-board.toml " in text
    assert f"nas export tones-study --trial 2 --epochs 1 --storage '{url}'\n" in text


def test_without_retraining_the_trials_own_artefact_ships(study, tmp_path):
    record, result, job = study
    exported = export(record, result, job, tmp_path / "out", retrain=False)
    assert (tmp_path / "out" / "model.onnx").read_bytes() == Path(result.artifact).read_bytes()
    assert exported.validation_accuracy == exported.promised_accuracy
    assert "--trial 2 --no-retrain" in (tmp_path / "out" / "README.md").read_text()


def test_the_card_says_that_recordings_are_synthetic_and_whether_their_groups_leak(study, tmp_path):
    record, result, job = study
    sides = {"one side": lambda clip: clip.split, "two sides": lambda clip: "the same"}
    for name, group in sides.items():
        clips = tuple(replace(clip, group=group(clip)) for clip in job.dataset.clips)
        dataset = replace(job.dataset, clips=clips, note="Made by a machine.")
        export(record, result, replace(job, dataset=dataset), tmp_path / name, retrain=False)
        text = (tmp_path / name / "README.md").read_text()
        assert "**Made by a machine.**" in text
        assert ("3 groups, none of them in two splits" in text) == (name == "one side")
        assert ("1 groups, 1 of them in more than one split" in text) == (name == "two sides")


def test_limits_of_a_target_are_held_against_what_was_measured(study, tmp_path):
    record, result, job = study
    limits = msgspec.structs.replace(load_target("host").limits, size_bytes=10**6, latency_ms=1000)
    profile = msgspec.structs.replace(load_target("host"), limits=limits)
    inputs = msgspec.structs.replace(record.inputs, profile=profile)
    record = msgspec.structs.replace(record, inputs=inputs)
    made = export(record, result, job, tmp_path / "out", retrain=False)
    text = (tmp_path / "out" / "README.md").read_text()
    assert f"bytes of the file | {made.file_bytes:,} | pass |" in text
    assert f"ms | {made.latency_ms:,} | pass |" in text


def test_every_fold_is_tested_once_by_a_network_trained_on_others(study, tmp_path):
    record, result, job = study
    exported = export(record, result, job, tmp_path / "out", epochs=5, cross_validate=True)
    text = (tmp_path / "out" / "README.md").read_text()
    folds = dict(re.findall(r"\b([a-e]) ([\d.]+) %", text.split("By fold: ")[1]))
    assert list(folds) == list(job.dataset.folds) == list("abcde")
    # six recordings in each fold, classes balanced
    assert exported.folds_accuracy == pytest.approx(
        np.mean([float(share) for share in folds.values()]) / 100, abs=1e-3
    )
    assert float(folds["e"]) == pytest.approx(100 * exported.test_accuracy, abs=0.06)
    assert exported.folds_accuracy_low <= exported.folds_accuracy <= exported.folds_accuracy_high
    assert "--epochs 5 --cross-validate" in text


def test_a_fixed_split_has_no_folds_to_validate_across(study, tmp_path):
    record, result, job = study
    fixed = replace(job, dataset=replace(job.dataset, folds=()))
    with pytest.raises(UserError, match="no folds to validate across"):
        export(record, result, fixed, tmp_path / "out", cross_validate=True)
    assert not (tmp_path / "out").exists()


def test_a_network_with_the_weights_of_another_trial_is_trained_by_that_ones_seed(study, tmp_path):
    record, result, job = study
    taken = msgspec.structs.replace(result, trial=9, weights_of=result.trial)
    export(record, result, job, tmp_path / "own", epochs=2)
    export(record, taken, job, tmp_path / "taken", epochs=2)
    files = [(tmp_path / name / "model.onnx").read_bytes() for name in ("own", "taken")]
    assert files[0] == files[1]


WIDER = ARCHITECTURE.replace("c8_relu", "c16_relu").replace("c16_relu_q0", "c48_relu_q0")


def test_larger_networks_of_the_study_teach_the_one_that_ships_if_that_is_better(
    study, tmp_path, monkeypatch
):
    record, result, job = study
    in_float = msgspec.structs.replace(
        result, trial=6, architecture=ARCHITECTURE.replace(INT8, "float32"), file_bytes=10**6
    )
    larger = msgspec.structs.replace(
        result, trial=7, architecture=WIDER, cost=estimate(parse(WIDER), len(TONES_HZ))
    )
    record = msgspec.structs.replace(record, trials=[result, in_float, larger])
    plain = export(record, result, job, tmp_path / "plain", epochs=6)
    taught = export(record, result, job, tmp_path / "taught", epochs=6, distill=True)
    assert taught.validation_accuracy >= plain.validation_accuracy
    models = [(tmp_path / name / "model.onnx").read_bytes() for name in ("plain", "taught")]
    assert (models[0] != models[1]) == taught.distilled
    text = (tmp_path / "taught" / "README.md").read_text()
    assert "(trials 7, trained in full)" in text and "--epochs 6 --distill" in text
    assert ("is no better" in " ".join(text.split())) == (not taught.distilled)
    # Whatever is better here: one that is preferred is another network, and the card says so.
    monkeypatch.setattr(pipeline, "_quality", lambda made, *_: (made.distilled, 0.0))
    preferred = export(record, result, job, tmp_path / "preferred", epochs=6, distill=True)
    assert preferred.distilled
    assert (tmp_path / "preferred" / "model.onnx").read_bytes() != models[0]
    assert "is better and ships" in (tmp_path / "preferred" / "README.md").read_text()
    with pytest.raises(UserError, match="no network larger than that of trial 7 to learn from"):
        export(record, larger, job, tmp_path / "none", distill=True)
    assert not (tmp_path / "none").exists()


@pytest.mark.skipif(not shutil.which("gcc") or not shutil.which("make"), reason="needs gcc, make")
def test_a_bundle_for_a_microcontroller_has_c_that_agrees_with_its_golden_vectors(study, tmp_path):
    record, result, job = study
    job, out = replace(job, target=load_target("stm32f746zg")), tmp_path / "out"
    exported = export(record, result, job, out, retrain=False)
    assert {"c/Makefile", "c/classifier.h", "c/golden.h", "c/network.c"} < set(exported.files)
    copy = shutil.copytree(out / "c", tmp_path / "copy")
    done = subprocess.run(["make", "-s"], cwd=copy, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    figures = dict(line.split() for line in done.stdout.splitlines())
    clips = figures["clips"]
    assert int(clips) > 1
    assert figures["equal_labels"] == figures["equal_logits"] == clips
    assert figures["equal_features"] == figures["equal_waveform_labels"] == clips
    text = (out / "README.md").read_text()
    ran = f"| labels equal to ONNX Runtime's | {clips} of {clips} | {clips} of {clips} |"
    assert (ran in text) == (not missing_tools()) and "## On a microcontroller" in text
    export(record, result, job, out, retrain=False)  # takes the place of the first
    (out / "c" / "network.c").write_text("mine")
    with pytest.raises(UserError, match="holds 'c/network.c', which no export wrote or"):
        export(record, result, job, out, retrain=False)


def test_what_has_no_c_is_refused_before_it_is_trained(study, tmp_path):
    record, result, job = study
    job = replace(job, target=load_target("stm32f746zg"))
    half = msgspec.structs.replace(result, architecture=ARCHITECTURE.replace(INT8, "float16"))
    with pytest.raises(UserError, match="needs an int8 network, this one is float16"):
        export(record, half, job, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


# the folder


def test_an_earlier_bundle_is_replaced_as_a_whole_and_an_empty_folder_is_filled(study, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    first = export(*study, out, retrain=False)
    second = export(*study, out, epochs=1)
    assert first.files == second.files == sorted(files_in(out))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def spoil_with_a_note(out):
    (out / "notes.txt").write_text("mine")


def spoil_by_a_change(out):
    (out / "README.md").write_text("my own card")


def spoil_with_a_folder(out):
    (out / "more").mkdir()


def spoil_the_list(out):
    (out / "SHA256SUMS").unlink()


@pytest.mark.parametrize(
    "spoil", [spoil_with_a_note, spoil_by_a_change, spoil_with_a_folder, spoil_the_list]
)
def test_a_bundle_that_someone_has_worked_on_is_left_alone(spoil, study, bundle, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    for name, content in files_in(bundle[1]).items():
        (out / name).write_bytes(content)
    spoil(out)
    before = sorted(out.iterdir())
    record, result, job = study
    unready = msgspec.structs.replace(result, score=None)  # the folder is looked at first
    with pytest.raises(UserError, match="give another folder with --out"):
        export(record, unready, job, out)
    assert sorted(out.iterdir()) == before


def test_a_foreign_folder_with_correct_checksums_of_its_own_is_left_alone(study, tmp_path):
    (tmp_path / "data.csv").write_text("1,2")
    digest = hashlib.sha256(b"1,2").hexdigest()
    (tmp_path / "SHA256SUMS").write_text(f"{digest}  data.csv\n")
    with pytest.raises(UserError, match="which no export wrote"):
        export(*study, tmp_path, retrain=False)
    assert len(files_in(tmp_path)) == 2


def test_a_file_in_the_place_of_the_folder_or_above_it_is_refused(study, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="is a file"):
        export(*study, tmp_path / "file", retrain=False)
    with pytest.raises(UserError, match="cannot write the bundle"):
        export(*study, tmp_path / "file" / "out", retrain=False)
    assert (tmp_path / "file").read_text() == "mine"
    for out in (tmp_path / ("x" * 300), Path("~nobody-of-that-name/out")):
        with pytest.raises(UserError, match="cannot write the bundle"):
            export(*study, out, retrain=False)


def test_an_export_that_is_cut_off_while_it_is_written_leaves_the_earlier_one(
    study, tmp_path, monkeypatch
):
    export(*study, tmp_path / "out", retrain=False)
    before = files_in(tmp_path / "out")

    def interrupt():
        assert files_in(tmp_path / "out") == before, (
            "a kill at this moment would lose the earlier one"
        )
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os, "sync", interrupt)  # slow, and the last step before names change
        with pytest.raises(KeyboardInterrupt):
            export(*study, tmp_path / "out", retrain=False)
    assert files_in(tmp_path / "out") == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_failed_export_leaves_nothing_behind(study, tmp_path):
    record, result, job = study
    gone = msgspec.structs.replace(result, artifact=str(tmp_path / "gone.onnx"))
    with pytest.raises(UserError, match=r"trial 2 cannot be read.*without --no-retrain"):
        export(record, gone, job, tmp_path / "a", retrain=False)
    running = msgspec.structs.replace(result, score=None, state="failed")
    with pytest.raises(UserError, match="trial 2 is failed"):
        export(record, running, job, tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_outgrows_a_limit_in_retraining_is_refused(study, tmp_path):
    record, result, job = study
    small = msgspec.structs.replace(result, file_bytes=1000)
    with pytest.raises(UserError, match="over the limit of 1 KB"):
        export(record, small, job, tmp_path / "out", epochs=1, most_kb=1)
    inputs = msgspec.structs.replace(record.inputs, budget=Budget(size_bytes=1024))
    record = msgspec.structs.replace(record, inputs=inputs)
    with pytest.raises(UserError, match="over the limit of 1 KB"):
        export(record, small, job, tmp_path / "out", epochs=1)
    assert list(tmp_path.iterdir()) == []


# predict.py


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory):
    """The python of a virtual environment with the packages of requirements.txt and no others."""
    folder = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    packages = next(folder.glob("lib/python*/site-packages"))
    for name in needed({"numpy", "onnxruntime", "soundfile"}):
        link(importlib.metadata.distribution(name), packages)
    return folder / "bin" / "python"


def needed(names: set[str]) -> set[str]:
    """These distributions and all that they require, without extras."""
    found = set(names)
    for name in names:
        lines = importlib.metadata.requires(name) or []
        required = {re.match(r"[\w.-]+", line)[0] for line in lines if "extra ==" not in line}
        found |= needed(required - found)
    return found


def link(distribution, packages: Path) -> None:
    tops = {Path(file).parts[0] for file in distribution.files} - {"..", "__pycache__"}
    for top in tops:
        if not (packages / top).exists():
            (packages / top).symlink_to(distribution.locate_file(top))


def test_predict_runs_with_the_required_packages_alone(bundle, study, bare_python):
    dataset = study[2].dataset
    lacking = "import sys; sys.exit(any(map(__import__('importlib.util').util.find_spec, "
    lacking += "['torch', 'nas', 'onnx', 'soxr', 'scipy'])))"
    subprocess.run([bare_python, "-I", "-c", lacking], check=True)
    done = predict(bundle[1], dataset.root / "low-0.wav", python=bare_python)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r".*low-0\.wav: (high|low|mid) \(\d+ %\)\n", done.stdout)


def test_predict_takes_folders_names_several_labels_and_answers_the_same_in_json(bundle, study):
    root = study[2].dataset.root
    lines = predict(bundle[1], "--top", "3", root).stdout.splitlines()
    documents = json.loads(predict(bundle[1], "--top", "3", "--json", root).stdout)
    assert len(lines) == len(documents) == 30
    for line, document in zip(lines, documents, strict=True):
        top = document["top"]
        named = ", ".join(f"{t['label']} ({t['probability']:.0%})".replace("%", " %") for t in top)
        assert line == f"{document['path']}: {named}"
        assert sum(t["probability"] for t in top) == pytest.approx(1, abs=1e-5)
        assert document["label"] == top[0]["label"]


def test_predict_follows_a_stream_of_raw_samples(bundle, study, bare_python):
    dataset = study[2].dataset
    audio, _ = soundfile.read(dataset.root / "low-2.wav", dtype="float32")  # 1.3 s of clips of 0.5
    command = [bare_python, "-I", bundle[1] / "predict.py", "--stream"]
    done = subprocess.run(command, input=audio.astype("<f4").tobytes(), capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    lines = done.stdout.decode().splitlines()
    assert [line.split(" s: ")[0] for line in lines] == ["0.50", "0.75", "1.00", "1.25", "1.30"]
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry(*EXACT)
    session = onnxruntime.InferenceSession(bundle[1] / "classifier.onnx", options)
    window = audio[: RATE_HZ // 2][None]
    (answers,) = session.run(["probabilities"], {"waveform": window})
    label = list(TONES_HZ)[answers[0].argmax()]
    assert lines[0] == f"0.50 s: {label} ({answers.max():.0%})".replace("%", " %")
    short, silent = audio[:1000].astype("<f4").tobytes(), b""
    done = subprocess.run(command, input=short, capture_output=True)
    assert done.stdout.startswith(b"0.12 s: ") and done.stdout.count(b"\n") == 1
    done = subprocess.run(command, input=silent, capture_output=True)
    assert (done.returncode, done.stderr) == (2, b"predict.py: the stream holds no samples\n")


def test_predict_names_a_bad_file_and_goes_on(bundle, study, tmp_path):
    (tmp_path / "bad.wav").write_text("no audio")
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), RATE_HZ)
    (tmp_path / "samples.raw").write_bytes(bytes(1000))
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 2 * RATE_HZ)
    soundfile.write(tmp_path / "whole.mp3", noise, RATE_HZ)
    whole = (tmp_path / "whole.mp3").read_bytes()
    (tmp_path / "cut.mp3").write_bytes(whole[: len(whole) // 2])
    noise[9] = np.nan
    soundfile.write(tmp_path / "nan.wav", noise, RATE_HZ, subtype="FLOAT")
    good = study[2].dataset.root / "low-0.wav"
    names = ["bad.wav", "empty.wav", "no", "samples.raw", "cut.mp3", "nan.wav"]
    done = predict(bundle[1], *(tmp_path / name for name in names), good, tmp_path / "whole.mp3")
    assert done.returncode == 2 and done.stdout.count("\n") == 2
    assert done.stdout.startswith(f"{good}: ")
    for name in names:
        assert f"{tmp_path / name}: cannot be read as audio" in done.stderr
    assert "is truncated" in done.stderr and "holds NaN" in done.stderr
    assert "Traceback" not in done.stderr


def test_predict_says_that_a_folder_holds_no_audio_and_passes_over_hidden_files(bundle, tmp_path):
    (tmp_path / "._low.wav").write_text("what macOS leaves beside a file")
    done = predict(bundle[1], tmp_path)
    assert (done.returncode, done.stderr) == (2, f"predict.py: no audio files in {tmp_path}\n")


def test_predict_says_what_it_needs(bundle, bare_python, tmp_path):
    heard = predict(bundle[1], "--microphone", python=bare_python)
    assert heard.returncode == 2 and "pip install sounddevice" in heard.stderr
    nothing = predict(bundle[1])
    assert nothing.returncode == 2 and "give recordings, or --microphone" in nothing.stderr
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path], check=True)
    empty = predict(bundle[1], "x.wav", python=tmp_path / "bin" / "python")
    assert empty.returncode == 1 and "pip install -r requirements.txt" in empty.stderr


@pytest.fixture(scope="module")
def program():
    """predict.py as a module."""
    spec = importlib.util.spec_from_file_location("predict", PREDICT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_predict_cuts_and_repeats_recordings_as_the_features_do(program, bundle, study):
    dataset = study[2].dataset
    classifier = program.Classifier(bundle[1] / "classifier.onnx")
    theirs = [w for clip in dataset.clips for w in classifier.windows(dataset.root / clip.path)]
    ours = features.waveforms(dataset, features.windows(dataset.clips, 0.5), RATE_HZ, 0.5)
    assert len(ours) > len(dataset.clips)
    np.testing.assert_array_equal(np.stack(theirs), ours)


@pytest.mark.parametrize("rates", [(44100, 16000), (8000, 16000), (48000, 44100), (11025, 8000)])
def test_the_resampler_of_predict_agrees_with_soxr(program, rates):
    random = np.random.default_rng(0)
    low = soxr.resample(random.standard_normal(4000), 0.8 * min(rates), rates[0])
    audio = low.astype(np.float32)
    ours, theirs = program.resample(audio, *rates), soxr.resample(audio, *rates)
    assert len(ours) == len(theirs)
    inner = slice(200, -200)
    assert np.abs(ours - theirs)[inner].max() < 0.01 * np.abs(theirs).max()


def test_the_resampler_of_predict_removes_what_the_lower_rate_cannot_hold(program):
    time = np.arange(44100) / 44100
    tone = np.sin(2 * np.pi * 9000 * time).astype(np.float32)
    assert np.abs(program.resample(tone, 44100, 16000)[200:-200]).max() < 1e-3
