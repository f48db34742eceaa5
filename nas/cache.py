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


def cache_folder(kind: str) -> Path:
    """The folder of one kind of cached things, made if need be.

    $NAS_CACHE, else $XDG_CACHE_HOME/nas, else ~/.cache/nas. Raises UserError if it cannot be made.
    """
    folder = cache_root() / kind
    with explained():
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def cache_root() -> Path:
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nas"
    return Path(os.environ.get("NAS_CACHE") or default)


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Turns a full disk or a missing permission into a UserError that says what to do."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cache folder {cache_root()}: {error.strerror}; make room there or set NAS_CACHE to a "
            "folder you can write to"
        ) from None


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
    """Replace the file in one step: a reader, and a power cut, find the old bytes or the new."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".new-", delete=False) as file:
        try:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            os.chmod(file.name, 0o644)
            os.replace(file.name, path)
        except OSError:
            os.unlink(file.name)
            raise


def size_bytes(folder: Path) -> int:
    """Bytes of all files below `folder`; files that vanish meanwhile count as nothing."""
    total = 0
    for base, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += os.stat(os.path.join(base, name)).st_size
    return total


def evict(folder: Path, keep: Path | None, limit_bytes: int) -> None:
    """Remove the least recently used entries of `folder`, not `keep`, until the limit holds.

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
    """Remove cached features and file checks and say how many bytes that freed.

    Features that another process is computing at this moment stay, and so do built-in data sets.
    """
    folders = [cache_folder(kind) for kind in ("features", "checks")]
    before = sum(map(size_bytes, folders))
    evict(folders[0], None, 0)
    for path in folders[1].iterdir():
        path.unlink(missing_ok=True)
    return before - sum(map(size_bytes, folders))
