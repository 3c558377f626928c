"""Run by test_expand.py, with TRITON_INTERPRET=1 or on a GPU: the tables of a pass made both ways.

The device is the first argument.
"""

from __future__ import annotations

import copy
import json
import random
import sys
from dataclasses import fields

import torch

from morfi.kernels.expand import ENDLESS, Part, Record, expand_, expand_reference
from morfi.kernels.residual import Tables, make_tables

DEVICE = torch.device(sys.argv[1])
N_LAYERS, N_TOKENS, N_ENTRIES, N_CAPTURED = 5, 300, 4, 2
NUMBER = 7


def bits(value: float) -> int:
    return int(torch.tensor(value).view(torch.int32))


def draw_records(draw: random.Random) -> tuple[list[Record], list[Record]]:
    """Entries of a request, each at spans of its own, and the spans that it captures."""
    entries = []
    for layer in range(draw.randrange(N_ENTRIES + 1)):
        first, is_endless = 0, draw.random() < 0.5
        for number in range(draw.randrange(1, 4), 0, -1):
            first += draw.randrange(9)
            stop = ENDLESS if number == 1 and is_endless else first + draw.randrange(1, 30)
            what = layer, draw.randrange(9), draw.randrange(6), bits(draw.gauss(0, 1)), bits(draw.gauss(0, 1))
            entries.append(Record(*what, draw.randrange(1, 256), first, stop))
            first = stop
    spans, first = [], draw.randrange(5)
    for _ in range(draw.randrange(4)):
        stop = first + draw.randrange(1, 30)
        spans.append(Record(-1, 0, 0, 0, 0, 0, first, stop))
        first = stop + draw.randrange(5)
    return entries, spans


def draw_pass(seed: int) -> tuple[torch.Tensor, torch.Tensor, Tables, int]:
    """The parts of a pass, their records, tables of an earlier pass, and how many rows the pass has."""
    draw = random.Random(seed)
    lines, records, row, captured_row = [], [Record(*[0] * len(Record._fields))], 0, 0
    for _ in range(6):
        entries, spans = draw_records(draw)
        count, start = draw.choice((1, 1, 3, 45)), draw.randrange(20)
        layers = draw.sample(range(N_LAYERS), draw.randrange(N_CAPTURED + 1))
        place = len(records)
        records += [*entries, *spans]
        part = Part(
            row,
            count,
            start,
            place,
            len(entries),
            place + len(entries),
            len(spans) if layers else 0,
            len(layers),
            draw.randrange(2),
            start + draw.randrange(2),
            captured_row,
        )
        lines.append([*part, *layers, *[0] * (N_CAPTURED - len(layers))])
        row += count
        captured_row += count * len(layers)
    tables = make_tables(N_LAYERS, N_TOKENS, N_ENTRIES, N_CAPTURED, DEVICE)
    for name in ("layers", "slots", "operations", "users", "changed", "capture_layers", "capture_rows"):
        getattr(tables, name).random_(0, 5)
    tables.captured = torch.zeros(max(captured_row, 1), 16, device=DEVICE)
    parts, named = (torch.tensor(one, dtype=torch.int32, device=DEVICE) for one in (lines, records))
    return parts, named, tables, row


def compare(seed: int) -> tuple[int, int]:
    """How many entries and captured tokens a pass has, made both ways."""
    parts, records, tables, n_rows = draw_pass(seed)
    expected = copy.deepcopy(tables)
    expected.captured = tables.captured
    expand_(parts, records, tables, NUMBER, n_rows)
    expand_reference(parts, records, expected, NUMBER, n_rows)
    for field in fields(Tables):
        assert torch.equal(getattr(tables, field.name), getattr(expected, field.name)), field.name
    assert tables.now.tolist() == [NUMBER, n_rows]
    assert int(tables.captured_at) == tables.captured.data_ptr()
    rows = tables.capture_rows[:n_rows]
    each = [n for n, row in zip((tables.capture_layers[:n_rows] >= 0).sum(1), rows, strict=True) if row >= 0]
    taken = [int(row) + i for row, n in zip(rows[rows >= 0], each, strict=True) for i in range(n)]
    assert len(set(taken)) == len(taken), "two tokens are captured to one row"
    return int((tables.layers[:n_rows] >= 0).sum()), len(taken)


if __name__ == "__main__":
    json.dump([compare(seed) for seed in range(5)], sys.stdout)
