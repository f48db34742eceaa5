"""The user's cache folder: where it is, whole-or-absent writes, a lock, eviction, clearing."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from nas.errors import UserError

KINDS = ("datasets", "checks", "features")


def cache_folder(kind: str) -> Path:
    """The folder of one kind of cached things, made if need be.

    $NAS_CACHE, else $XDG_CACHE_HOME/nas, else ~/.cache/nas. Raises UserError if it cannot be made.
    """
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nas"
    folder = Path(os.environ.get("NAS_CACHE") or default) / kind
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cache folder {folder}: {error.strerror}; set NAS_CACHE to a folder you can write to"
        ) from None
    return folder


@contextlib.contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[None]:
    """Only one process at a time is inside; the kernel lets go if the holder dies.

    Raises BlockingIOError if another process is inside and `wait` is false.
    """
    with path.with_name(path.name + ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


@contextlib.contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A new folder to fill, which becomes `target` on success and vanishes on failure."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".new-", dir=target.parent))
    try:
        yield temporary
        temporary.chmod(0o755)
        os.sync()  # else a power cut could leave the name with empty files
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_whole(path: Path, content: bytes) -> None:
    """Replace the file in one step: a reader sees the old bytes or the new ones."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".new-", delete=False) as file:
        file.write(content)
    os.replace(file.name, path)


def size_bytes(folder: Path) -> int:
    """Bytes of all files below `folder`; files that vanish meanwhile count as nothing."""
    total = 0
    for base, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += os.stat(os.path.join(base, name)).st_size
    return total


def evict(folder: Path, keep: Path, limit_bytes: int) -> None:
    """Remove the least recently used entries of `folder`, never `keep`, until the limit holds.

    An entry's modification time is when it was last used. Arrays that another process has mapped
    stay readable to it, as the kernel keeps their content until they are closed.
    """
    entries = sorted((_used_at(entry), entry) for entry in folder.iterdir() if entry.is_dir())
    sizes = {entry: size_bytes(entry) for _, entry in entries}
    total = sum(sizes.values())
    for _, entry in entries:
        if total <= limit_bytes:
            return
        if entry != keep:
            with contextlib.suppress(BlockingIOError), locked(entry, wait=False):
                shutil.rmtree(entry, ignore_errors=True)
                total -= sizes[entry]


def _used_at(path: Path) -> float:
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_mtime
    return time.time()


def clear_cache() -> int:
    """Remove everything the product has cached and say how many bytes that was."""
    freed = 0
    for kind in KINDS:
        folder = cache_folder(kind)
        freed += size_bytes(folder)
        shutil.rmtree(folder, ignore_errors=True)
    return freed
