"""Images and sounds as rows have them: bytes, a path, or numbers. Nothing is decoded before it is asked for."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow
import pyarrow.compute

from adaptrain.errors import ConfigError, DataError
from adaptrain.tasks.bad_rows import Bad, Column

if TYPE_CHECKING:
    from adaptrain.tasks.rows import Split


_COMPUTE: Any = pyarrow.compute  # its functions are made when it is imported


class Unreadable(Exception):
    """A value that is no image or no sound: what to count it by, and what is the matter."""

    def __init__(self, reason: str, told: str) -> None:
        super().__init__(reason, told)
        self.reason, self.told = reason, told


@dataclass(frozen=True)
class Looked:
    """What is known of a value once it has been looked at.

    Attributes:
        mark: sha256 of its content; two values with one mark are the same.
        size: pixels of the longer side, or seconds.
    """

    mark: str
    size: float


class Media(Sequence[Any], ABC):
    """The images or sounds of a column, each made when it is asked for.

    Args:
        split: whose rows.
        role: that the column plays.

    Attributes:
        noun: what one of them is.
    """

    noun: str

    def __init__(self, split: Split, role: str) -> None:
        self.split, self.role, self.column = split, role, split.column(role)
        split.check(self.column, role)
        whole = self.column in split.table.column_names
        first, *within = [self.column] if whole else self.column.split(".")
        table: Any = split.table.select_columns([first]).with_format("arrow")[:]
        self._stored = table.column(first)
        for name in within:
            self._stored = _COMPUTE.struct_field(self._stored, name)

    def __len__(self) -> int:
        return len(self._stored)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[row] for row in range(*index.indices(len(self)))]
        try:
            return self.made(self._stored[index])
        except Unreadable as bad:
            raise DataError(self._told(index, bad)) from None

    @abstractmethod
    def made(self, value: pyarrow.Scalar) -> Any:
        """What a stored value stands for.

        Raises:
            Unreadable: it stands for nothing.
        """

    @abstractmethod
    def looked(self, value: pyarrow.Scalar) -> Looked:
        """Look at a stored value, to know that it can be made.

        Raises:
            Unreadable: it cannot.
        """

    def checked(self) -> Column:
        """The column, every value looked at once."""
        marks, sizes, bad = [], [], []
        for row in range(len(self)):
            try:
                looked = self.looked(self._stored[row])
            except Unreadable as found:
                bad.append(Bad(row + 1, found.reason, self._told(row, found)))
                looked = Looked("", 0.0)
            marks.append(looked.mark)
            sizes.append(looked.size)
        return Column(self, bad, marks, sizes)

    def files(self) -> Iterator[Path]:
        """The files that the rows name and do not have in them."""
        paths: Any = self._stored
        if pyarrow.types.is_struct(paths.type):
            names = {paths.type.field(index).name for index in range(paths.type.num_fields)}
            if "path" not in names:
                return
            if "bytes" in names:
                held = _COMPUTE.binary_length(_COMPUTE.struct_field(paths, "bytes"))
                paths = paths.filter(_COMPUTE.equal(_COMPUTE.fill_null(held, 0), 0))
            paths = _COMPUTE.struct_field(paths, "path")
        if pyarrow.types.is_string(paths.type) or pyarrow.types.is_large_string(paths.type):
            yield from (self._place(path) for path in paths.to_pylist() if path)

    def content(self, value: pyarrow.Scalar) -> tuple[bytes, str]:
        """The bytes of a file that a row has in it or names, and what to call it.

        Raises:
            Unreadable: there is none.
        """
        given: Any = value.as_py()
        given = {"path": given} if isinstance(given, str) else given
        if given is None or (isinstance(given, Mapping) and not given.get("bytes") and not given.get("path")):
            raise Unreadable(f"missing {self.noun}", "missing")
        if not isinstance(given, Mapping) or not {"bytes", "path"} & given.keys():
            raise Unreadable(f"{self.noun} of another type", f"{given!r:.60}, which is no {self.noun}")
        if given.get("bytes"):
            return given["bytes"], str(given.get("path") or f"{len(given['bytes'])} bytes")
        file = self._place(str(given["path"]))
        try:
            return file.read_bytes(), str(given["path"])
        except FileNotFoundError:
            raise Unreadable(f"missing {self.noun} file", f"{given['path']}, and there is no file {file}") from None
        except OSError as error:
            told = f"{given['path']}, which cannot be read ({error.strerror})"
            raise Unreadable(f"missing {self.noun} file", told) from None

    def broken(self, name: str, error: Exception | str) -> Unreadable:
        """The error of a file that does not open."""
        told = str(error).strip().splitlines() or [type(error).__name__]
        return Unreadable(f"{self.noun} that does not open", f"{name}, which does not open ({told[0]:.120})")

    def _place(self, path: str) -> Path:
        """Where a path of a row points: relative ones from the folder of the data file."""
        given, home = Path(path).expanduser(), self.split.home or Path()
        found = home / given
        return found if found.exists() or not (home / "data" / given).exists() else home / "data" / given

    def _told(self, row: int, bad: Unreadable) -> str:
        where = self.split.where(row + 1)
        return f"{where}: the {self.role} in column '{self.column}' is {bad.told}. Correct the row"


class Made(Sequence[Any]):
    """What a function makes of values, each when it is asked for.

    Args:
        values: of any length.
        make: of one of them.
    """

    def __init__(self, values: Sequence[Any], make: Any) -> None:
        self.values, self.make = values, make

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self.make(value) for value in self.values[index]]
        return self.make(self.values[index])

    def __iter__(self) -> Iterator[Any]:
        return (self.make(value) for value in self.values)


def digest(*parts: bytes) -> str:
    """sha256 of some bytes."""
    found = hashlib.sha256()
    for part in parts:
        found.update(part)
    return found.hexdigest()


def need(package: str, extra: str, what: str) -> None:
    """Refuse to go on without a package.

    Args:
        package: as `import` calls it.
        extra: of adaptrain, which installs it.
        what: it is for.

    Raises:
        ConfigError: it is not installed.
    """
    if find_spec(package) is None:
        raise ConfigError(
            f"{what} needs the package {package}, which is not installed: pip install 'adaptrain[{extra}]'"
        )
