"""Artefacts in a folder or an S3 bucket: written whole or not at all, read through one function.

Optuna's own artifact stores are not used: the one for folders lets half-written files be seen, and
the one for S3 adds nothing to boto3's calls.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from nas.cache import write_whole
from nas.errors import UserError

_S3 = "s3://"


def place_of(artifacts: str | None, name: str) -> str:
    """Where the artefacts of the study `name` go: its own folder, or below `artifacts`."""
    if artifacts is None:
        return os.path.abspath(Path("studies") / name / "artifacts")
    root = artifacts.rstrip("/")
    return f"{root if root.startswith(_S3) else os.path.abspath(root)}/{name}"


def prepare(place: str) -> None:
    """Makes the folder, or finds the bucket. Raises UserError if there is no such bucket and
    OSError if it cannot be reached or the folder cannot be made."""
    if not place.startswith(_S3):
        Path(place).mkdir(parents=True, exist_ok=True)
        return
    bucket, _ = _parts(place)
    _ask_s3(place, "head_bucket", Bucket=bucket)


def keep(where: str, content: bytes) -> None:
    """Writes the file or object in one step. Raises OSError."""
    if where.startswith(_S3):
        bucket, key = _parts(where)
        _ask_s3(where, "put_object", Bucket=bucket, Key=key, Body=content)
    else:
        write_whole(Path(where), content)


def fetch(where: str) -> bytes:
    """The content that `keep` wrote there. Raises OSError."""
    if not where.startswith(_S3):
        return Path(where).read_bytes()
    bucket, key = _parts(where)
    content: bytes = _ask_s3(where, "get_object", Bucket=bucket, Key=key)["Body"].read()
    return content


def _parts(where: str) -> tuple[str, str]:
    """The bucket and the key of s3://bucket/key."""
    bucket, _, key = where.removeprefix(_S3).partition("/")
    return bucket, key


def _ask_s3(where: str, call: str, **given: Any) -> Any:
    """Credentials, region and AWS_ENDPOINT_URL are taken from the environment, as boto3 does."""
    try:
        import boto3
        from botocore.exceptions import BotoCoreError, ClientError
    except ImportError:
        raise UserError(
            f"{where}: boto3 is not installed; for S3: pip install 'tinyaudio-nas[s3]'"
        ) from None
    try:
        return getattr(boto3.client("s3"), call)(**given)
    except (BotoCoreError, ClientError) as error:
        raise OSError(f"{where}: {error}") from None
