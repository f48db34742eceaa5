"""Artefacts in folders and in S3 (moto's server: a real HTTP server of S3's interface)."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from searching import NAS, complete, rows, start_search, working_folder
from tones import write_tones

from nas.artifacts import fetch, keep, place_of, prepare

BUCKET = "networks"


@pytest.fixture(scope="module")
def s3() -> Iterator[dict[str, str]]:
    """The environment in which boto3 finds a server that holds BUCKET."""
    pytest.importorskip("moto", reason="needs moto (extra 'dev')")
    boto3 = pytest.importorskip("boto3", reason="needs boto3 (extra 's3')")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    command = [sys.executable, "-m", "moto.server", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    before = {key: os.environ.get(key) for key in environment}
    os.environ.update(environment)
    try:
        wait_for_port(port)
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        yield environment
    finally:
        server.terminate()
        server.wait()
        for key, value in before.items():
            os.environ.pop(key) if value is None else os.environ.update({key: value})


def wait_for_port(port: int, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise TimeoutError(f"nothing listens on port {port}")


def test_a_folder_gives_back_what_was_kept_under_the_study_s_name(tmp_path: Path):
    place = place_of(f"{tmp_path}/shared/", "mine")
    assert place == f"{tmp_path}/shared/mine"
    prepare(place)
    keep(f"{place}/00001.onnx", b"old")
    keep(f"{place}/00001.onnx", b"new")
    assert fetch(f"{place}/00001.onnx") == b"new"
    assert [path.name for path in Path(place).iterdir()] == ["00001.onnx"]


def test_without_a_place_artefacts_lie_in_the_study_s_own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert place_of(None, "mine") == str(tmp_path / "studies" / "mine" / "artifacts")


def test_a_bucket_gives_back_what_was_kept_and_says_what_is_missing(s3):
    place = place_of(f"s3://{BUCKET}/deep/er/", "mine")
    assert place == f"s3://{BUCKET}/deep/er/mine"
    prepare(place)
    keep(f"{place}/00001.onnx", bytes(range(256)))
    assert fetch(f"{place}/00001.onnx") == bytes(range(256))
    with pytest.raises(OSError, match=rf"s3://{BUCKET}/deep/er/mine/2: .*NoSuchKey"):
        fetch(f"{place}/2")


def test_a_search_keeps_its_networks_in_the_bucket_and_export_reads_them_there(s3, tmp_path):
    folder = working_folder(tmp_path / "work", write_tones(tmp_path / "tones"))
    search = start_search(folder, "--artifacts", f"s3://{BUCKET}", "--trials", "2")
    assert search.wait(timeout=200) == 0, (folder / "log").read_text()
    assert not (folder / "studies" / "tones" / "artifacts").exists()
    done = complete(rows(folder))
    assert len(done) == 2
    for row in done:
        assert row["artifact"] == f"s3://{BUCKET}/tones/{row['trial']:05d}.onnx"
        assert len(fetch(row["artifact"])) == row["file_bytes"]
    number = str(done[0]["trial"])
    exported = subprocess.run(
        [*NAS, "export", "tones", "--trial", number, "--no-retrain", "--out", "out", "--json"],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert exported.returncode == 0, exported.stderr
    assert (folder / "out" / "model.onnx").read_bytes() == fetch(done[0]["artifact"])
    assert json.loads(exported.stdout)["file_bytes"] == done[0]["file_bytes"]


def test_a_bucket_that_is_not_there_ends_in_one_sentence(s3, tmp_path):
    folder = working_folder(tmp_path / "work", write_tones(tmp_path / "tones"))
    assert start_search(folder, "--artifacts", "s3://nowhere").wait(timeout=100) == 2
    said = (folder / "log").read_text()
    assert said.count("\n") == 1 and "s3://nowhere/tones" in said and "--artifacts" in said
