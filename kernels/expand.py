"""What each token of a forward pass is to be done with, made on the device from what its requests ask for.

Nothing that a request asks for changes from pass to pass but its positions. So the host writes its records
to a table once, and tells a pass of each request only where its rows and its records are. One program a
request, outside of CUDA graphs, writes from these the tables that `morfi.kernels.residual` reads inside.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from triton.knobs import runtime

from morfi.kernels.residual import Tables

ENDLESS = 2**31 - 1  # the `stop` of what goes on to a sequence's end


class Record(NamedTuple):
    """The columns of the table of records: an entry at a span of positions, or a span that is captured."""

    layer: Any
    slot: Any
    operation: Any
    strength: Any  # the bits of a float32
    low: Any  # the bits of a float32
    users: Any
    first: Any  # position
    stop: Any  # the position behind the last


class Part(NamedTuple):
    """The first columns of the table of a pass, a request each; the layers that it captures follow."""

    first_row: Any
    n_rows: Any
    start: Any  # the position of its first row
    entry: Any  # the first of its entries' records
    n_entries: Any
    span: Any  # the first record of what it captures
    n_spans: Any
    n_layers: Any  # that it captures in this worker
    before: Any  # 1 where the value from before the steering is captured
    captured_from: Any  # the first position that is captured in this pass
    captured_row: Any  # the row of `Tables.captured` for that position and the first layer


_LAYER, _SLOT, _OPERATION, _STRENGTH, _LOW, _USERS, _FIRST, _STOP = map(
    tl.constexpr, range(len(Record._fields))
)
(
    _FIRST_ROW,
    _N_ROWS,
    _START,
    _ENTRY,
    _N_ENTRIES,
    _SPAN,
    _N_SPANS,
    _N_LAYERS,
    _BEFORE,
    _CAPTURED_FROM,
    _CAPTURED_ROW,
) = map(tl.constexpr, range(len(Part._fields)))
_N_PART, _N_RECORD = tl.constexpr(len(Part._fields)), tl.constexpr(len(Record._fields))
_BLOCK = 32  # rows of a request at a time


@triton.jit
def _captured_rows(part, records, positions, inside, end, BLOCK: tl.constexpr):
    """The rows that positions [BLOCK] of a request are captured to, -1 for none; it ends at `end`."""
    span, n_layers = tl.load(part + _SPAN), tl.load(part + _N_LAYERS)
    row, captured_from = tl.load(part + _CAPTURED_ROW), tl.load(part + _CAPTURED_FROM)
    found = tl.full([BLOCK], -1, dtype=tl.int32)
    for index in range(span, span + tl.load(part + _N_SPANS)):
        record = records + index * _N_RECORD
        first = tl.maximum(tl.load(record + _FIRST), captured_from)
        stop = tl.minimum(tl.load(record + _STOP), end)
        hit = inside & (positions >= first) & (positions < stop)
        found = tl.where(hit, row + (positions - first) * n_layers, found)
        row += tl.maximum(stop - first, 0) * n_layers
    return found


@triton.jit(do_not_specialize=["number", "n_rows"])
def expand_kernel(
    parts,
    records,
    amounts,
    now,
    active,
    layers,
    slots,
    operations,
    strengths,
    lows,
    users,
    changed,
    capture_layers,
    capture_before,
    capture_rows,
    captured_at,
    captured,
    number,
    n_rows,
    N_ENTRIES: tl.constexpr,
    N_CAPTURED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program a request; `amounts` is `records` read as float32."""
    part = parts + tl.program_id(0) * (_N_PART + N_CAPTURED)
    if tl.program_id(0) == 0:
        tl.store(now, number)
        tl.store(now + 1, n_rows)
        tl.store(captured_at, captured.to(tl.int64))
    start, count = tl.load(part + _START), tl.load(part + _N_ROWS)
    entry, n_entries = tl.load(part + _ENTRY), tl.load(part + _N_ENTRIES)
    n_layers = tl.load(part + _N_LAYERS)
    for block in range(0, count, BLOCK):
        offsets = block + tl.arange(0, BLOCK)
        inside = offsets < count
        rows, positions = tl.load(part + _FIRST_ROW) + offsets, start + offsets
        used = tl.zeros([BLOCK], dtype=tl.int32)
        for index in range(entry, entry + n_entries):
            record = records + index * _N_RECORD
            amount = amounts + index * _N_RECORD
            hit = inside & (positions >= tl.load(record + _FIRST)) & (positions < tl.load(record + _STOP))
            place = rows * N_ENTRIES + used
            layer = tl.load(record + _LAYER)
            tl.store(layers + place, layer, mask=hit)
            tl.store(slots + place, tl.load(record + _SLOT), mask=hit)
            tl.store(operations + place, tl.load(record + _OPERATION), mask=hit)
            tl.store(strengths + place, tl.load(amount + _STRENGTH), mask=hit)
            tl.store(lows + place, tl.load(amount + _LOW), mask=hit)
            tl.store(users + place, tl.load(record + _USERS), mask=hit)
            tl.store(active + 2 * layer, number, mask=tl.max(hit.to(tl.int32)) != 0)
            used += hit.to(tl.int32)
        for place in range(N_ENTRIES):
            tl.store(layers + rows * N_ENTRIES + place, -1, mask=inside & (place >= used))
        kept = _captured_rows(part, records, positions, inside, start + count, BLOCK)
        is_kept = kept >= 0
        for place in range(N_CAPTURED):
            layer = tl.load(part + _N_PART + place, mask=place < n_layers, other=-1)
            tl.store(capture_layers + rows * N_CAPTURED + place, tl.where(is_kept, layer, -1), mask=inside)
            tl.store(active + 2 * layer, number, mask=(tl.max(is_kept.to(tl.int32)) != 0) & (layer >= 0))
        tl.store(capture_before + rows, tl.load(part + _BEFORE), mask=inside)
        tl.store(capture_rows + rows, kept, mask=inside)
        tl.store(changed + rows, 0, mask=inside)


