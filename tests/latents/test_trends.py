"""Finding trends: against a slow and obvious way, in any order, and what cannot be compared is refused."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from morfi.errors import InputError
from morfi.kernels.encoder import Encoder, encode_reference, most_norm
from morfi.kernels.null import trend_null
from morfi.kernels.page import page_reference
from morfi.kernels.resample import resample_counts
from morfi.kernels.trend_reference import trend_reference
from morfi.latents import rows as activations_module
from morfi.latents import trend_inputs
from morfi.latents.selection import Criteria
from morfi.latents.trend_inputs import Tiling
from morfi.latents.trends import TrendResult, find_trends

LEVELS = [0, 10, 25, 50, 75, 90, 100]
D_MODEL, D_SAE, N = 16, 40, 60


def make_encoder(activation: str = "relu") -> Encoder:
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(D_MODEL, D_SAE, generator=generator)
    return Encoder(weights, torch.full((D_SAE,), -3.0), activation, k=6 if activation == "topk" else None)


def make_activations(n_conditions: int = 7, trend: float = 0.4, seed: int = 1) -> list[torch.Tensor]:
    """Latent 0's direction comes with the condition, latent 1's goes; `seed` is the conditions' own noise."""
    questions = torch.randn(N, D_MODEL, generator=torch.Generator().manual_seed(1)) * 1.5
    generator = torch.Generator().manual_seed(seed)
    weights = make_encoder().W_enc
    away = weights[:, 0] / weights[:, 0].norm() - weights[:, 1] / weights[:, 1].norm()
    return [
        questions + place * trend * away + torch.randn(N, D_MODEL, generator=generator) * 0.1
        for place in range(n_conditions)
    ]


def find(activations: Sequence[torch.Tensor], levels: Sequence[float], **options: Any) -> TrendResult:
    return find_trends(activations, levels, make_encoder(), n_resamples=200, **options)


@pytest.mark.parametrize("activation", ["relu", "topk"])
def test_every_latent_equals_the_slow_way(activation: str) -> None:
    encoder, activations = make_encoder(activation), make_activations()
    strata = [place % 2 for place in range(N)]
    found = find_trends(activations, LEVELS, encoder, strata=strata, n_resamples=200, seed=5).latents
    counts = resample_counts(strata, 200, 5).double()
    latents = torch.stack([encode_reference(x, encoder).double() for x in activations])
    means = torch.einsum("nb,cnf->cfb", counts, latents) / N
    null = trend_null(tuple(range(7)))
    for latent in range(D_SAE):
        series = means[:, latent, 0].tolist()
        row = {name: found[name][latent].as_py() for name in found.column_names}
        s = sum(int(np.sign(b - a)) for a, b in itertools.combinations(series, 2))
        others = [series.count(value) - 1 for value in series]
        assert row["s"] == s
        assert row["p_exact"] == pytest.approx(null.p_value(s, sum(others), sum(n * n for n in others)))
        assert row["means"] == pytest.approx(series, rel=1e-5)
        assert row["firing"] == pytest.approx(float((latents[:, :, latent] > 0).double().mean(1).max()))
        if len(set(series)) > 1:
            assert row["rho"] == pytest.approx(scipy.stats.spearmanr(LEVELS, series).statistic, abs=1e-5)
            slope = scipy.stats.theilslopes(series, LEVELS).slope
            assert row["slope"] == pytest.approx(slope, rel=1e-3, abs=1e-6)
            spread = float(latents[:, :, latent].std(correction=0))
            assert row["score"] == pytest.approx(abs(slope) * 100 / spread, rel=1e-2, abs=1e-3)
    assert found["selected"].to_pylist().count(True) >= 2


@pytest.mark.parametrize("method", ["fdr", "bootstrap", "page"])
def test_planted_latents_are_selected_with_their_directions(method: str) -> None:
    result = find(make_activations(), LEVELS, method=method)
    rows = result.latents.to_pylist()
    assert (rows[0]["selected"], rows[0]["direction"]) == (True, 1)
    assert (rows[1]["selected"], rows[1]["direction"]) == (True, -1)
    assert result.n_selected == sum(row["selected"] for row in rows)
    assert result.expected_false == pytest.approx(result.n_firing * 2 / math.factorial(7))
    assert not result.is_descriptive
    assert result.fdr[0].s == 21
    assert [one.n_found for one in result.fdr] == sorted(one.n_found for one in result.fdr)


