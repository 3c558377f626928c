"""What layers return is told apart by trying, on small models of every form, and refused where that fails."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from morfi.engine.decoder import decoder_layers
from morfi.errors import InputError
from morfi.serve.plugin.structure import Trial, _check_scale

D_MODEL, N_ROWS = 16, 7


class Layer(nn.Module):
    """A layer whose output is made of the residual stream that it reads, as its form says."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.linear = nn.Linear(D_MODEL, D_MODEL)

    def forward(self, positions: Any, hidden: torch.Tensor, rest: torch.Tensor | None = None) -> Any:
        """One tensor, two whose sum is the stream, or two of which the first is."""
        whole = hidden if rest is None or self.form == "first" else hidden + rest
        change = torch.tanh(self.linear(whole / whole.norm(dim=-1, keepdim=True)))
        if self.form == "one":
            return whole + change
        return (change, whole) if self.form == "sum" else (whole + change, hidden)


class Model(nn.Module):
    """Layers of a form one after another."""

    def __init__(self, form: str = "sum", n_layers: int = 3) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(form) for _ in range(n_layers))

    def forward(self, between: Callable[[Any], Any] = lambda given: given) -> torch.Tensor:
        """The stream after the last layer; `between` changes what it is after each."""
        given: Any = (torch.arange(N_ROWS * D_MODEL).reshape(N_ROWS, D_MODEL).sin(),)
        for layer in self.layers:
            found = layer(torch.arange(N_ROWS), *given)
            given = between(found if isinstance(found, tuple) else (found,))
        return self.end(*given)

    def end(self, hidden: torch.Tensor, rest: torch.Tensor | None = None) -> torch.Tensor:
        """The stream that the last layer returned."""
        return hidden + rest if rest is not None and self.layers[0].form == "sum" else hidden


def trial(model: Model, between: Callable[[Any], Any] = lambda given: given, **settings: Any) -> Trial:
    def forward() -> torch.Tensor:
        with torch.no_grad():
            return model.forward(between)

    return Trial(list(model.layers), D_MODEL, forward, **settings)


