"""`python -m scholarch.storage.provision PLAN KEYS [--check]`: buckets of a MinIO, and an access key for each purpose.

PLAN is a JSON file `{"buckets": [NAME], "keys": {PURPOSE: [{"bucket", "prefix", "rights"}]}}`, KEYS a folder with
the secret of each purpose in a file of its name, which is the key's name too. The environment names MinIO and its
root account. A second call changes nothing. With `--check` each key is tried: it can do what the plan says and
nothing beside it.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from scholarch.errors import EXIT_WRONG_INPUT, UserError
from scholarch.storage.objects import Unreachable
from scholarch.storage.s3 import S3Objects, endpoint

Rights = Literal["read", "add", "write"]
_READ = ("s3:GetObject",)
_ADD = (*_READ, "s3:PutObject", "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts")
ACTIONS: dict[Rights, tuple[str, ...]] = {"read": _READ, "add": _ADD, "write": (*_ADD, "s3:DeleteObject")}
"""`add` cannot delete, but overwrites."""
PROBE = ".scholarch-check"

Bucket = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$")]


class Place(BaseModel):
    """Part of a bucket, and what may be done there."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    bucket: Bucket
    prefix: Annotated[str, Field(pattern=r"^([^/*?][^*?]*[^/*?]|)$")] = ""
    rights: Rights

    @property
    def objects(self) -> S3Objects:
        """Its objects, as the account of the environment."""
        return S3Objects(self.bucket, self.prefix)


class Plan(BaseModel):
    """Everything that is to be there."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    buckets: list[Bucket]
    keys: dict[str, list[Place]]

    @classmethod
    def read(cls, path: Path) -> Plan:
        """From its file.

        Raises:
            UserError: if it is not there or is no plan.
        """
        try:
            return cls.model_validate_json(path.read_text())
        except (OSError, ValidationError) as error:
            raise UserError(f"no plan of buckets and keys: {error}", where=str(path)) from None


def policy(places: list[Place]) -> dict[str, Any]:
    """The IAM policy that allows these places and nothing else."""
    statements: list[dict[str, Any]] = []
    for place in places:
        bucket = f"arn:aws:s3:::{place.bucket}"
        listing: dict[str, Any] = {"Effect": "Allow", "Action": ["s3:ListBucket"], "Resource": [bucket]}
        if place.prefix:
            listing["Condition"] = {"StringLike": {"s3:prefix": [place.prefix, f"{place.prefix}/*"]}}
        under = f"{place.prefix}/*" if place.prefix else "*"
        actions, resources = list(ACTIONS[place.rights]), [f"{bucket}/{under}"]
        located = {"Effect": "Allow", "Action": ["s3:GetBucketLocation"], "Resource": [bucket]}
        statements += [listing, located, {"Effect": "Allow", "Action": actions, "Resource": resources}]
    return {"Version": "2012-10-17", "Statement": statements}


def provision(plan: Plan, secrets: dict[str, str]) -> None:
    """Makes what is missing, and brings rights and secrets to what the plan says."""
    for bucket in plan.buckets:
        S3Objects(bucket, "").make_bucket()
    admin = _admin()
    for purpose, places in plan.keys.items():
        admin.policy_add(purpose, policy=policy(places))
        admin.user_add(purpose, secrets[purpose])
        admin.policy_set(purpose, user=purpose)


def _admin() -> Any:
    from minio import MinioAdmin
    from minio.credentials.providers import EnvAWSProvider

    url = urlsplit(endpoint())
    return MinioAdmin(endpoint=url.netloc, secure=url.scheme == "https", credentials=EnvAWSProvider())


def faults(plan: Plan, secrets: dict[str, str]) -> list[str]:
    """What the keys cannot do though they should, and can do though they should not."""
    found = []
    for purpose, places in plan.keys.items():
        with _as(purpose, secrets[purpose]):
            for place in places:
                try:
                    _use(place)
                except (UserError, Unreachable) as error:
                    found.append(f"{purpose} cannot {place.rights}: {error}")
            for bucket in plan.buckets:
                closed = S3Objects(bucket, "")
                if all(place.bucket != bucket or place.prefix or place.rights == "read" for place in places):
                    found += [f"{purpose} can write into {bucket}"] if _writes(closed) else []
    return found


def _use(place: Place) -> None:
    objects = place.objects
    objects.children()
    if place.rights != "read":
        objects.write(PROBE, b"")
        objects.read(PROBE)
    if place.rights == "write":
        objects.remove(PROBE)


def _writes(objects: S3Objects) -> bool:
    try:
        objects.write(PROBE, b"")
    except UserError:
        return False
    return True


@contextmanager
def _as(user: str, secret: str) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(AWS_ACCESS_KEY_ID=user, AWS_SECRET_ACCESS_KEY=secret)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def main(arguments: list[str]) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m scholarch.storage.provision")
    parser.add_argument("plan", type=Path)
    parser.add_argument("keys", type=Path)
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args(arguments)
    try:
        plan = Plan.read(given.plan)
        missing = [purpose for purpose in plan.keys if not (given.keys / purpose).is_file()]
        if missing:
            raise UserError(f"no secret of {', '.join(missing)}", where=str(given.keys))
        secrets = {purpose: (given.keys / purpose).read_text().strip() for purpose in plan.keys}
        if not given.check:
            provision(plan, secrets)
            return 0
        found = faults(plan, secrets)
    except (UserError, Unreachable) as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_WRONG_INPUT if isinstance(error, UserError) else 1
    sys.stderr.write("".join(f"{fault}\n" for fault in found))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
