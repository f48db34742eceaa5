"""Measuring over ssh: a real sshd on this machine, another user, another port, every trouble."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from pathlib import Path

import pytest

from nas import measure
from nas.cli import main
from nas.device import Away, run
from nas.errors import UserError
from nas.measure import Protocol, latencies_if_there, latency, reference_network
from nas.shipped import load_target
from nas.target import Remote, TargetProfile

USER = "nas-device"
SSHD = "/usr/sbin/sshd"
GLANCE = Protocol(moments=(1, 1), seconds=0.01)
CONFIG = """
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host
AuthorizedKeysFile {folder}/login.pub
PidFile none
UsePAM no
StrictModes no
PasswordAuthentication no
"""
CLIENT = """
IdentityFile {folder}/login
IdentitiesOnly yes
UserKnownHostsFile {folder}/known_hosts
"""


class Device:
    """An sshd of its own, the user who logs in there, and an `ssh` command that knows its keys."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        for name in ("host", "login", "other"):
            key = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name]
            subprocess.run(key, check=True)
        (folder / "login").chmod(0o600)
        (folder / "sshd_config").write_text(CONFIG.format(port=self.port, folder=folder))
        (folder / "ssh_config").write_text(CLIENT.format(folder=folder))
        (folder / "bin").mkdir()
        command = f'#!/bin/sh\nexec {shutil.which("ssh")} -F {folder}/ssh_config "$@"\n'
        (folder / "bin" / "ssh").write_text(command)
        (folder / "bin" / "ssh").chmod(0o755)
        self.knows("host")
        self.start()

    def knows(self, key: str | None) -> None:
        """Which key the client takes for the device's."""
        public = (self.folder / f"{key}.pub").read_text() if key else ""
        line = f"[127.0.0.1]:{self.port} {public}" if key else ""
        (self.folder / "known_hosts").write_text(line)

    def start(self) -> None:
        Path("/run/sshd").mkdir(exist_ok=True)
        command = [SSHD, "-D", "-e", "-f", str(self.folder / "sshd_config")]
        self.sshd = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        raise AssertionError("sshd does not listen")

    def stop(self) -> None:
        self.sshd.kill()
        self.sshd.wait()

    def serving(self, process: int | None = None) -> list[int]:
        """The processes below sshd: those that serve a login, and what runs there."""
        pid = process or self.sshd.pid
        children = told(f"/proc/{pid}/task/{pid}/children").split()
        return [each for child in children for each in (int(child), *self.serving(int(child)))]

    def runs_python(self) -> bool:
        names = [told(f"/proc/{pid}/comm") for pid in self.serving()]
        return any(name.startswith("python") for name in names)

    def target(self, **settings: object) -> TargetProfile:
        ssh = f"{USER}@127.0.0.1:{self.port}"
        remote = Remote(**{"ssh": ssh, "python": python_of_others(), **settings})
        return TargetProfile("board", "a board", "", "onnxruntime", remote=remote)


def told(path: str) -> str:
    """What the kernel says there; nothing of a process that has gone."""
    try:
        return Path(path).read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def python_of_others() -> str:
    """A Python with onnxruntime that the other user may run; this one's may be its owner's only."""
    site = sysconfig.get_path("purelib")
    for python in (sys.executable, f"PYTHONPATH={site} /usr/bin/python3"):
        check = ["su", "-s", "/bin/sh", USER, "-c", f"{python} -c 'import numpy'"]
        if subprocess.run(check, capture_output=True).returncode == 0:
            return python
    pytest.skip("needs a Python with onnxruntime that every user may run")


@pytest.fixture(scope="module")
def device():
    if os.getuid() or not Path(SSHD).exists() or not shutil.which("ssh"):
        pytest.skip("needs root, ssh and /usr/sbin/sshd (openssh-server)")
    made = subprocess.run(["useradd", "-m", "-s", "/bin/sh", "-p", "*", USER]).returncode == 0
    folder = Path(tempfile.mkdtemp(prefix="nas-sshd-"))
    folder.chmod(0o755)
    device = Device(folder)
    before = os.environ["PATH"]
    os.environ["PATH"] = f"{folder / 'bin'}:{before}"
    yield device
    os.environ["PATH"] = before
    device.stop()
    shutil.rmtree(folder)
    if made:
        subprocess.run(["userdel", "-r", USER], stderr=subprocess.DEVNULL)


def test_a_measurement_is_made_by_the_other_user_by_the_same_protocol(device):
    assert run(b"import getpass; print(getpass.getuser())", device.target()).strip() == USER
    found = latency(reference_network(), device.target(), GLANCE)
    assert 0 < found.latency_ms <= found.latency_median_ms <= found.latency_p95_ms
    assert 0.2 < found.reference_ratio < 5
    assert found.latency_kind == "measured"
    assert {"cpu", "cores", "system", "onnxruntime"} <= set(found.facts)


