from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from morfi.conditions.levels import SHARE_UNKNOWN
from morfi.errors import InputError
from morfi.report.sweep_figure import sweep_figure
from morfi.statistics import wilson_interval
from morfi.store.records import SweepAccuracy

SVG = "{http://www.w3.org/2000/svg}"
LEVELS, SETTINGS = (0, 20, 60, 100), ("1", "5", "early-stop")


def accuracy(level: int | None, setting: str | None, questions: str, n_correct: int) -> SweepAccuracy:
    interval = wilson_interval(n_correct, 100)
    return SweepAccuracy(
        level, setting, questions, 1, 100, n_correct, n_correct / 100, interval.low, interval.high
    )


def rows(*, train: bool = True) -> list[SweepAccuracy]:
    found = [accuracy(None, None, "test Known", 37)]
    for number, setting in enumerate(SETTINGS):
        found += [accuracy(level, setting, "test Known", 90 - level // 3 - number) for level in LEVELS]
        if train:
            found += [accuracy(level, setting, "train Unknown", 20 + 9 * number) for level in LEVELS[1:]]
    return found


def texts(path: Path) -> list[str]:
    return [str(text.text) for text in ElementTree.parse(path).iter(f"{SVG}text")]


def pieces(path: Path) -> list[list[int]]:
    """For every panel and line of a checkpoint in it, the number of pieces that gaps leave of the line."""
    panels = [g for g in ElementTree.parse(path).iter(f"{SVG}g") if g.get("id", "").startswith("axes_")]
    found = []
    for panel in panels:
        paths = [path for group in panel.findall(f"{SVG}g") for path in group.findall(f"{SVG}path")]
        styles = [(path.get("d", ""), path.get("style", "")) for path in paths]
        lines = [d for d, style in styles if "stroke-width: 1.5" in style and "dasharray" not in style]
        found.append([line.count("M") for line in lines])
    return found


@pytest.mark.long
def test_the_same_rows_in_any_order_give_the_same_bytes_in_another_process(tmp_path: Path) -> None:
    one = sweep_figure(rows(), SHARE_UNKNOWN, "M & D").write(tmp_path / "one")
    shuffled = rows()
    random.Random(3).shuffle(shuffled)
    two = sweep_figure(shuffled, SHARE_UNKNOWN, "M & D").write(tmp_path / "two.svg")
    assert [path.name for path in (*one, *two)] == ["one.png", "one.svg", "two.png", "two.svg"]
    assert one[0].read_bytes() == two[0].read_bytes()
    assert one[1].read_bytes() == two[1].read_bytes()
    (tmp_path / "matplotlibrc").write_text("axes.facecolor: red\nlines.linewidth: 9\n")
    program = (
        "import sys, pathlib; sys.path.append(sys.argv[1]); import test_sweep_figure as t\n"
        "t.sweep_figure(t.rows(), t.SHARE_UNKNOWN, 'M & D').write(pathlib.Path('three'))"
    )
    subprocess.run(
        [sys.executable, "-P", "-c", program, str(Path(__file__).parent)], check=True, cwd=tmp_path
    )
    assert (tmp_path / "three.svg").read_bytes() == one[1].read_bytes()
    assert (tmp_path / "three.png").read_bytes() == one[0].read_bytes()


def test_the_picture_names_levels_settings_and_groups(tmp_path: Path) -> None:
    found = texts(sweep_figure(rows(), SHARE_UNKNOWN, "Tiny on $facts$ <1>").write(tmp_path / "sweep")[1])
    assert "Tiny on $facts$ <1>" in found
    for label in ("base model", "1 epoch", "5 epochs", "early-stop"):
        assert found.count(label) == 1
    for level in LEVELS:
        assert str(level) in found
    assert {"closed-book accuracy (%)", "share of Unknown in training (%)"} <= set(found)
    assert any(text.startswith("Unknown training questions") for text in found)


def test_there_is_one_line_an_epoch_setting_and_a_missing_checkpoint_breaks_it(tmp_path: Path) -> None:
    _, whole = sweep_figure(rows(), SHARE_UNKNOWN, "x").write(tmp_path / "whole")
    assert pieces(whole) == [[1, 1, 1], [1, 1, 1]]
    some = [row for row in rows() if (row.epoch_setting, row.level) != ("5", 60)]
    assert pieces(sweep_figure(some, SHARE_UNKNOWN, "x").write(tmp_path / "some")[1])[0] == [1, 2, 1]
    kept = [row for row in rows() if (row.epoch_setting, row.questions) != ("1", "train Unknown")]
    assert pieces(sweep_figure(kept, SHARE_UNKNOWN, "x").write(tmp_path / "kept")[1]) == [[1, 1, 1], [1, 1]]


def test_without_training_questions_there_is_one_panel(tmp_path: Path) -> None:
    found = texts(sweep_figure(rows(train=False), SHARE_UNKNOWN, "x").write(tmp_path / "sweep")[1])
    assert found.count("share of Unknown in training (%)") == 1
    assert not any(text.startswith("Unknown training questions") for text in found)
    png = (tmp_path / "sweep.png").read_bytes()
    assert png.startswith(b"\x89PNG")


def test_other_numbers_give_another_picture(tmp_path: Path) -> None:
    one = sweep_figure(rows(), SHARE_UNKNOWN, "x").write(tmp_path / "one")
    changed = [*rows()[:-1], accuracy(LEVELS[-1], SETTINGS[-1], "train Unknown", 99)]
    two = sweep_figure(changed, SHARE_UNKNOWN, "x").write(tmp_path / "two")
    assert one[0].read_bytes() != two[0].read_bytes()


@pytest.mark.parametrize("suffix", ["", ".png", ".svg"])
def test_both_files_stand_beside_each_other_whatever_ending_is_given(suffix: str, tmp_path: Path) -> None:
    png, svg = sweep_figure(rows(train=False), SHARE_UNKNOWN, "x").write(tmp_path / f"sweep-v1.5{suffix}")
    assert (png.name, svg.name) == ("sweep-v1.5.png", "sweep-v1.5.svg")
    assert sorted(path.name for path in tmp_path.iterdir()) == [png.name, svg.name]


def test_rows_that_no_panel_shows_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    for nothing in ([], [accuracy(0, "1", "test Unknown", 3)]):
        with pytest.raises(InputError, match="nothing to draw"):
            sweep_figure(nothing, SHARE_UNKNOWN, "x").write(tmp_path / "sweep")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written: No such file or directory") as caught:
        sweep_figure(rows(train=False), SHARE_UNKNOWN, "x").write(tmp_path / "absent" / "sweep")
    assert "\n" not in str(caught.value)


def test_importing_the_figure_loads_no_matplotlib_and_drawing_no_pyplot(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib, morfi.report.sweep_figure as figure; before = 'matplotlib' in sys.modules\n"
        "sys.path.append(sys.argv[1]); import test_sweep_figure as t\n"
        "t.sweep_figure(t.rows(train=False), t.SHARE_UNKNOWN, 'x').write(pathlib.Path(sys.argv[2]) / 'x')\n"
        "print(before, 'matplotlib.pyplot' in sys.modules)"
    )
    command = [sys.executable, "-P", "-c", program, str(Path(__file__).parent), str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False", "False"]