def expand(parts: torch.Tensor, records: torch.Tensor, tables: Tables, number: int, n_rows: int) -> None:
    """Fills `tables` for pass `number` of `n_rows` rows.

    `parts`: int32 [n_requests, len(Part._fields) + C], `records`: int32 [n, len(Record._fields)].
    """
    run = expand_ if parts.is_cuda or runtime.interpret else expand_reference
    run(parts, records, tables, number, n_rows)


def expand_(parts: torch.Tensor, records: torch.Tensor, tables: Tables, number: int, n_rows: int) -> None:
    """As `expand`, by the kernel."""
    expand_kernel[(len(parts),)](
        parts,
        records,
        records.view(torch.float32),
        tables.now,
        tables.active,
        tables.layers,
        tables.slots,
        tables.operations,
        tables.strengths,
        tables.lows,
        tables.users,
        tables.changed,
        tables.capture_layers,
        tables.capture_before,
        tables.capture_rows,
        tables.captured_at,
        tables.captured,
        number,
        n_rows,
        N_ENTRIES=tables.layers.shape[1],
        N_CAPTURED=tables.capture_layers.shape[1],
        BLOCK=_BLOCK,
        num_warps=1,
    )


def expand_reference(
    parts: torch.Tensor, records: torch.Tensor, tables: Tables, number: int, n_rows: int
) -> None:
    """The reference of `expand_`, one row and one record at a time."""
    amounts = records.view(torch.float32)
    tables.now.copy_(torch.tensor([number, n_rows]))
    tables.captured_at.fill_(tables.captured.data_ptr())
    for line in parts.tolist():
        part, captured_layers = Part(*line[: len(Part._fields)]), line[len(Part._fields) :]
        row_of: dict[int, int] = {}
        for index in range(part.span, part.span + part.n_spans):
            span, stop = Record(*records[index].tolist()), part.start + part.n_rows
            for position in range(max(span.first, part.captured_from), min(span.stop, stop)):
                row_of[position] = part.captured_row + len(row_of) * part.n_layers
        for row in range(part.first_row, part.first_row + part.n_rows):
            position, used = part.start + row - part.first_row, 0
            tables.layers[row] = -1
            for index in range(part.entry, part.entry + part.n_entries):
                entry = Record(*records[index].tolist())
                if not entry.first <= position < entry.stop:
                    continue
                tables.layers[row, used] = entry.layer
                tables.slots[row, used] = entry.slot
                tables.operations[row, used] = entry.operation
                tables.strengths[row, used] = amounts[index, Record._fields.index("strength")]
                tables.lows[row, used] = amounts[index, Record._fields.index("low")]
                tables.users[row, used] = entry.users
                tables.active[entry.layer, 0] = number
                used += 1
            tables.capture_layers[row] = -1
            if position in row_of:
                here = captured_layers[: part.n_layers]
                tables.capture_layers[row, : part.n_layers] = torch.tensor(here, dtype=torch.int32)
                tables.active[here, 0] = number
            tables.capture_before[row] = part.before
            tables.capture_rows[row] = row_of.get(position, -1)
            tables.changed[row] = 0
