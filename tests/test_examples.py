"""The example files for Slurm and Kubernetes: their fields, and their command run for real."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from searching import STUDY, complete, rows, working_folder
from tones import write_tones

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder whose study.toml asks for three trials."""
    root = tmp_path_factory.mktemp("examples")
    folder = working_folder(root / "work", write_tones(root / "tones"))
    text = STUDY.replace("trials = 6", "trials = 3")
    (folder / "study.toml").write_text(re.sub("workers = .*\n", "", text))
    return folder


def environment(folder: Path, name: str) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "NAS_STORAGE": f"sqlite:///{folder}/{name}.db"}


def finish(processes: list[subprocess.Popen[str]]) -> None:
    for process in processes:
        _, said = process.communicate(timeout=200)
        assert process.returncode == 0, said


def start(command: list[str], folder: Path, given: dict[str, str]) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, env=given, stdout=pipe, stderr=pipe, text=True)


@pytest.mark.slow
def test_two_tasks_of_the_slurm_array_do_one_search(folder: Path):
    script = (EXAMPLES / "search.sbatch").read_text()
    options = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", script, re.MULTILINE))
    assert re.fullmatch(r"\d+-\d+", options["array"]) and int(options["cpus-per-task"]) >= 1
    slurm = {
        "SLURM_SUBMIT_DIR": str(folder),
        "SLURM_CPUS_PER_TASK": "1",
        "SLURM_ARRAY_JOB_ID": "17",
    }
    given = {**environment(folder, "slurm"), **slurm}
    command = ["bash", str(EXAMPLES / "search.sbatch")]
    finish(
        [
            start(command, folder.parent, {**given, "SLURM_ARRAY_TASK_ID": task})
            for task in ("0", "1")
        ]
    )
    done = complete(rows(folder, "--storage", given["NAS_STORAGE"]))
    assert len(done) == len({row["architecture"] for row in done}) == 3
    for row in done:
        assert Path(row["artifact"]).parent == folder / "artifacts" / "tones"
        assert Path(row["artifact"]).stat().st_size == row["file_bytes"]


def test_the_kubernetes_job_is_indexed_and_its_command_searches(folder: Path):
    yaml = pytest.importorskip("yaml", reason="needs PyYAML (extra 'dev')")
    job: dict[str, Any] = yaml.safe_load((EXAMPLES / "search-job.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    spec = job["spec"]
    assert spec["completionMode"] == "Indexed" and spec["completions"] == spec["parallelism"] > 1
    pod = spec["template"]["spec"]
    assert pod["restartPolicy"] == "Never"  # a podFailurePolicy and an index need it
    (container,) = pod["containers"]
    mounts = {mount["name"] for mount in container["volumeMounts"]}
    assert mounts == {volume["name"] for volume in pod["volumes"]}
    assert container["command"][:2] == ["nas", "search"]
    given = environment(folder, "kubernetes")
    places = {
        "$(NAS_STORAGE)": given["NAS_STORAGE"],
        "/data/study.toml": "study.toml",
        "s3://my-bucket/nas": str(folder / "bucket"),
        "4": "1",
    }
    assert places.keys() <= set(container["command"])
    finish([start([places.get(word, word) for word in container["command"]], folder, given)])
    assert len(complete(rows(folder, "--storage", given["NAS_STORAGE"]))) == 3
