"""Choosing strengths and halving, on verdicts made up for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hypothesis import given
from hypothesis import strategies as st

from morfi.interventions.verdicts import (
    Answerer,
    Arm,
    Verdicts,
    best_arms,
    n_surviving,
    rung_sizes,
    survivors,
)

IDS = [f"q{i}" for i in range(6)]


def verdicts_of(scores: Mapping[Arm, Sequence[bool]]) -> Verdicts:
    found = Verdicts()
    for arm, right in scores.items():
        for question_id, correct in zip(IDS, right, strict=False):
            found.add(Answerer.CHECKPOINT, arm, question_id, correct=correct)
    return found


def test_the_best_strength_is_the_smallest_of_equally_good_ones() -> None:
    arms = [Arm("a", alpha) for alpha in (-2.0, -0.5, 0.5, 1.0)] + [Arm("b", 1.0)]
    right = {arms[0]: [True] * 6, arms[1]: [True] * 6, arms[2]: [True] * 6, arms[3]: [True] * 5 + [False]}
    found = best_arms(verdicts_of({**right, arms[4]: [False] * 6}), arms, IDS)
    assert found == {"a": arms[1], "b": arms[4]}


def test_a_strength_that_was_not_asked_everything_is_not_chosen() -> None:
    arms = [Arm("a", 1.0), Arm("a", 2.0)]
    found = best_arms(verdicts_of({arms[0]: [True] * 3, arms[1]: [False] * 6}), arms, IDS)
    assert found == {"a": arms[1]}


arms_with_verdicts = st.dictionaries(
    st.builds(Arm, st.sampled_from("abcd"), st.sampled_from((-2.0, -1.0, 0.5, 1.0, 4.0))),
    st.lists(st.booleans(), min_size=6, max_size=6),
    min_size=1,
)


@given(arms_with_verdicts)
def test_halving_keeps_the_best_of_all_and_of_each_direction(
    scores: dict[Arm, list[bool]],
) -> None:
    arms = list(scores)
    verdicts = verdicts_of(scores)
    kept = survivors(verdicts, arms, IDS)
    directions = {arm.direction for arm in arms}
    assert len(kept) == n_surviving(len(arms), len(directions))
    assert kept == [arm for arm in arms if arm in kept]
    assert set(best_arms(verdicts, arms, IDS).values()) <= set(kept)
    best = {name: max(sum(scores[arm]) for arm in arms if arm.direction == name) for name in directions}
    lost = [arm for arm in arms if arm not in kept]
    extra = [arm for arm in kept if sum(scores[arm]) < best[arm.direction]]
    assert all(sum(scores[one]) >= sum(scores[other]) for one in extra for other in lost)


@given(st.integers(1, 10_000))
def test_rounds_rise_to_all_questions(n: int) -> None:
    sizes = rung_sizes(n)
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == n
    assert len(sizes) <= 4
    assert sizes[0] >= n / 8
