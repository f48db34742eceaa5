"""The README's commands, run one after another as a user would."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tones import write_tones

from nas.cli import main

README = (Path(__file__).parents[1] / "README.md").read_text()
COMMANDS = [
    line.strip()
    for block in re.findall(r"```console\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.strip()
]
# Half an hour and ten epochs are for real recordings.
SHORTER = {"--minutes 30": "--trials 2", "--epochs 10": "--epochs 1"}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("readme")
    write_tones(folder / "my-recordings", clips_per_class=12)
    bin_folder = folder / "bin"
    bin_folder.mkdir()
    command = f'#!/bin/sh\nexec {sys.executable} -m nas "$@"\n'
    (bin_folder / "nas").write_text(command)
    (bin_folder / "python").symlink_to(sys.executable)
    (bin_folder / "nas").chmod(0o755)
    return folder


def test_the_first_two_commands_are_those_of_the_makefile():
    assert COMMANDS[:2] == ["make demo", "make test"]
    makefile = (Path(__file__).parents[1] / "Makefile").read_text()
    assert re.search(r"^demo:", makefile, re.MULTILINE)
    assert re.search(r"^test:", makefile, re.MULTILINE)


def test_every_other_command_runs_in_the_order_shown(workplace):
    path = f"{workplace / 'bin'}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "NAS_CACHE": str(workplace / "cache")}
    python = Path(sys.executable)
    for command in COMMANDS[2:]:
        for long, short in SHORTER.items():
            command = command.replace(long, short)
        command = re.sub(r"^python ", f"{python} ", command)
        done = subprocess.run(
            command, shell=True, cwd=workplace, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        assert done.stdout.strip(), command


def test_pictures_and_files_that_it_names_exist():
    root = Path(__file__).parents[1]
    for target in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README):
        assert (root / target).is_file(), target
    for line in re.findall(r"^\| (`[^|]*) \|", README, re.MULTILINE):
        for name in re.findall(r"`(\w+)`", line):
            assert (root / "nas" / f"{name}.py").is_file(), name


def test_the_python_functions_that_it_names_exist():
    import nas

    for name in re.findall(r"`nas\.(\w+)`", README):
        assert callable(getattr(nas, name)), name
    with pytest.raises(SystemExit):
        main(["--help"])
