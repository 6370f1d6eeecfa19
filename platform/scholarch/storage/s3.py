"""Objects of an S3 bucket, through MinIO's client, with bounded retries.

`AWS_ENDPOINT_URL`, `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN` and `AWS_REGION`
say where and who, as everywhere in the field; without the keys, `~/.aws/credentials`.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from scholarch.errors import UserError
from scholarch.storage.local import atomic
from scholarch.storage.objects import SCHEME, Entry, Unreachable

T = TypeVar("T")

RETRY_SECONDS = 120.0
"""For how long a request is tried again before the store counts as unreachable."""
TIMEOUT_SECONDS = 20.0
PART_BYTES = 64 << 20

_TRANSIENT = frozenset(
    {
        "InternalError",
        "RequestTimeout",
        "ServiceUnavailable",
        "SlowDown",
        "SlowDownRead",
        "SlowDownWrite",
        "XMinioServerNotInitialized",
    }
)
_KEYS = frozenset({"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch"})
_EXPIRED = frozenset(
    {"ExpiredToken", "ExpiredTokenException", "InvalidToken", "InvalidTokenId", "TokenRefreshRequired"}
)
_NO_BUCKET = frozenset({"NoSuchBucket", "InvalidBucketName"})


def endpoint() -> str:
    """Where S3 is: `AWS_ENDPOINT_URL_S3`, `AWS_ENDPOINT_URL`, or Amazon's.

    Raises:
        UserError: if it is no URL.
    """
    url = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    url = url or "https://s3.amazonaws.com"
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).netloc:
        raise UserError(f"{url!r} is not a URL", where="AWS_ENDPOINT_URL", fix="write it as http://HOST:PORT")
    return url


class S3Objects:
    """Objects under `s3://bucket/prefix`.

    Args:
        bucket, prefix: without slashes at their ends; the prefix may be empty.
        retry_seconds: how long a request is tried again.
    """

    def __init__(self, bucket: str, prefix: str, retry_seconds: float = RETRY_SECONDS) -> None:
        self.bucket, self.prefix, self.retry_seconds = bucket, prefix, retry_seconds
        self._client: Any = None
        self._process = 0

    @classmethod
    def at(cls, address: str) -> S3Objects:
        """From an address; nothing is contacted."""
        bucket, _, prefix = address.removeprefix(SCHEME).partition("/")
        if not bucket:
            raise UserError("names no bucket", where=address, fix="write it as s3://BUCKET/PREFIX")
        return cls(bucket, prefix.strip("/"))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_client": None}

    @property
    def address(self) -> str:
        return f"{SCHEME}{self.bucket}/{self.prefix}".rstrip("/")

    @property
    def client(self) -> Any:
        """MinIO's client of this process."""
        # Connections must not be shared with a forked data loader.
        if self._client is None or self._process != os.getpid():
            self._client, self._process = _client(), os.getpid()
        return self._client

    def read(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        def get() -> bytes:
            response = self.client.get_object(self.bucket, self._key(name), offset=start, length=length or 0)
            try:
                data: bytes = response.read()
            finally:
                response.close()
                response.release_conn()
            return data

        if length == 0:
            return b""
        data = self._tried(name, get)
        if length is not None and len(data) < length:
            raise EOFError(f"{self._named(name)} ends after {start + len(data)} bytes")
        return data

    def write(self, name: str, data: bytes) -> None:
        self._tried(
            name, lambda: self.client.put_object(self.bucket, self._key(name), io.BytesIO(data), len(data))
        )

    def write_if(self, name: str, data: bytes, tag: str | None) -> str | None:
        """Writes an object only if it is the one with this `tag`, or, for None, if there is none.

        Returns:
            the new object's tag; None if another one is there, or none is.

        Raises:
            Unreachable, UserError: as `write`; also where the store has no conditional writes.
        """
        condition = {"If-None-Match": "*"} if tag is None else {"If-Match": f'"{tag}"'}

        import urllib3

        def put() -> Any:
            # Minio's own `put_object` takes no conditions; a signed URL takes any header beside it.
            url = self.client.presigned_put_object(self.bucket, self._key(name), timedelta(minutes=15))
            answer = urllib3.request("PUT", url, body=data, headers=condition, retries=False, timeout=20.0)
            if answer.status in (429, 500, 502, 503, 504):
                raise ConnectionError(f"answer {answer.status}")
            return answer

        answer = self._tried(name, put)
        if answer.status == 200:
            return str(answer.headers["etag"]).strip('"')
        if answer.status in (404, 409, 412):
            return None
        code = re.search(r"<Code>(\w+)</Code>", answer.data.decode(errors="replace"))
        raise_plainly(code[1] if code else f"answer {answer.status}", self._named(name))
        raise UserError(
            f"the store does not take conditional writes (answer {answer.status}{f', {code[1]}' if code else ''})",
            where=self._named(name),
            fix="use a store that does, such as MinIO or Amazon S3",
        )

    def tag(self, name: str) -> str | None:
        """What changes whenever an object is written again; None if there is none."""
        try:
            found = self._tried(name, lambda: self.client.stat_object(self.bucket, self._key(name)))
        except FileNotFoundError:
            return None
        return str(found.etag).strip('"')

    def upload(self, name: str, path: Path) -> None:
        self._tried(
            name,
            lambda: self.client.fput_object(self.bucket, self._key(name), str(path), part_size=PART_BYTES),
        )

    def download(self, name: str, path: Path) -> None:
        found = self.entry(name)
        if found is None:
            raise FileNotFoundError(self._named(name))
        with atomic(path) as file:
            for start in range(0, found.bytes, PART_BYTES):
                file.write(self.read(name, start, min(PART_BYTES, found.bytes - start)))

    def entry(self, name: str) -> Entry | None:
        try:
            found = self._tried(name, lambda: self.client.stat_object(self.bucket, self._key(name)))
        except FileNotFoundError:
            return None
        return Entry(name, int(found.size))

    def entries(self, under: str = "") -> Iterator[Entry]:
        start = f"{self.prefix}/" if self.prefix else ""
        listed = self._tried(
            under,
            lambda: list(self.client.list_objects(self.bucket, prefix=start + under, recursive=True)),
        )
        for found in listed:
            yield Entry(found.object_name.removeprefix(start), int(found.size or 0))

    def children(self, under: str = "") -> list[str]:
        start = self._key(under) + "/" if under or self.prefix else ""
        listed = self._tried(under, lambda: list(self.client.list_objects(self.bucket, prefix=start)))
        return sorted(found.object_name.removeprefix(start).rstrip("/") for found in listed)

    def remove(self, name: str) -> None:
        self._tried(name, lambda: self.client.remove_object(self.bucket, self._key(name)))

    def remove_all(self, under: str) -> None:
        for entry in self.entries(f"{under}/"):
            self.remove(entry.name)

    def make_bucket(self) -> None:
        """Makes the bucket where it is missing."""

        def make() -> None:
            if not self.client.bucket_exists(self.bucket):
                self.client.make_bucket(self.bucket)

        self._tried("", make)

    def check(self) -> None:
        start = f"{self.prefix}/" if self.prefix else ""
        try:
            self._tried("", lambda: next(self.client.list_objects(self.bucket, prefix=start), None))
        except Unreachable as error:
            raise UserError(
                str(error), where=self.address, fix="check AWS_ENDPOINT_URL, and that the store runs"
            ) from error

    def _key(self, name: str) -> str:
        return "/".join(part for part in (self.prefix, name) if part)

    def _named(self, name: str) -> str:
        return f"{self.address}/{name}" if name else self.address

    def _tried(self, name: str, request: Callable[[], T]) -> T:
        """Carries out a request, again after a fault that may pass; plain errors for the others."""
        from minio.error import S3Error
        from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

        tries = Retrying(
            retry=retry_if_exception(_may_pass),
            wait=wait_random_exponential(multiplier=0.2, max=5),
            stop=stop_after_delay(self.retry_seconds),
            reraise=True,
        )
        try:
            return tries(request)
        except S3Error as error:
            raise_plainly(error.code or "", self._named(name))
            raise
        except Exception as error:
            if not _may_pass(error):
                raise
            raise Unreachable(
                f"{self._named(name)} at {endpoint()} could not be reached for "
                f"{self.retry_seconds:.0f} s: {_first_line(error)}"
            ) from error


def _client() -> Any:
    import urllib3
    from minio import Minio
    from minio.credentials.providers import AWSConfigProvider, ChainedProvider, EnvAWSProvider

    url = urlsplit(endpoint())
    if not os.environ.get("AWS_ACCESS_KEY_ID") and not Path("~/.aws/credentials").expanduser().is_file():
        raise UserError(
            "there are no credentials for S3",
            where="AWS_ACCESS_KEY_ID",
            fix="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or write ~/.aws/credentials",
        )
    return Minio(
        url.netloc,
        secure=url.scheme == "https",
        region=os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1",
        credentials=ChainedProvider([EnvAWSProvider(), AWSConfigProvider()]),
        # Retries are ours, so that they are bounded by time and end with one message.
        http_client=urllib3.PoolManager(
            timeout=urllib3.Timeout(connect=5.0, read=TIMEOUT_SECONDS), retries=False, maxsize=32
        ),
    )


def _may_pass(error: BaseException) -> bool:
    import urllib3
    from minio.error import InvalidResponseError, S3Error, ServerError

    if isinstance(error, S3Error):
        return error.code in _TRANSIENT
    return isinstance(
        error,
        (urllib3.exceptions.HTTPError, InvalidResponseError, ServerError, ConnectionError, TimeoutError),
    )


def raise_plainly(code: str, where: str) -> None:
    """Raises what a store's error code means for a person, if it means anything."""
    if code in ("NoSuchKey", "NoSuchObject"):
        raise FileNotFoundError(where)
    if code in ("InvalidRange",):
        raise EOFError(f"{where} is shorter than what was asked for")
    if code in _NO_BUCKET:
        raise UserError("there is no such bucket", where=where, fix="make it, or name another one")
    if code in _EXPIRED:
        raise UserError(
            "the credentials have expired",
            where=where,
            fix="renew AWS_SESSION_TOKEN and its keys, then resume",
        )
    if code in _KEYS:
        raise UserError(
            f"the store refuses these credentials ({code})",
            where=where,
            fix="check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and their rights to this bucket",
        )


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0][:300]