@pytest.mark.parametrize(("form", "is_sum"), [("sum", True), ("first", False), ("one", False)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_stream_is_the_sum_where_only_the_sum_matters(
    form: str, dtype: torch.dtype, *, is_sum: bool
) -> None:
    torch.manual_seed(0)
    found = trial(Model(form, n_layers=12).to(dtype), lambda given: tuple(one.to(dtype) for one in given))
    found.layers[0].register_forward_pre_hook(lambda _, args: (args[0], args[1].to(dtype), *args[2:]))
    assert found.is_sum() == is_sum
    assert found.by_rows
    assert not found.layers[0]._forward_hooks


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("outlier", [1.0, 300.0])
def test_a_stream_is_told_bit_for_bit_however_deep_the_model(dtype: torch.dtype, outlier: float) -> None:
    """What rounds is as it was before: where a sum is left as it was, so is the output."""
    torch.manual_seed(0)
    model = Model("sum", n_layers=60).to(dtype)
    scale = torch.ones(D_MODEL, dtype=dtype)
    scale[3] = outlier
    model.layers[0].register_forward_pre_hook(lambda _, args: (args[0], args[1].to(dtype) * scale))
    found = trial(model)
    assert torch.equal(found._run(-1.0, 1.0), found._run(0.0, 0.0))
    assert found.is_sum()


def test_two_tensors_that_are_neither_are_no_stream() -> None:
    model = Model("sum")
    model.end = lambda hidden, rest=None: hidden + rest * rest  # type: ignore[method-assign,operator]
    with pytest.raises(InputError, match="more than the first or their sum"):
        trial(model).is_sum()


@pytest.mark.parametrize("share", [0.9, 1.1, -1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("n_layers", [2, 12])
def test_a_sum_in_which_one_tensor_counts_otherwise_is_no_stream(
    share: float, dtype: torch.dtype, n_layers: int
) -> None:
    for seed in range(20):
        torch.manual_seed(seed)
        model = Model("sum", n_layers).to(dtype)
        model.layers[0].register_forward_pre_hook(lambda _, args: (args[0], args[1].to(dtype), *args[2:]))
        model.end = lambda hidden, rest=None: hidden + share * rest  # type: ignore[method-assign,operator]
        with pytest.raises(InputError, match="more than the first or their sum"):
            trial(model).is_sum()


def test_what_is_changed_between_layers_is_no_stream() -> None:
    with pytest.raises(InputError, match="layer 1 is not handed what layer 0 returned"):
        trial(Model("one"), lambda given: (given[0] * 2,)).is_sum()


def test_a_second_tensor_that_is_not_handed_on_is_no_part_of_the_stream() -> None:
    assert not trial(Model("first"), lambda given: given[:1]).is_sum()
    with pytest.raises(InputError, match="more than the first or their sum"):
        trial(Model("sum"), lambda given: (given[0], given[1] + 1)).is_sum()


def test_a_layer_that_runs_twice_or_not_is_found() -> None:
    model = Model("one")
    model.layers[2] = model.layers[0]
    with pytest.raises(InputError, match=r"layer 2 does not run once|layer 0 does not run once"):
        trial(model).is_sum()
    model = Model("one")
    short = trial(model)
    short.layers = [*model.layers, Layer("one")]
    with pytest.raises(InputError, match="it runs 3 of its 4 layers"):
        short.is_sum()


def test_a_change_that_makes_no_difference_is_no_steering() -> None:
    model = Model("one")
    model.end = lambda hidden, rest=None: torch.ones_like(hidden)  # type: ignore[method-assign]
    with pytest.raises(InputError, match="makes no difference to its output"):
        trial(model).is_sum()


def test_layers_of_another_width_are_no_stream() -> None:
    found = trial(Model("one"))
    found.d_model = 8
    with pytest.raises(InputError, match=r"return \[7, 16\] for 7 rows of 8 numbers"):
        found.is_sum()


def test_a_worker_in_the_middle_tells_by_its_other_layers() -> None:
    assert trial(Model("sum"), is_last=False).is_sum()
    with pytest.raises(InputError, match="makes no difference"):
        trial(Model("sum", n_layers=1), is_last=False).is_sum()


def test_a_tensor_of_other_rows_is_noted() -> None:
    model = Model("one")
    model.layers[1].register_forward_pre_hook(lambda _, args: (args[0][None], args[1]))
    found = trial(model)
    found.is_sum()
    assert not found.by_rows


@pytest.mark.parametrize(
    ("dtype", "factor", "refused"),
    [
        (torch.float16, 2.5, True),
        (torch.float16, 1.0, False),
        (torch.float16, None, False),
        (torch.bfloat16, 2.5, False),
    ],
)
def test_a_stream_on_another_scale_is_refused(
    dtype: torch.dtype, factor: float | None, *, refused: bool
) -> None:
    config = SimpleNamespace(dtype=dtype, hf_text_config=SimpleNamespace(routed_scaling_factor=factor))
    with (
        pytest.raises(InputError, match=r"divided by 2\.5; give --dtype bfloat16")
        if refused
        else nullcontext()
    ):
        _check_scale(config)


def test_the_outer_list_holds_the_decoder_layers() -> None:
    model = Model("one", n_layers=2)
    model.layers[0].experts = nn.ModuleList([nn.Linear(1, 1), nn.Linear(1, 1)])
    assert decoder_layers(model, 2) is model.layers
    with pytest.raises(InputError, match="it has 0 lists of 4 layers; expected one"):
        decoder_layers(model, 4)
    model.again = nn.ModuleList(model.layers)
    assert decoder_layers(model, 2) is model.layers
    model.others = nn.ModuleList([nn.Linear(1, 1), nn.Linear(1, 1)])
    with pytest.raises(InputError, match=r"it has 2 lists of 2 layers \(layers, others\)"):
        decoder_layers(model, 2)
