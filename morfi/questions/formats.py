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
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from morfi.errors import InputError
from morfi.questions.keys import KEYS, OPTIONAL_KEYS, unique_keys

READABLE = "JSON lines, a JSON list or Parquet, plain or as .gz, .bz2, .xz or .zst"

_PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_OTHER = {
    b"PK\x03\x04": "a ZIP archive (or a spreadsheet, which is one); unpack it and give the file inside",
    b"Rar!": "a RAR archive; unpack it and give the file inside",
    b"7z\xbc\xaf": "a 7z archive; unpack it and give the file inside",
    b"ARROW1": "an Arrow file; save it as Parquet",
    b"ORC": "an ORC file; save it as Parquet",
    b"Obj\x01": "an Avro file; save it as Parquet",
    b"SQLite format 3": "an SQLite database; export its questions as JSON lines",
    b"\x89HDF": "an HDF5 file; save it as Parquet",
    b"%PDF": "a PDF document",
    b"\xff\xfe": "UTF-16 text; save the file as UTF-8",
    b"\xfe\xff": "UTF-16 text; save the file as UTF-8",
    b"version https://git-lfs": "the pointer of Git LFS to a file, not the file; run `git lfs pull` there",
    b"<!DOCTYPE": "a web page, not the file that was to be downloaded; download it again",
    b"<!doctype": "a web page, not the file that was to be downloaded; download it again",
    b"<html": "a web page, not the file that was to be downloaded; download it again",
    b"<?xml": "XML; save the questions as JSON lines",
}
_PICKLES = tuple(bytes([0x80, version]) for version in range(2, 6))


def rows_of(path: Path) -> Iterator[tuple[str, Any]]:
    """Each row of a file, with where it stands, for messages; rows of JSON may be any JSON value.

    Raises InputError for a file of another kind, by name, and for one that is damaged.
    """
    with path.open("rb") as file:
        start = file.peek(512)[:512]
    if start.startswith(b"PAR1"):
        yield from _parquet_rows(path)
        return
    packing = next((name for magic, name in _PACKED.items() if start.startswith(magic)), None)
    if packing is None:
        _refuse_others(path, start)
    try:
        with _opened(path, packing) as file:
            yield from _json_rows(path, file, packing)
    except (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError) as error:
        raise _damaged(path, packing, error) from error
    except OSError as error:
        if packing is None or error.errno is not None:
            raise
        raise _damaged(path, packing, error) from error  # of bzip2 and of zstd


def _damaged(path: Path, packing: str | None, error: Exception) -> InputError:
    return InputError(f"{path}: {packing} data cut short or damaged ({error}); copy the file again")


def _refuse_others(path: Path, start: bytes) -> None:
    """Raises InputError for what surely is something else than text."""
    what = next((what for magic, what in _OTHER.items() if start.startswith(magic)), None)
    if what is None and start.startswith(_PICKLES):
        what = (
            "a Python pickle, which may run any program and is not opened; save the questions as JSON lines"
        )
    if what is None and start[8:12] == b"DUCK":
        what = "a DuckDB database; export its questions as JSON lines (a store of morfi goes to --db)"
    if what is None and start[257:262] == b"ustar":
        what = "a TAR archive; unpack it and give the file inside"
    if what is not None:
        raise InputError(f"{path} is {what}; expected {READABLE}")


def _opened(path: Path, packing: str | None) -> IO[bytes]:
    if packing == "gzip":
        return io.BufferedReader(gzip.open(path))
    if packing == "bzip2":
        return bz2.open(path)
    if packing == "xz":
        return lzma.open(path)
    if packing == "zstd":
        import pyarrow as pa

        return io.BufferedReader(pa.input_stream(str(path), compression="zstd"))
    return path.open("rb")


def _json_rows(path: Path, file: IO[bytes], packing: str | None) -> Iterator[tuple[str, Any]]:
    number, begun = 0, False
    try:
        for number, line in enumerate(file, 1):
            text = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if not text.strip():
                continue
            if not begun and text.lstrip().startswith(b"["):
                yield from _listed_rows(path, text + file.read())
                return
            begun = True
            yield f"{path}, line {number}", _value(path, text, number)
    except (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError) as error:
        raise InputError(
            f"{path}, line {number + 1}: {packing} data cut short or damaged ({error}); copy the file again"
        ) from error


def _listed_rows(path: Path, content: bytes) -> Iterator[tuple[str, Any]]:
    for number, value in enumerate(_parsed(content, str(path)), 1):
        yield f"{path}, entry {number}", value


def _value(path: Path, line: bytes, number: int) -> Any:
    where = f"{path}, line {number}"
    if number == 1 and line.strip() == b"{":
        raise InputError(
            f"{where}: a JSON object over several lines; expected one object on each line, or a list of them"
        )
    if number == 1 and not line.lstrip().startswith((b"{", b'"')) and (b"," in line or b"\t" in line):
        raise InputError(f"{where}: looks like comma- or tab-separated values; expected {READABLE}")
    return _parsed(line, where)


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
            f"({str(error).splitlines()[0]}); copy the file again"
        ) from error
