"""Writing the report of an experiment: an HTML file that asks no server for anything, or Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from morfi.errors import InputError
from morfi.files import unwritten, whole_file
from morfi.report.document.answer import answer_of
from morfi.report.document.drawings import colours_of
from morfi.report.document.figures import figures_of
from morfi.report.document.html import document
from morfi.report.document.markdown import page
from morfi.report.document.material import Material
from morfi.report.document.provenance import cost, repeat, settings
from morfi.report.document.sections import SECTIONS
from morfi.report.findings import experiment_of

if TYPE_CHECKING:
    from morfi.store import Store


def write_report(store: Store, run_id: str, out: Path | None, pictures: Path | None = None) -> Path:
    """Writes the report of the experiment that ends with a run, and returns its path.

    `run_id` is as in `Store.run`; `out` None is a file named by the run, beside the database. The same runs
    give the same bytes. Its pictures are also written to the folder `pictures`, each as PNG and SVG. Raises
    InputError for a run that is no part of an experiment, or where there is no place to write, and
    MorfiError for a full disk.
    """
    material = Material(experiment_of(store, run_id))
    chain = material.chain
    sections = [one for make in (*SECTIONS, settings, cost, repeat) if (one := make(material)) is not None]
    title = f"{chain.last.base or chain.last.ckpt} on {chain.last.data}"
    path = out or store.path.parent / f"{chain.last.run_id}.html"
    colours = colours_of("".join(one.body for one in sections))
    _written(path, document(title, answer_of(material), sections, colours))
    if pictures is not None:
        try:
            pictures.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{pictures}: {error.strerror or error}; give another --pictures") from error
        for each in figures_of(material):
            each.picture.write(pictures / each.name)
    return path


def write_as(
    form: str, store: Store, run_ids: Sequence[str], out: Path | None, pictures: Path | None = None
) -> Path:
    """Writes the experiments that end with these runs as "html" or "md", and returns the path.

    Raises InputError for another form, for several experiments in HTML, and for pictures of Markdown.
    """
    if form == "md" and pictures is not None:
        raise InputError("--pictures are those of the page in HTML; leave it out, or leave --format md out")
    if form == "md":
        return write_markdown(store, run_ids, out)
    if form != "html":
        raise InputError(f'--format "{form}" is none of html, md')
    if len(run_ids) > 1:
        raise InputError(
            f"{len(run_ids)} runs in one page of HTML; give one, or --format md for a table of all"
        )
    return write_report(store, run_ids[0], out, pictures)


def write_markdown(store: Store, run_ids: Sequence[str], out: Path | None) -> Path:
    """Writes a page in Markdown on the experiments that end with these runs, and returns its path.

    `out` None is a file named by the last run, beside the database; else as `write_report`.
    """
    experiments = [experiment_of(store, run_id) for run_id in run_ids]
    path = out or store.path.parent / f"{experiments[-1].chain.last.run_id}.md"
    return _written(path, page(experiments))


def _written(path: Path, content: str) -> Path:
    try:
        with whole_file(path) as file:
            file.write(content.encode("utf-8"))
    except OSError as error:
        reason = error.strerror or error
        raise unwritten(
            f"{path}: cannot be written: {reason}; make room or make it writable, or give `morfi report` "
            "another --out",
            error,
        ) from error
    return path