def test_order_of_conditions_and_size_of_tiles_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    activations = make_activations()
    expected = find(activations, LEVELS).latents
    order = [4, 0, 6, 2, 5, 1, 3]
    shuffled = find([activations[place] for place in order], [LEVELS[place] for place in order]).latents
    monkeypatch.setattr(trend_inputs, "ON_CPU", Tiling(latents=17, encoded=7, resampled=21, questions=13))
    tiled = find(activations, LEVELS).latents
    for other in (shuffled, tiled):
        for name in ("latent", "direction", "s", "p_exact", "firing", "selected"):
            assert other[name].to_pylist() == expected[name].to_pylist()
        for name in ("rho", "slope", "stability", "mean_abs_rho"):
            assert other[name].to_numpy() == pytest.approx(
                expected[name].to_numpy(), rel=1e-4, abs=1e-5, nan_ok=True
            )


class OnDisk:
    """Rows of which a chunk at a time is in memory."""

    def __init__(self, x: torch.Tensor) -> None:
        self._x, self.shape, self.largest = x, x.shape, 0

    def __getitem__(self, rows: slice) -> torch.Tensor:
        self.largest = max(self.largest, len(self._x[rows]))
        return self._x[rows].clone()


@pytest.mark.parametrize("activation", ["relu", "topk"])
def test_rows_are_read_in_chunks(activation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    activations, encoder = make_activations(), make_encoder(activation)
    expected = find_trends(activations, LEVELS, encoder, n_resamples=50).latents
    monkeypatch.setattr(trend_inputs, "ON_CPU", Tiling(latents=40, encoded=40, resampled=40, questions=13))
    monkeypatch.setattr(activations_module, "CHUNK", 13)  # of what is checked
    on_disk = [OnDisk(x) for x in activations]
    found = find_trends(on_disk, LEVELS, encoder, n_resamples=50).latents
    assert [x.largest for x in on_disk] == [13] * 7
    assert found["s"].to_pylist() == expected["s"].to_pylist()
    found_means, expected_means = (np.stack(one["means"].to_numpy()) for one in (found, expected))
    assert found_means == pytest.approx(expected_means, rel=1e-5, abs=1e-6)


def test_stability_and_rho_are_those_of_the_resampled_means() -> None:
    activations, encoder, criteria = make_activations(trend=0.1), make_encoder(), Criteria(alpha=0.05)
    given: dict[str, Any] = {"method": "bootstrap", "n_resamples": 50, "seed": 3, "criteria": criteria}
    found = find_trends(activations, LEVELS, encoder, **given).latents
    counts = resample_counts([0] * N, 50, 3).double()
    z = torch.stack([encode_reference(x, encoder).double() for x in activations])
    means = (torch.einsum("nb,cnf->cfb", counts, z) / N).float()
    expected = trend_reference(means, trend_null(tuple(range(7))), 0.05)
    fires = (z > 0).double().mean(1).amax(0) >= criteria.min_firing
    for latent, row in enumerate(found.to_pylist()):
        if bool(fires[latent]) and row["p_exact"] <= 0.05:
            assert row["stability"] == pytest.approx(float(expected.stability[latent]), abs=0.021)
            assert row["mean_abs_rho"] == pytest.approx(float(expected.mean_abs_rho[latent]), abs=1e-3)
        else:
            assert (row["stability"], row["mean_abs_rho"], row["selected"]) == (None, None, False)
    assert 2 <= 40 - found["stability"].null_count < 40


@pytest.mark.parametrize(("activation", "n_seeds"), [("relu", 1), ("topk", 1), ("relu", 2)])
def test_page_selects_by_the_order_within_questions(activation: str, n_seeds: int) -> None:
    encoder = make_encoder(activation)
    activations = [x for seed in range(n_seeds) for x in make_activations(seed=1 + seed)]
    found = find_trends(activations, LEVELS * n_seeds, encoder, method="page").latents
    z = torch.stack([encode_reference(x, encoder) for x in activations])
    expected = page_reference(z, trend_null(tuple(range(7)) * n_seeds))
    assert found["page_z"].to_numpy() == pytest.approx(expected.z.numpy(), abs=1e-6)
    assert found["page_p"].to_numpy() == pytest.approx(expected.p.numpy(), abs=1e-6)
    rows = found.to_pylist()
    assert (rows[0]["selected"], rows[0]["direction"]) == (True, 1)
    assert (rows[1]["selected"], rows[1]["direction"]) == (True, -1)
    fires = np.array([row["firing"] >= 0.01 for row in rows])
    passes = np.zeros(D_SAE, bool)
    passes[fires] = scipy.stats.false_discovery_control(expected.p.numpy()[fires]) <= 0.05
    if n_seeds > 1:
        passes[fires] &= scipy.stats.false_discovery_control(found["p_exact"].to_numpy()[fires]) <= 0.05
    rho = found["rho"].to_numpy() * np.sign(expected.z.numpy())
    assert found["selected"].to_pylist() == (passes & (rho >= 0.9)).tolist()
    assert found["stability"].null_count == D_SAE
    assert "page_z" not in find(make_activations(), LEVELS).latents.column_names


def test_page_on_no_trend_selects_nothing() -> None:
    x = make_activations()[0]
    found = find([x] * 7, LEVELS, method="page").latents
    assert not any(found["selected"].to_pylist())
    assert set(found["page_p"].to_pylist()) == {1.0}


def test_replicate_trainings_sharpen_a_trend() -> None:
    activations = make_activations() + make_activations(seed=2)
    result = find(activations, LEVELS * 2)
    assert result.levels == tuple(LEVELS)
    assert result.latents["p_exact"][0].as_py() < 1e-6
    assert result.latents["selected"][0].as_py()


def scattered(gap: float, seed: int) -> list[torch.Tensor]:
    """Three trainings of each level, whose noise moves latents 0 and 1 by more than a step of levels does."""
    weights = make_encoder().W_enc
    axes = [weights[:, latent] / weights[:, latent].norm() for latent in range(2)]
    generator = torch.Generator().manual_seed(seed)
    questions = torch.randn(N, D_MODEL, generator=generator) * 1.5
    steps = [place * gap for _ in range(3) for place in range(7)]
    moves = torch.tensor(steps) + torch.randn(21, generator=generator) * 0.5
    return [
        questions + move * (axes[0] - axes[1]) + torch.randn(N, D_MODEL, generator=generator) * 0.1
        for move in moves.tolist()
    ]


@pytest.mark.parametrize("method", ["fdr", "bootstrap", "page"])
def test_trends_of_scattered_replicates_are_selected_by_their_levels(method: str) -> None:
    found = find(scattered(0.3, seed=1), LEVELS * 3, method=method).latents.slice(0, 2).to_pylist()
    assert [(row["selected"], row["direction"]) for row in found] == [(True, 1), (True, -1)]
    for row in found:
        assert abs(scipy.stats.spearmanr(LEVELS * 3, row["means"]).statistic) < 0.9
        levels = np.reshape(row["means"], (3, 7)).mean(0)
        assert row["rho"] == pytest.approx(scipy.stats.spearmanr(LEVELS, levels).statistic, abs=1e-6)


def test_scattered_replicates_without_a_trend_select_nothing() -> None:
    assert sum(find(scattered(0, seed), LEVELS * 3).n_selected for seed in range(10)) == 0


def test_few_conditions_are_descriptive() -> None:
    result = find(make_activations(4), [1, 2, 5, 10], method="bootstrap")
    assert result.is_descriptive
    assert result.n_selected > 0
    assert result.latents["p_exact"][0].as_py() == pytest.approx(2 / math.factorial(4))


def test_no_trend_is_an_answer() -> None:
    x = make_activations()[0]
    result = find([x] * 7, LEVELS)
    assert result.n_selected == 0
    assert result.fdr == ()
    assert set(result.latents["direction"].to_pylist()) == {0}


def test_what_cannot_be_compared_is_refused() -> None:
    good = make_activations()
    bad = good[3].clone()
    bad[17, 2] = float("nan")
    cases: list[tuple[list[torch.Tensor], Sequence[float], str]] = [
        (good[:2], [0, 100], "at least three"),
        (good, [5] * 7, "at least three"),
        (good, LEVELS[:-1], "each condition needs one"),
        ([*good[:3], bad, *good[4:]], LEVELS, r"condition 3 \(level 50\) holds NaN .* question 17"),
        ([*good[:3], good[3][:-1], *good[4:]], LEVELS, "59 questions, the first condition 60"),
        ([x.int() for x in good], LEVELS, r"holds torch.int32; activations are floats"),
        ([x[:, :8] for x in good], LEVELS, r"the SAE reads \[n_questions, 16\]"),
    ]
    for activations, levels, message in cases:
        with pytest.raises(InputError, match=message):
            find(activations, levels)
    with pytest.raises(InputError, match="3 strata for 60 questions"):
        find(good, LEVELS, strata=[1, 2, 3])


def test_a_rho_of_just_the_least_is_enough_in_any_number_of_resamples() -> None:
    # Two of five levels are in the wrong order, in all questions alike: rho is 0.9 in every resample.
    levels = [level for level in (0, 1, 3, 2, 4) for _ in range(3)]
    activations = [torch.full((20, 1), 1.0 + place // 3) for place in range(15)]
    encoder = Encoder(torch.eye(1), torch.zeros(1))
    for n_resamples in (1, 10, 999, 1000):
        found = find_trends(
            activations,
            levels,
            encoder,
            n_resamples=n_resamples,
            method="bootstrap",
            criteria=Criteria(alpha=1.0),
        )
        assert found.n_selected == 1


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_strata_are_what_is_equal_in_any_kind_of_sequence(kind: Any) -> None:
    plain = find(make_activations(), LEVELS, strata=[place % 3 for place in range(N)]).latents
    assert find(make_activations(), LEVELS, strata=kind([place % 3 for place in range(N)])).latents.equals(
        plain
    )


def test_numbers_that_the_sae_cannot_hold_are_refused() -> None:
    activations = make_activations()
    activations[3][7, 2] = 1e5
    encoder = replace(make_encoder(), W_enc=make_encoder().W_enc.half())
    with pytest.raises(
        InputError, match=r"condition 3 .* of question 7: torch.float16 of the SAE cannot hold"
    ):
        find_trends(activations, LEVELS, encoder)
    assert find(activations, LEVELS).n_questions == N


@pytest.mark.parametrize("normalization", ["none", "constant_norm_rescale", "layer_norm"])
def test_numbers_of_any_size_have_the_same_trends_or_are_refused(normalization: str) -> None:
    encoder = replace(make_encoder(), b_enc=torch.zeros(D_SAE), normalization=normalization)
    plain = find_trends(make_activations(), LEVELS, encoder, n_resamples=20).latents
    refused = []
    for exponent in (-140, -60, 30, 60, 63, 80, 100, 120, 124, 127):
        activations = [x * 2.0**exponent for x in make_activations()]
        try:
            found = find_trends(activations, LEVELS, encoder, n_resamples=20).latents
        except InputError as error:
            refused.append((exponent, str(error)))
            continue
        if exponent > 0:  # small ones lose digits, and layer_norm adds 1e-5 to their size
            assert found.select(["s", "selected"]).equals(plain.select(["s", "selected"]))
    why = ("too large", "holds NaN or infinity", "of the SAE cannot hold")
    assert all(any(words in said for words in why) for _, said in refused)
    assert {exponent for exponent, _ in refused} & {60, 127} == {127}


@pytest.mark.parametrize("name", ["W_enc", "b_enc", "threshold", "b_dec"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_refused(name: str, value: float) -> None:
    encoder = replace(make_encoder("jumprelu"), threshold=torch.ones(D_SAE), b_dec=torch.zeros(D_MODEL))
    weights = getattr(encoder, name).clone()
    weights.view(-1)[3] = value
    with pytest.raises(InputError, match=f"the SAE's {name} holds NaN or infinity"):
        find_trends(make_activations(), LEVELS, replace(encoder, **{name: weights}))


def test_a_row_of_zero_has_no_norm_to_rescale() -> None:
    activations = make_activations()
    activations[2][5] = 0.0
    encoder = replace(make_encoder(), normalization="constant_norm_rescale")
    with pytest.raises(InputError, match=r"condition 2 .* question 5: constant_norm_rescale cannot scale"):
        find_trends(activations, LEVELS, encoder)
    assert find(activations, LEVELS).n_questions == N


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan, math.inf, "0.05", None, True])
@pytest.mark.parametrize("name", [field.name for field in fields(Criteria)])
def test_criteria_are_numbers_from_0_to_1(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"{name} is .* from 0 to 1"):
        Criteria(**{name: value})


@pytest.mark.parametrize(
    "counts", [{"n_resamples": 0}, {"n_resamples": 1.5}, {"seed": -1}, {"seed": None}, {"seed": 2**63}]
)
def test_counts_that_cannot_be_are_refused(counts: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="expected a whole number from"):
        find_trends(make_activations(), LEVELS, make_encoder(), **counts)
    with pytest.raises(InputError, match="a stratum is a name or a number"):
        find(make_activations(), LEVELS, strata=[[1]] * N)


@pytest.mark.parametrize("activation", ["relu", "topk"])
def test_products_that_leave_float32_on_the_way_are_refused(activation: str) -> None:
    """Of a latent whose products overflow and cancel, and which then would fire on nothing."""
    weights = torch.tensor([[-1e3, 1e3], [1e3, 1e3], [1.0, 1.0]])
    encoder = Encoder(weights, torch.zeros(2), activation, k=1 if activation == "topk" else None)
    activations = [torch.tensor([[1e36, 1e36, level + 1.0]] * 4) for level in range(4)]
    with pytest.raises(InputError, match="question 0: it, or the weights of the SAE, are too large"):
        find_trends(activations, range(4), encoder)


@pytest.mark.parametrize("unit", [1e-18, 1e-3, 1e3, 1e17])
def test_levels_of_any_unit_have_the_same_scores(unit: float) -> None:
    plain = find(make_activations(), LEVELS).latents
    scaled = find(make_activations(), [level * unit for level in LEVELS]).latents
    assert np.allclose(scaled["score"], plain["score"], rtol=1e-6)
    assert np.allclose(np.array(scaled["slope"], dtype=np.float64) * unit, plain["slope"], rtol=1e-6)


@pytest.mark.parametrize("levels", [[0, 1e-320, 2e-320], [-1.7e308, 0, 1.7e308], [0, 1e40, 2e40]])
def test_levels_whose_slopes_no_float_holds_are_refused(levels: list[float]) -> None:
    with pytest.raises(InputError, match=r"the levels span .* expected 1e-20 to 1e20"):
        find(make_activations(3), levels)


@given(scale=st.floats(0.1, 100), n=st.integers(1, 50), seed=st.integers(0, 1000), gated=st.booleans())
@settings(max_examples=50, deadline=None)
def test_rows_of_the_largest_norm_have_finite_sums(scale: float, n: int, seed: int, *, gated: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(3, 5, generator=generator) * scale
    encoder = Encoder(weights, torch.randn(5, generator=generator))
    if gated:
        r_mag, b_mag = torch.randn(2, 5, generator=generator)
        encoder = replace(encoder, activation="gated", r_mag=r_mag, b_mag=b_mag)
    longest = int(weights.norm(dim=0).argmax())
    row = weights[:, longest].double() / weights[:, longest].double().norm()
    row *= min(most_norm(encoder, n) * 0.999, torch.finfo(torch.float32).max)
    latents = encode_reference(row.float()[None], encoder)
    assert bool((latents * n).isfinite().all())
    assert float(latents.max()) > 0
