"""The command line: quick help, one sentence and exit code 2 for bad input, clean stdout."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import soundfile
from tones import SPACE, write_tones

import nas
from nas.cli import main
from nas.published import published
from nas.shipped import names
from nas.space import load_space


@pytest.fixture(scope="module")
def tones(tmp_path_factory):
    return write_tones(tmp_path_factory.mktemp("data") / "tones")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch, tmp_path_factory):
    """Every test has a working folder of its own; the cache is shared."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NAS_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def sentence(capsys, arguments: list[str]) -> str:
    """What the command says when it ends with exit code 2: one line, and nothing on stdout."""
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("nas: ") and err.count("\n") == 1, err
    return err


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom nas.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'optuna', 'onnx', 'onnxruntime', 'nncf', 'plotly', 'numpy'}\n"
        "sys.exit(f'imported {heavy & set(sys.modules)}' if heavy & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "search" in done.stdout and "export" in done.stdout


@pytest.mark.parametrize("command", ["search", "front", "report", "export", "evaluate", "show"])
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert f"usage: nas {command}" in capsys.readouterr().out


def test_an_unknown_flag_is_exit_code_2(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["search", "--buget-kb", "3"])
    assert ended.value.code == 2
    assert "--buget-kb" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["search", "--data", "nowhere"], ["nowhere", "no such folder"]),
        (["search", "--space", "smal"], ["search space 'smal'", "did you mean 'small'?"]),
        (["search", "--target", "hots"], ["target 'hots'", "did you mean 'host'?"]),
        (["search", "demmo"], ["study 'demmo'", "did you mean 'demo'?"]),
        (["search", "--budget-kb", "-1"], ["--budget-kb is -1", "above 0"]),
        (["search", "--trials", "0"], ["--trials is 0", "above 0"]),
        (["search", "--name", "a/b"], ["--name is 'a/b'"]),
        (["search", "--name", ".."], ["--name is '..'"]),
        (["search", "--seed", "-1"], ["--seed is -1"]),
        (["search", "--budget-kb", "inf"], ["--budget-kb is inf"]),
        (["evaluate", "bcresnet-1", "--epochs", "0"], ["--epochs is 0"]),
        (["evaluate", "bcresnet-1", "--seed", "-1"], ["--seed is -1"]),
        (["evaluate", "bcresnet-1", "--clip-s", "0"], ["--clip-s is 0", "above 0"]),
        (["evaluate", "bcresnet-1", "--data", "x" * 300], ["x" * 300, "File name too long"]),
        (["export", "nothing", "--max-kb", "nan"], ["--max-kb is nan", "above 0"]),
        (["export", "nothing", "--epochs", "-1"], ["--epochs is -1"]),
        (["show", "bcresnet-1", "--quantization", "int4"], ["unknown quantisation 'int4'"]),
        (["front", "nothing"], ["no study 'nothing'"]),
        (["report", "nothing"], ["no study 'nothing'"]),
        (["export", "nothing"], ["no study 'nothing'"]),
        (["show", "bcresnet-9"], ["unknown architecture 'bcresnet-9'", "did you mean 'bcresnet-"]),
        (["show", "logmel/gap/int8/x"], ["part 1 'logmel'", "missing key"]),
        (["measure", "nothing.onnx"], ["nothing.onnx", "No such file"]),
        (["data"], ["needs a PATH"]),
        (["data", "nowhere"], ["nowhere", "no such folder"]),
    ],
)
def test_bad_input_gets_one_sentence(arguments, said, capsys):
    text = sentence(capsys, arguments)
    for part in said:
        assert part in text


@pytest.mark.parametrize(
    "text, said",
    [
        ("name = \ntrials = 3", ["mine.toml", "line 1"]),
        ('nam = "x"', ["mine.toml", "nam"]),
        ('trials = "many"', ["mine.toml", "trials", "int"]),
        ("[proxy]\nepochs = 1.5", ["mine.toml", "proxy.epochs", "int"]),
        ("budget_kb = 0", ["--budget-kb is 0"]),
        ("[proxy]\nbatch = 1", ["mine.toml", "proxy.batch", "2"]),
    ],
)
def test_a_mistake_in_a_study_file_names_file_and_key(text, said, tmp_path, capsys):
    (tmp_path / "mine.toml").write_text(text)
    answer = sentence(capsys, ["search", "mine.toml"])
    for part in said:
        assert part in answer


def test_a_budget_that_nothing_meets_says_the_smallest_size(tones, tmp_path, capsys):
    (tmp_path / "tiny.toml").write_text(SPACE)
    command = ["search", "--data", str(tones), "--space", "tiny.toml", "--budget-kb", "0.5"]
    text = sentence(capsys, command)
    assert "its smallest network has 0.77 KB (file_bytes)" in text and "raise --budget-kb" in text
    assert not (tmp_path / "studies").exists()


def test_a_folder_with_one_class_or_too_few_clips_is_refused(tmp_path, capsys):
    write_tones(tmp_path / "few", clips_per_class=2)
    assert "too few" in sentence(capsys, ["search", "--data", "few"])
    write_tones(tmp_path / "one")
    for label in ("high", "low"):
        for path in (tmp_path / "one" / label).iterdir():
            path.unlink()
    assert "one class" in sentence(capsys, ["search", "--data", "one"])
    (tmp_path / "empty").mkdir()
    assert "empty" in sentence(capsys, ["search", "--data", "empty"])


