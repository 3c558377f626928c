"""The rows of a question file: JSON lines, a JSON list or Parquet, also compressed; all else is named.

What a file is shows in its first bytes, whatever it is called.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from morfi.errors import InputError, reason_of
from morfi.questions.keys import KEYS, OPTIONAL_KEYS, unique_keys

READABLE = "JSON lines, a JSON list or Parquet, plain or as .gz, .bz2, .xz or .zst"

_PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_OTHER = {
    b"\x04\x22\x4d\x18": "LZ4 data; unpack it and give the file inside",
    b"]\0\0": "LZMA data of before .xz; unpack it and give the file inside",
    b"\x1f\x9d": "data of `compress` (.Z); unpack it and give the file inside",
    b"PK\x03\x04": "a ZIP archive (or a spreadsheet, which is one); unpack it and give the file inside",
    b"Rar!": "a RAR archive; unpack it and give the file inside",
    b"7z\xbc\xaf": "a 7z archive; unpack it and give the file inside",
    b"ARROW1": "an Arrow file; save it as Parquet",
    b"ORC": "an ORC file; save it as Parquet",
    b"Obj\x01": "an Avro file; save it as Parquet",
    b"SQLite format 3": "an SQLite database; export its questions as JSON lines",
    b"\x89HDF": "an HDF5 file; save it as Parquet",
    b"%PDF": "a PDF document",
    b"version https://git-lfs": "the pointer of Git LFS to a file, not the file; run `git lfs pull` there",
    b"<!DOCTYPE": "a web page, not the file that was to be downloaded; download it again",
    b"<!doctype": "a web page, not the file that was to be downloaded; download it again",
    b"<html": "a web page, not the file that was to be downloaded; download it again",
    b"<?xml": "XML; save the questions as JSON lines",
}
_PARQUET = b"PAR1"
_PICKLES = tuple(bytes([0x80, version]) for version in range(2, 6))


def rows_of(path: Path) -> Iterator[tuple[str, Any]]:
    """Each row of a file, with where it stands, for messages; rows of JSON may be any JSON value.

    Raises InputError for a file of another kind, by name, and for one that is damaged.
    """
    with path.open("rb") as packed:
        start = packed.peek(512)[:512]
        if start.startswith(_PARQUET):
            yield from _parquet_rows(path)
            return
        packing = _packing(start)
        if packing is None:
            _refuse_others(str(path), start)
            yield from _json_rows(path, packed, packing)
            return
        try:
            with _unpacked(packed, packing) as file:
                start = file.peek(512)[:512]
                inside = f"{path}, unpacked from {packing},"
                if start.startswith(_PARQUET) or (again := _packing(start)):
                    what = "Parquet" if start.startswith(_PARQUET) else f"{again} data"
                    raise InputError(f"{inside} is {what}; unpack it and give the file inside")
                _refuse_others(inside, start)
                yield from _json_rows(path, file, packing)
        except (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError) as error:
            raise _damaged(str(path), packing, error) from error
        except OSError as error:
            if error.errno is not None:
                raise
            raise _damaged(str(path), packing, error) from error  # of bzip2 and of zstd


def _packing(start: bytes) -> str | None:
    return next((name for magic, name in _PACKED.items() if start.startswith(magic)), None)


def _damaged(where: str, packing: str, error: Exception) -> InputError:
    return InputError(f"{where}: {packing} data cut short or damaged ({error}); copy the file again")


def _refuse_others(file: str, start: bytes) -> None:
    """Raises InputError for what surely is something else than text in UTF-8."""
    what = next((what for magic, what in _OTHER.items() if start.startswith(magic)), None)
    if what is None and start.startswith(_PICKLES):
        what = (
            "a Python pickle, which may run any program and is not opened; save the questions as JSON lines"
        )
    if what is None and start[8:12] == b"DUCK":
        what = "a DuckDB database; export its questions as JSON lines (a store of morfi goes to --db)"
    if what is None and start[257:262] == b"ustar":
        what = "a TAR archive; unpack it and give the file inside"
    if what is None and not (encoding := json.detect_encoding(start)).startswith("utf-8"):
        what = f"{encoding[:6].upper()} text; save the file as UTF-8"
    if what is not None:
        raise InputError(f"{file} is {what}; expected {READABLE}")


def _unpacked(file: IO[bytes], packing: str) -> io.BufferedReader:
    if packing == "gzip":
        return io.BufferedReader(gzip.open(file))
    if packing == "bzip2":
        return io.BufferedReader(_Members(file, bz2.BZ2Decompressor))
    if packing == "xz":
        return io.BufferedReader(_Members(file, lzma.LZMADecompressor))
    import pyarrow as pa

    return io.BufferedReader(pa.input_stream(file, compression="zstd"))


class _Members(io.RawIOBase):
    """The content of all members of a bzip2 or xz file; anything else after them is an error.

    The readers of the standard library pass over that, were it rows.
    """

    def __init__(
        self, file: IO[bytes], new: Callable[[], bz2.BZ2Decompressor | lzma.LZMADecompressor]
    ) -> None:
        self._file, self._new, self._member = file, new, new()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        given = b""
        while not given:
            packed = b""
            if self._member.eof:
                packed = self._member.unused_data or self._file.read(io.DEFAULT_BUFFER_SIZE)
                if not packed:
                    return 0
                self._member = self._new()
            elif self._member.needs_input and not (packed := self._file.read(io.DEFAULT_BUFFER_SIZE)):
                raise EOFError("it ends inside a member")
            given = self._member.decompress(packed, len(buffer))
        buffer[: len(given)] = given
        return len(given)


def _json_rows(path: Path, file: IO[bytes], packing: str | None) -> Iterator[tuple[str, Any]]:
    number, begun = 0, False
    try:
        for part in file:  # a line, or all of them where they end with \r alone
            text = part if number else part.removeprefix(b"\xef\xbb\xbf")
            if not begun and text.lstrip().startswith(b"["):
                yield from _listed_rows(path, text + file.read())
                return
            for line in text.splitlines():
                number += 1
                if line.strip():
                    where = f"{path}, line {number}"
                    value = _parsed(line, where) if begun else _first(line, where, text, file)
                    begun = True
                    yield where, value
    except (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError) as error:
        raise _damaged(f"{path}, line {number + 1}", str(packing), error) from error


def _listed_rows(path: Path, content: bytes) -> Iterator[tuple[str, Any]]:
    for number, value in enumerate(_parsed(content, str(path)), 1):
        yield f"{path}, entry {number}", value


def _first(line: bytes, where: str, text: bytes, file: IO[bytes]) -> Any:
    """The first row; `text` and what is left of `file` are all of it.

    Raises InputError for JSON of another layout, and for what looks like CSV, by name.
    """
    opened = line.lstrip().startswith(b"{")
    if not opened and not line.lstrip().startswith(b'"') and (b"," in line or b"\t" in line):
        raise InputError(f"{where}: looks like comma- or tab-separated values; expected {READABLE}")
    try:
        value = _parsed(line, where)
    except InputError:
        spread = _object(text + file.read()) if opened and _object(line) is None else None
        _refuse_wrapped(where, spread)
        if spread is None and line.strip() != b"{":
            raise
        raise InputError(
            f"{where}: a JSON object over several lines; expected one object on each line, or a list of them"
        ) from None
    _refuse_wrapped(where, value)
    return value


def _object(content: bytes) -> Any:
    """The JSON value that `content` is; None where it is none."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def _refuse_wrapped(where: str, value: Any) -> None:
    """Raises InputError for a JSON object that holds lists of questions."""
    lists = value.items() if isinstance(value, dict) else ()
    holding = [
        f'"{key}"'
        for key, rows in lists
        if isinstance(rows, list) and rows and isinstance(rows[0], dict) and "question" in rows[0]
    ]
    if holding:
        raise InputError(
            f"{where}: a JSON object that holds its questions in {', '.join(holding)}; expected them alone, "
            "as a list or one on each line"
        )


