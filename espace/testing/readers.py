"""Laws of readers."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

from espace.contracts import Reader
from espace.errors import DataError
from espace.testing.law import law

if TYPE_CHECKING:
    from typing_extensions import Self

_ABSENT = "no_such_column"


class _Schema(Protocol):
    def equals(self, other: Self, /) -> bool: ...


class _Table(Protocol):
    """What is used here of a pyarrow table."""

    @property
    def schema(self) -> _Schema: ...

    def to_pylist(self) -> list[dict[str, object]]: ...


class ReaderTests:
    """Laws of a reader. Set `reader` and `options`, and say in `source` where rows are."""

    reader: ClassVar[Callable[..., Reader]]
    options: ClassVar[Mapping[str, object]] = {}

    def source(self, folder: Path, rows: int) -> object:
        """What the YAML would say under `train`, for about so many rows, which may be written into `folder`."""
        raise NotImplementedError("say where rows are: def source(self, folder, rows): ...")

    def build(self, folder: Path, rows: int = 200) -> Reader:
        """A reader of these rows."""
        return self._of(self.source(folder, rows))

    def _of(self, source: object) -> Reader:
        return type(self).reader(source, "train", **self.options)

    def test_a_piece_has_the_rows_that_it_promises(self, tmp_path: Path) -> None:
        reader = self.build(tmp_path)
        assert sum(piece.rows for piece in reader.pieces) > 0, "there are pieces, and rows in them"
        for piece in reader.pieces:
            found = reader.read(piece, reader.schema.names).num_rows
            assert found == piece.rows, f"a piece has the rows that it promises: {piece.rows:,}, not {found:,}"

    def test_what_is_read_has_the_schema(self, tmp_path: Path) -> None:
        reader = self.build(tmp_path)
        for piece in reader.pieces:
            schema = reader.read(piece, reader.schema.names).schema
            told = f"every piece has the columns and types of reader.schema; {piece} has\n{schema}\nand not\n"
            assert schema.equals(reader.schema), f"{told}{reader.schema}"

    def test_only_the_named_columns_are_read(self, tmp_path: Path) -> None:
        reader = self.build(tmp_path)
        piece, names = reader.pieces[0], reader.schema.names
        whole = reader.read(piece, names)
        for some in [[name] for name in names] + [names[::2], names[1:]]:
            if some:
                same = _alike(reader.read(piece, some), whole.select(some))
                assert same, "read gives the named columns, in their order, and nothing else"

    def test_a_piece_is_always_the_same(self, tmp_path: Path) -> None:
        source = self.source(tmp_path, 200)
        reader, other = self._of(source), self._of(source)
        assert [str(p) for p in reader.pieces] == [str(p) for p in other.pieces], "pieces are always the same"
        first = [reader.read(piece, reader.schema.names) for piece in reader.pieces]
        backwards = [other.read(piece, other.schema.names) for piece in reversed(other.pieces)]
        again = [reader.read(piece, reader.schema.names) for piece in reader.pieces]
        same = all(_alike(a, b) and _alike(a, c) for a, b, c in zip(first, reversed(backwards), again, strict=True))
        assert same, "a piece has the same rows whenever it is read, whatever was read before it"

    def test_the_fingerprint_is_that_of_the_content(self, tmp_path: Path) -> None:
        folders = [tmp_path / name for name in ("one", "other")]
        for folder in folders:
            folder.mkdir()
        source, other = (self.source(folder, rows) for folder, rows in zip(folders, (200, 300), strict=True))
        reader = self._of(source)
        assert isinstance(reader.fingerprint, str), "the fingerprint is a text"
        assert reader.fingerprint == self._of(source).fingerprint, "the same source has the same fingerprint each time"
        assert reader.fingerprint != self._of(other).fingerprint, "another content has another fingerprint"

    def test_a_missing_column_is_a_data_error_that_names_it(self, tmp_path: Path) -> None:
        reader = self.build(tmp_path)
        names = [reader.schema.names[0], _ABSENT]
        error = _raised(lambda: reader.read(reader.pieces[0], names))
        named = isinstance(error, DataError) and _ABSENT in str(error)
        assert named, f"a column that is not there is a DataError that names it, not {error!r}"

    def test_can_be_sent_to_another_process(self, tmp_path: Path) -> None:
        reader = self.build(tmp_path)
        piece, names = reader.pieces[0], reader.schema.names
        reader.read(piece, names)
        told = "a reader can be pickled and reads the same in another process"
        with law(told):
            sent = pickle.loads(pickle.dumps(reader))
            same = _alike(sent.read(piece, names), reader.read(piece, names))
        assert same, told


def _alike(one: _Table, other: _Table) -> bool:
    """Whether two tables have the same columns, types and rows; to `equals`, NaN is not NaN."""
    return bool(one.schema.equals(other.schema)) and repr(one.to_pylist()) == repr(other.to_pylist())


def _raised(action: Callable[[], object]) -> Exception | None:
    """What it raises, None for nothing."""
    try:
        action()
    except Exception as error:
        return error
    return None
