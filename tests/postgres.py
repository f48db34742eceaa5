"""A real PostgreSQL that a test starts and stops, in a folder and on a port of its own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

OWNER = "postgres"  # it refuses to run as root; Debian's package makes this user


class Server:
    """One database cluster; `url` is what `--storage` takes."""

    def __init__(self, folder: Path, binaries: Path) -> None:
        self.folder, self.binaries = folder, binaries
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"postgresql://{OWNER}@127.0.0.1:{self.port}/postgres"
        self._run("initdb", "-D", folder / "data", "-A", "trust", "-U", OWNER, "-E", "UTF8")

    def start(self) -> None:
        options = f"-p {self.port} -k {self.folder} -c listen_addresses=127.0.0.1"
        log = self.folder / "log"
        self._run("pg_ctl", "-D", self.folder / "data", "-w", "-l", log, "-o", options, "start")

    def stop(self) -> None:
        """As a crash does: connections are cut, nothing is tidied up."""
        self._run("pg_ctl", "-D", self.folder / "data", "-m", "immediate", "stop")

    def _run(self, program: str, *arguments: object) -> None:
        user = OWNER if os.geteuid() == 0 else None
        command = [str(self.binaries / program), *map(str, arguments)]
        subprocess.run(
            command, check=True, user=user, cwd=self.folder, stdout=subprocess.DEVNULL, timeout=60
        )


@contextmanager
def postgres() -> Iterator[Server]:
    """A running server, or a skipped test."""
    binaries = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    found = binaries[-1] if binaries else shutil.which("initdb")
    if not found:
        pytest.skip("needs PostgreSQL (Debian's package postgresql)")
    pytest.importorskip("psycopg", reason="needs psycopg (extra 'postgres')")
    with tempfile.TemporaryDirectory(prefix="nas-postgres-") as folder:
        if os.geteuid() == 0:
            shutil.chown(folder, OWNER)
        server = Server(Path(folder), Path(found).parent)
        server.start()
        try:
            yield server
        finally:
            server.stop()
