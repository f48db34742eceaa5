"""Runs a Python program on the machine that a target means: this one, or a device over ssh.

The program goes through standard input and nothing is written on the device. Every trouble on
the way is one sentence that names the device and says what to do.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence

from nas.errors import UserError
from nas.target import Remote, TargetProfile

CONNECT_S = 10
# A connection that says nothing for 15 s is lost, however long the program may take.
_SSH = ("ssh", "-T", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_S}")
_ALIVE = ("-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3")
_SSH_FAILED, _NO_COMMAND = 255, 127


class Away(UserError):
    """The device cannot be reached or did not answer: not the network's fault, and it may pass."""


def run(program: bytes, target: TargetProfile) -> str:
    """What `program`, Python source, prints on the target's machine.

    Raises Away if the device cannot be reached, hangs or goes away meanwhile.
    """
    remote = target.remote
    if remote is None:
        return _here(program)
    if not remote.ssh:
        raise Away(
            f"target '{target.name}' is a device of its own and none is at hand: say how to reach "
            'it with --remote user@host, or with ssh = "user@host" under [remote] in its profile'
        )
    return _there(program, remote)


def _here(program: bytes) -> str:
    # -P: a file of the user's folder must not stand in for a library.
    done = subprocess.run([sys.executable, "-P", "-"], input=program, capture_output=True)
    if done.returncode:
        raise UserError(f"measuring ended early: {_last(done.stderr) or _code(done.returncode)}")
    return done.stdout.decode()


def _there(program: bytes, remote: Remote) -> str:
    command = [*_SSH, *_ALIVE, *_address(remote.ssh), f"{remote.python} -"]
    try:
        done = _until(command, program, remote.timeout_s)
    except FileNotFoundError:
        raise UserError("no command 'ssh' here: install an ssh client (openssh-client)") from None
    except subprocess.TimeoutExpired:
        raise Away(
            f"{remote.ssh} did not answer within {remote.timeout_s:g} s and may hang; look after "
            "it, or raise timeout_s under [remote] in the profile"
        ) from None
    if done.returncode:
        raise Away(_trouble(done, remote))
    return done.stdout.decode()


def _until(
    command: Sequence[str], program: bytes, timeout_s: float
) -> subprocess.CompletedProcess[bytes]:
    """Runs the command in a group of its own, so that what it started ends with it."""
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True
    ) as process:
        try:
            output, errors = process.communicate(program, timeout_s)
        finally:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


def _address(ssh: str) -> list[str]:
    """ssh's arguments for `user@host:port`. Raises UserError for what cannot be one."""
    found = re.fullmatch(r"([^\s:-][^\s:]*|\S*\[[0-9a-fA-F:]+\])(?::(\d+))?", ssh)
    if not found:
        raise UserError(
            f"'{ssh}' is no address for ssh: give user@host, user@host:port or a name of your "
            "ssh configuration"
        )
    host = found[1].replace("[", "").replace("]", "")
    return [*(["-p", found[2]] if found[2] else []), "--", host]


_TROUBLES = {
    "REMOTE HOST IDENTIFICATION HAS CHANGED": "is not the device it was: its host key has changed; "
    "if it was set up anew, forget the old key with `ssh-keygen -R` and connect once by hand",
    "Host key verification failed": "has an unknown host key; connect once by hand with ssh and "
    "confirm it",
    "Could not resolve hostname": "is not known by that name; check the address",
    "Permission denied": "refuses the login; install your key there with ssh-copy-id",
    "Connection refused": "refuses the connection; does its ssh server run, on that port?",
    "No route to host": "cannot be reached; is it switched on and in the same network?",
    "timed out": "cannot be reached; is it switched on and in the same network?",
}


def _trouble(done: subprocess.CompletedProcess[bytes], remote: Remote) -> str:
    said = done.stderr.decode(errors="replace")
    if done.returncode == _NO_COMMAND:
        name = shlex.split(remote.python)[0]
        return (
            f"{remote.ssh} has no '{name}': install Python 3 there, or name it with python = "
            '"..." under [remote] in the profile'
        )
    if done.returncode != _SSH_FAILED:
        return (
            f"measuring on {remote.ssh} ended early: {_last(done.stderr) or _code(done.returncode)}"
        )
    for sign, meaning in _TROUBLES.items():
        if sign in said:
            return f"{remote.ssh} {meaning}"
    return f"the connection to {remote.ssh} was lost ({_last(done.stderr) or 'no reason given'})"


def _last(errors: bytes) -> str:
    lines = errors.decode(errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else ""


def _code(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"
