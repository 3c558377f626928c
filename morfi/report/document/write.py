"""Writing the report of an experiment: one HTML file that asks no server for anything."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from morfi.errors import InputError
from morfi.files import whole_file
from morfi.interventions.outcome import steered
from morfi.report.document.answer import answer_of
from morfi.report.document.chain import chain_of
from morfi.report.document.drawings import colours_of
from morfi.report.document.figures import figures_of
from morfi.report.document.html import document
from morfi.report.document.material import Material
from morfi.report.document.provenance import cost, repeat, settings
from morfi.report.document.sections import SECTIONS

if TYPE_CHECKING:
    from morfi.store import Store


def write_report(store: Store, run_id: str, out: Path | None, pictures: Path | None = None) -> Path:
    """Writes the report of the experiment that ends with a run, and returns its path.

    `run_id` is as in `Store.run`; `out` None is a file named by the run, beside the database. The same runs
    give the same bytes. Its pictures are also written to the folder `pictures`, each as PNG and SVG. Raises
    InputError for a run that is no part of an experiment, or where there is no place to write.
    """
    chain = chain_of(store, run_id)
    found = steered(store, chain.steer) if chain.steer is not None else None
    material = Material(store, chain, found)
    sections = [one for make in (*SECTIONS, settings, cost, repeat) if (one := make(material)) is not None]
    title = f"{chain.last.base or chain.last.ckpt} on {chain.last.data}"
    path = out or store.path.parent / f"{chain.last.run_id}.html"
    colours = colours_of("".join(one.body for one in sections))
    content = document(title, answer_of(material), sections, colours)
    try:
        with whole_file(path) as file:
            file.write(content.encode("utf-8"))
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written: {error.strerror or error}; give another --out"
        ) from error
    if pictures is not None:
        try:
            pictures.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{pictures}: {error.strerror or error}; give another --pictures") from error
        for each in figures_of(material):
            each.picture.write(pictures / each.name)
    return path