def test_bad_files_are_listed_and_more_than_a_tenth_stops_unless_told_otherwise(tmp_path, capsys):
    write_tones(tmp_path / "tones")
    (tmp_path / "tones" / "low" / "00.wav").write_bytes(b"")
    assert main(["data", "tones", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [problem["file"] for problem in report["problems"]] == ["low/00.wav"]
    for label in ("high", "low", "mid"):
        for i in range(3):
            (tmp_path / "tones" / label / f"{i:02}.wav").write_bytes(b"RIFF")
    text = sentence(capsys, ["search", "--data", "tones"])
    assert "9 of 60" in text and "--tolerate-bad-files" in text


def test_data_json_follows_the_contract(tones, capsys):
    assert main(["data", str(tones), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    keys = {"layout", "classes", "clips", "splits", "groups", "durations_s", "sample_rates_hz"}
    assert report.keys() >= keys | {"problems"}
    assert report["clips"] == 60 and sum(report["splits"].values()) == 60


def test_show_json_follows_the_contract_and_its_layers_add_up(capsys):
    assert main(["show", "bcresnet-1", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["parameters"] == 9232 and shown["macs"] == 2482156
    for key in ("parameters", "macs"):
        assert sum(layer[key] for layer in shown["layers"]) == shown[key]
    assert sum(layer["bytes"] for layer in shown["layers"]) == shown["parameter_bytes"]
    assert max(layer["live_bytes"] for layer in shown["layers"]) == shown["peak_ram_bytes"]
    assert sum(shown["ledger"].values()) == shown["file_bytes"]
    for key in ("weight_bytes", "scale_bytes", "graph_bytes"):
        assert sum(layer[key] for layer in shown["layers"]) == shown["ledger"][key]
    keys = {"name", "output_shape", "parameters", "macs", "bytes", "live_bytes"}
    assert all(layer.keys() >= keys for layer in shown["layers"])


def test_show_prints_a_table_for_people(capsys):
    assert main(["show", "dscnn-mlperf-tiny"]) == 0
    out = capsys.readouterr().out
    assert "depthwise 3x3" in out and "64x5x25" in out and "2,656,768" in out


@pytest.mark.parametrize("kind", ["spaces", "targets", "architectures", "studies", "datasets"])
def test_list_names_what_comes_with_nas(kind, capsys):
    assert main(["list", kind]) == 0
    lines = capsys.readouterr().out.splitlines()
    listed = [line.split()[0] for line in lines]
    expected = {
        "architectures": list(published()),
        "datasets": ["synthetic-scenes"],
    }
    assert listed == (expected.get(kind) or names(kind))
    assert all(len(line.split()) > 1 for line in lines)


def test_list_says_how_many_architectures_a_space_holds(capsys):
    assert main(["list", "spaces"]) == 0
    shown = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert shown["small"].endswith(f"({load_space('small').count():.2g} architectures)")


def test_measure_json_follows_the_contract(tmp_path, capsys):
    from nas.measure import reference_network

    (tmp_path / "net.onnx").write_bytes(reference_network())
    assert main(["measure", "net.onnx", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["file_bytes"] == (tmp_path / "net.onnx").stat().st_size
    assert shown["latency_kind"] == "measured" and shown["target"] == "host"
    assert 0.5 < shown["reference_ratio"] < 2
    keys = {"latency_ms", "latency_median_ms", "latency_p95_ms", "device"}
    assert shown.keys() >= keys


def test_the_version_is_the_packages(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out.strip() == f"nas {nas.__version__}"


def test_a_folder_that_cannot_be_written_is_one_sentence(tones, tmp_path, capsys):
    if os.geteuid() == 0:
        (tmp_path / "studies").write_text("a file where the folder should be")
    else:
        (tmp_path / "studies").mkdir(mode=0o500)
    (tmp_path / "tiny.toml").write_text(SPACE)
    command = ["search", "--data", str(tones), "--space", "tiny.toml", "--trials", "1"]
    assert "its database or folder cannot be used" in sentence(capsys, command)


def test_recordings_of_other_formats_are_read(tmp_path, capsys):
    write_tones(tmp_path / "tones")
    for format in ("flac", "ogg", "mp3"):
        path = tmp_path / "tones" / "low" / "01.wav"
        audio, rate = soundfile.read(path)
        soundfile.write(path.with_suffix(f".{format}"), audio, rate)
    assert main(["data", "tones", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["clips"] == 63 and report["problems"] == []


def test_data_names_each_file_that_is_left_out_and_says_if_they_are_too_many(tmp_path, capsys):
    root = write_tones(tmp_path / "tones", clips_per_class=5)
    (root / "low" / "cut.wav").write_bytes(b"")
    assert main(["data", str(root)]) == 0
    shown = capsys.readouterr().out
    assert "left out: 1 of 16 recordings\n  low/cut.wav: empty file" in shown
    (root / "mid" / "text.flac").write_text("no sound")
    assert main(["data", str(root)]) == 0
    shown = capsys.readouterr().out
    assert "left out: 2 of 17 recordings, more than 10%: a search needs --tolerate-bad" in shown
    assert "mid/text.flac: not readable as audio" in shown
    assert "2 of 17 recordings cannot be used" in sentence(capsys, ["search", "--data", str(root)])


def test_clearing_the_cache_says_how_much_it_freed(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("NAS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache" / "features" / "x").mkdir(parents=True)
    (tmp_path / "cache" / "features" / "x" / "train.npy").write_bytes(bytes(3 * 2**20))
    assert main(["data", "--clear-cache"]) == 0
    assert capsys.readouterr().err == "freed 3 MB\n"
    assert not (tmp_path / "cache" / "features" / "x").exists()