def test_nothing_is_written_on_the_device(device):
    home = Path(pwd.getpwnam(USER).pw_dir)
    before = sorted(home.rglob("*"))
    latency(reference_network(), device.target(), GLANCE)
    assert sorted(home.rglob("*")) == before
    assert not [path for path in before if "onnxruntime" in path.name]


def test_the_command_line_measures_on_a_device(device, tmp_path, capsys):
    (tmp_path / "net.onnx").write_bytes(reference_network())
    own = '[remote]\nssh = "nobody@elsewhere.invalid"\npython = "{}"\n'
    profile = 'name = "board"\ndescription = ""\nsource = ""\nruntime = "onnxruntime"\n'
    (tmp_path / "board.toml").write_text(profile + own.format(python_of_others()))
    flags = ["--target", str(tmp_path / "board.toml"), "--json"]
    address = f"{USER}@127.0.0.1:{device.port}"
    assert main(["measure", str(tmp_path / "net.onnx"), *flags, "--remote", address]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["target"], shown["latency_kind"]) == ("board", "measured")
    assert main(["measure", str(tmp_path / "net.onnx"), *flags]) == 2
    assert "elsewhere.invalid is not known by that name" in capsys.readouterr().err


def refusal(target: TargetProfile) -> str:
    with pytest.raises(Away) as refused:
        latency(reference_network(), target, GLANCE)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_each_trouble_on_the_way_is_one_sentence_that_says_what_to_do(device):
    assert "no Python package 'numpy': install" in refusal(
        device.target(python="/usr/bin/python3 -S")
    )
    assert "has no 'python9': install Python 3" in refusal(device.target(python="python9"))
    assert "did not answer within 1 s" in refusal(device.target(python="sleep 9 #", timeout_s=1))
    assert "answered with something else than times" in refusal(device.target(python="echo hi #"))
    assert "ended early: exit code 3" in refusal(device.target(python="exit 3 #"))
    stranger = device.target(ssh=f"no-such-user@127.0.0.1:{device.port}")
    assert "refuses the login" in refusal(stranger)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        closed = device.target(ssh=f"{USER}@127.0.0.1:{unused.getsockname()[1]}")
        assert "refuses the connection" in refusal(closed)


def test_a_device_that_is_not_the_known_one_is_not_measured(device):
    device.knows(None)
    unknown = refusal(device.target())
    device.knows("other")
    changed = refusal(device.target())
    device.knows("host")
    assert "unknown host key; connect once by hand" in unknown
    assert "its host key has changed" in changed


def test_a_connection_that_dies_while_measuring_is_a_sentence(device):
    said: list[str] = []
    with open(lock_file()) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # so that the measurement waits while it is killed
        thread = threading.Thread(target=lambda: said.append(refusal(device.target())))
        thread.start()
        deadline = time.monotonic() + 20
        while not device.runs_python() and time.monotonic() < deadline:
            time.sleep(0.05)
        for pid in device.serving():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        thread.join(30)
    assert "the connection to nas-device@127.0.0.1" in said[0] and "was lost" in said[0]


def lock_file() -> Path:
    path = Path(tempfile.gettempdir()) / "nas-measure.lock"
    path.touch()
    return path


def test_a_trial_waits_for_its_device_or_goes_on_without_a_latency(device, monkeypatch, capfd):
    monkeypatch.setattr(measure, "SECONDS_BETWEEN_VISITS", 0.2)
    device.stop()
    target = device.target(when_away="no latency")
    found, why = latencies_if_there([reference_network()], target, GLANCE)
    assert found == [None] and "no latency: " in why and "refuses the connection" in why
    again: list[object] = []
    waiting = device.target(when_away="wait")
    thread = threading.Thread(
        target=lambda: again.extend(latencies_if_there([reference_network()], waiting, GLANCE)[0])
    )
    thread.start()
    thread.join(1)
    assert thread.is_alive()
    device.start()
    thread.join(60)
    assert len(again) == 1 and again[0] is not None
    assert "waiting: " in capfd.readouterr().err


@pytest.mark.parametrize("name", ["raspberry-pi-4", "android-phone"])
def test_a_device_that_is_not_at_hand_has_no_latency(name, tmp_path, capsys):
    (tmp_path / "net.onnx").write_bytes(reference_network())
    assert main(["measure", str(tmp_path / "net.onnx"), "--target", name]) == 2
    assert f"target '{name}' is a device of its own" in capsys.readouterr().err
    found, why = latencies_if_there([reference_network()], load_target(name), GLANCE)
    assert found == [None] and "--remote user@host" in why


@pytest.mark.parametrize("address", ["-oProxyCommand=x", "a b", "pi@board:port", "", "pi@board:"])
def test_what_is_no_address_never_reaches_ssh(address):
    if address:
        with pytest.raises(UserError, match="is no address for ssh"):
            run(b"", TargetProfile("b", "", "", "onnxruntime", remote=Remote(ssh=address)))
    else:
        assert load_target("host").reached_at(address).remote is None
