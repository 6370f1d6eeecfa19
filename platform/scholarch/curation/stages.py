"""Results of the steps of a curation, in the run's prefix: versioned, checksummed, with their lineage.

steps/NAME-KEY/result.json   written last: what makes the result exist
steps/NAME-KEY/...           its files
steps/NAME-KEY/work/...      what a step that was interrupted goes on from

The key is a digest of the step's parameters and of the keys of what it was made from.
"""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from pydantic import BaseModel, ConfigDict, ValidationError

from scholarch import __version__
from scholarch.curation.vectors import Item, Mapper, Shared
from scholarch.data.manifest import FilePart
from scholarch.errors import UserError
from scholarch.storage.objects import Objects, joined

RESULT = "result.json"
_WORK = "work"


class Result(BaseModel):
    """A finished step.

    Attributes:
        step: its name.
        key: equal when the same would come out again.
        inputs: keys of the results that it was made from, and fingerprints of data, by name.
        parameters: of the recipe.
        code: version of scholarch.
        finished: time.
        seconds: of the last call; what an interrupted one took is not in it.
        counts: pictures in and out, and what else is worth knowing.
        named: such as broken pictures and why.
        files: by name.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["scholarch-step-1"] = "scholarch-step-1"
    step: str
    key: str
    inputs: dict[str, str]
    parameters: dict[str, Any]
    code: str
    finished: str
    seconds: float
    counts: dict[str, int | float]
    named: tuple[str, ...] = ()
    files: tuple[FilePart, ...]


class Stage:
    """One step's place in the run's prefix.

    Args:
        run: the run's objects.
        step: name of the step.
        inputs, parameters: see Result; they make the key.
    """

    def __init__(
        self, run: Objects, step: str, inputs: Mapping[str, str], parameters: Mapping[str, Any]
    ) -> None:
        self.run, self.step, self.inputs, self.parameters = run, step, dict(inputs), dict(parameters)
        told = json.dumps([step, self.inputs, self.parameters], sort_keys=True)
        self.key = hashlib.sha256(told.encode()).hexdigest()
        self.folder = f"steps/{step.replace('/', '-')}-{self.key[:12]}"
        self._began = time.monotonic()
        self._written: dict[str, FilePart] = {}

    @property
    def address(self) -> str:
        """Of its folder."""
        return joined(self.run.address, self.folder)

    def finished(self) -> Result | None:
        """The result, if it is there and none of its files is missing or of another size.

        Raises:
            UserError: if it is damaged.
        """
        try:
            text = self.run.read(self._name(RESULT))
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            result = Result.model_validate_json(text)
        except ValidationError as error:
            raise self._damaged(RESULT, str(error.errors()[0]["msg"])) from error
        there = {entry.name: entry.bytes for entry in self.run.entries(f"{self.folder}/")}
        for part in result.files:
            if there.get(self._name(part.name)) != part.bytes:
                raise self._damaged(part.name, "is missing, or has another size")
        return result

    def write(self, name: str, data: bytes) -> FilePart:
        """A file of the result."""
        self.run.write(self._name(name), data)
        self._written[name] = FilePart(name=name, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
        return self._written[name]

    def add(self, part: FilePart) -> None:
        """A file that a worker has written."""
        self._written[part.name] = part

    def save(self, name: str, **arrays: ArrayLike) -> None:
        """Arrays as a file of the result, `NAME.npz`."""
        self.write(f"{name}.npz", to_bytes(arrays))

    def load(self, name: str) -> dict[str, np.ndarray]:
        """Arrays of the result.

        Raises:
            UserError: if the file is not what was written.
        """
        result = self.finished()
        part = next(part for part in result.files if part.name == f"{name}.npz") if result else None
        data = self.run.read(self._name(f"{name}.npz"))
        if part is None or hashlib.sha256(data).hexdigest() != part.sha256:
            raise self._damaged(f"{name}.npz", "is not what was written")
        return from_bytes(data)

    def keep(self, name: str, **arrays: ArrayLike) -> None:
        """Arrays to go on from after an interruption."""
        self.run.write(self._name(f"{_WORK}/{name}.npz"), to_bytes(arrays))

    def kept(self, name: str) -> dict[str, np.ndarray] | None:
        """What was kept under this name; None if nothing was."""
        try:
            return from_bytes(self.run.read(self._name(f"{_WORK}/{name}.npz")))
        except FileNotFoundError:
            return None

    def commit(self, counts: Mapping[str, int | float], named: Iterable[str] = ()) -> Result:
        """Makes the result exist, and clears what was kept."""
        result = Result(
            step=self.step,
            key=self.key,
            inputs=self.inputs,
            parameters=self.parameters,
            code=__version__,
            finished=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            seconds=round(time.monotonic() - self._began, 3),
            counts=dict(counts),
            named=tuple(named),
            files=tuple(self._written[name] for name in sorted(self._written)),
        )
        self.run.write(self._name(RESULT), result.model_dump_json(indent=1).encode())
        self.run.remove_all(self._name(_WORK))
        return result

    def keeping(self, mapper: Mapper, name: str) -> Mapper:
        """A mapper of functions that give tuples of arrays; what was given before an interruption is kept."""

        def mapped(
            function: Callable[[Shared, Item], Any], shared: Shared, items: Iterable[Item]
        ) -> Iterator[Any]:
            every = list(items)
            known = {number: self.kept(f"{name}-{number:06d}") for number in range(len(every))}
            todo = [number for number, found in known.items() if found is None]
            fresh = mapper(function, shared, [every[number] for number in todo])
            for number in range(len(every)):
                if (found := known.pop(number)) is not None:
                    yield tuple(found.values())
                    continue
                arrays = next(fresh)
                self.keep(f"{name}-{number:06d}", **{str(i): a for i, a in enumerate(arrays)})
                yield arrays

        return mapped

    def _name(self, name: str) -> str:
        return f"{self.folder}/{name}"

    def _damaged(self, name: str, what: str) -> UserError:
        return UserError(
            what, where=f"{self.address}/{name}", fix=f"remove {self.address} and give the command again"
        )


def to_bytes(arrays: Mapping[str, ArrayLike]) -> bytes:
    """Arrays as the bytes of an .npz file."""
    file = io.BytesIO()
    np.savez(file, **dict(arrays))  # type: ignore[arg-type]
    return file.getvalue()


def from_bytes(data: bytes) -> dict[str, np.ndarray]:
    """The reverse of `to_bytes`."""
    with np.load(io.BytesIO(data)) as file:
        return {name: file[name] for name in file.files}
