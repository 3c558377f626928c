"""`find_trends` takes what people have: NumPy arrays, SAEs of SAELens, and levels of any kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from morfi.errors import InputError
from morfi.kernels.encoder import Encoder
from morfi.latents.sae import from_sae_lens, load_sae
from morfi.latents.trends import TrendResult, find_trends

N, D_MODEL, D_SAE = 20, 6, 18


def make(n: int = 5, seed: int = 0) -> list[torch.Tensor]:
    """Conditions that drift along one direction."""
    generator = torch.Generator().manual_seed(seed)
    questions = torch.randn(N, D_MODEL, generator=generator)
    steps = torch.arange(n)[:, None, None] * torch.randn(D_MODEL, generator=generator) * 0.2
    return list(questions + steps + 0.05 * torch.randn(n, N, D_MODEL, generator=generator))


def make_sae(kind: str = "standard", **settings: Any) -> Any:
    """An SAE of SAELens with random weights."""
    import sae_lens

    config = {
        "standard": (sae_lens.StandardSAE, sae_lens.StandardSAEConfig),
        "jumprelu": (sae_lens.JumpReLUSAE, sae_lens.JumpReLUSAEConfig),
        "topk": (sae_lens.TopKSAE, sae_lens.TopKSAEConfig),
        "gated": (sae_lens.GatedSAE, sae_lens.GatedSAEConfig),
    }
    sae, of = config[kind]
    torch.manual_seed(3)
    made = sae(of(d_in=D_MODEL, d_sae=D_SAE, **settings))
    for tensor in made.parameters():
        tensor.data = torch.randn(tensor.shape) * 0.5
    return made


def find(activations: Any, levels: Any = range(5), sae: Any = None) -> TrendResult:
    encoder = Encoder(torch.eye(D_MODEL), torch.zeros(D_MODEL))
    return find_trends(activations, levels, encoder if sae is None else sae, n_resamples=20)


def same(one: TrendResult, other: TrendResult) -> bool:
    return one.latents.equals(other.latents) and (one.fdr, one.smallest_s) == (other.fdr, other.smallest_s)


@settings(max_examples=30, deadline=None)
@given(
    dtype=st.sampled_from(["<f2", "<f4", "<f8", ">f4", ">f8"]),
    order=st.sampled_from(["C", "F"]),
    backwards=st.booleans(),
    seed=st.integers(0, 99),
)
def test_arrays_of_any_layout_give_what_tensors_do(
    dtype: str, order: Any, backwards: bool, seed: int
) -> None:
    tensors = [x.to(getattr(torch, f"float{8 * int(dtype[2])}")) for x in make(seed=seed)]
    arrays = [x.numpy().astype(dtype, order=order) for x in tensors]
    if backwards:
        arrays = [x[::-1].copy()[::-1] for x in arrays]
    for array in arrays:
        array.flags.writeable = False
    assert same(find(arrays), find(tensors))


def test_one_array_of_all_conditions_and_maps_of_files(tmp_path: Path) -> None:
    tensors = torch.stack(make())
    np.save(tmp_path / "all.npy", tensors.numpy())
    expected = find(list(tensors))
    assert same(find(tensors.numpy()), expected)
    assert same(find(tensors), expected)
    assert same(find(np.load(tmp_path / "all.npy", mmap_mode="r")), expected)


@pytest.mark.parametrize("kind", ["standard", "jumprelu", "topk", "gated"])
@pytest.mark.parametrize("normalization", ["none", "constant_norm_rescale", "layer_norm"])
def test_saes_of_saelens_give_what_their_encoder_does(kind: str, normalization: str) -> None:
    extra = {"k": 4} if kind == "topk" else {}
    sae = make_sae(kind, normalize_activations=normalization, **extra)
    expected = find(make(), sae=from_sae_lens(sae, "made here").encoder)
    assert same(find(make(), sae=sae), expected)
    with torch.no_grad():
        theirs = torch.stack([sae.encode(x).mean(0) for x in make()], 1)
    ours = torch.tensor(expected.latents["means"].to_pylist())
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_the_sae_of_load_sae_and_its_folder_and_one_that_is_folded(tmp_path: Path) -> None:
    sae = make_sae(normalize_activations="expected_average_only_in")
    with pytest.raises(InputError, match="this StandardSAE: normalize_activations is expected_average"):
        find(make(), sae=sae)
    sae.fold_activation_norm_scaling_factor(0.7)
    sae.save_model(tmp_path / "sae")
    assert same(find(make(), sae=sae), find(make(), sae=load_sae(str(tmp_path / "sae"))))


def test_what_is_no_sae_to_encode_with_is_refused() -> None:
    import sae_lens

    training = sae_lens.StandardTrainingSAE(sae_lens.StandardTrainingSAEConfig(d_in=D_MODEL, d_sae=D_SAE))
    with pytest.raises(InputError, match="this StandardTrainingSAE is an SAE in training"):
        find(make(), sae=training)
    with pytest.raises(InputError, match="a Linear is no SAE"):
        find(make(), sae=torch.nn.Linear(2, 2))


@settings(max_examples=30, deadline=None)
@given(
    levels=st.lists(st.floats(-1e6, 1e6, allow_subnormal=False), min_size=5, max_size=5, unique=True),
    data=st.data(),
)
def test_levels_count_by_their_order_alone(levels: list[float], data: Any) -> None:
    """Whatever numbers they are, and in whatever order they come."""
    activations = make()
    expected = find(activations)
    order = data.draw(st.permutations(range(5)))
    levels = sorted(levels)
    found = find([activations[place] for place in order], np.array([levels[place] for place in order]))
    assert found.levels == tuple(levels)
    assert (found.fdr, found.smallest_s) == (expected.fdr, expected.smallest_s)
    for name in ("latent", "direction", "s", "p_exact", "firing", "selected"):
        assert found.latents[name].equals(expected.latents[name])
    back = [order.index(place) for place in range(5)]
    means = np.stack(found.latents["means"].to_numpy())[:, back]
    assert (means == np.stack(expected.latents["means"].to_numpy())).all()


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ([0, 1, 2, 3, float("nan")], "each must be finite"),
        ([0, 1, 2, 3, float("inf")], "each must be finite"),
        ([0, 1, 2, 3, "high"], "each must be a number"),
        ([0, 1, 2, 3, None], "each must be a number"),
        ([0.5] * 5, "the levels are 0.5; a trend needs at least three different ones"),
    ],
)
def test_levels_that_are_no_order_are_refused(levels: list[Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        find(make(), levels)


def test_activations_that_are_none_are_refused() -> None:
    arrays = [x.numpy() for x in make()]
    spoiled = arrays[2].copy()
    spoiled[7, 1] = np.nan
    for bad, message in (
        (spoiled, r"condition 2 \(level 2\) holds NaN or infinity, first in question 7"),
        (arrays[2].astype(np.int64), "holds int64; activations are floats of 16, 32 or 64 bits"),
        (arrays[2].astype(np.longdouble), "activations are floats of 16, 32 or 64 bits"),
        (arrays[2].astype(object), "holds object"),
        (arrays[2].tolist(), r"condition 2 \(level 2\) is of the type list; give a tensor or array"),
        (arrays[2][0], "has the shape"),
    ):
        with pytest.raises(InputError, match=message):
            find([*arrays[:2], bad, *arrays[3:]])


def test_an_unknown_method_is_refused() -> None:
    unknown: Any = "median"
    with pytest.raises(InputError, match='"median" is none of fdr, bootstrap, page'):
        find_trends(make(), range(5), Encoder(torch.eye(6), torch.zeros(6)), method=unknown)