def _parsed(content: bytes, where: str) -> Any:
    try:
        return json.loads(content.decode(), object_pairs_hook=unique_keys)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: byte {error.start + 1} is not UTF-8; save the file as UTF-8") from error
    except json.JSONDecodeError as error:
        place = f", line {error.lineno}" if content.count(b"\n") > 1 else ""
        raise InputError(f"{where}{place}, column {error.colno}: not valid JSON ({error.msg})") from error
    except (RecursionError, ValueError) as error:
        raise InputError(f"{where}: JSON nested too deeply or a number too long") from error


def _refuse_twice(path: Path, names: list[str]) -> None:
    twice = next((name for name in (*KEYS, *OPTIONAL_KEYS) if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f'{path}: the column "{twice}" stands twice; give it once')


def _parquet_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Rows of a Parquet file; a key that a row lacks is NULL there, and left out here.

    Of columns that are not read the names are given, with ... for every value: Python may not hold those.
    """
    import pyarrow as pa
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            _refuse_twice(path, names)
            read = [name for name in names if name in (*KEYS, *OPTIONAL_KEYS)]
            others = dict.fromkeys([name for name in names if name not in read], ...)
            for batch in file.iter_batches(4096, columns=read):
                for row in batch.to_pylist() if read else [{}] * batch.num_rows:
                    number += 1
                    given = {key: value for key, value in row.items() if value is not None}
                    yield f"{path}, row {number}", given | others
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise InputError(
            f"{path}, after row {number}: Parquet data cut short or damaged "
            f"({reason_of(error)}); copy the file again"
        ) from error
