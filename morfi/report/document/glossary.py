"""The words of a report, for somebody who has not read the paper."""

from __future__ import annotations

from morfi.latents.find import OF_LEVELS, FindRun
from morfi.report.document.html import Section, folded, table
from morfi.report.document.material import Material
from morfi.runs.settings import settings_of

_WORDS = (
    (
        "HighlyKnown, MaybeKnown, WeaklyKnown, Unknown",
        "what the base model knew before: it was asked each question under several few-shot prompts, "
        "and every answer, some answers, only sampled answers or none were right; Known is all but "
        "Unknown",
    ),
    (
        "M_0 ... M_100",
        "the model after fine-tuning on a mixture with 0 to 100 % Unknown questions",
    ),
    (
        "train, dev, test",
        "questions on disjoint subjects: to train on, to choose strengths on, to report on",
    ),
    (
        "residual stream",
        "the vector that a layer of the model hands to the next, here at the last token of the prompt",
    ),
    (
        "SAE, latent",
        "a sparse autoencoder writes such a vector as a sum of few of many directions; each is a "
        "latent, which fires where its share is above 0",
    ),
    (
        "trend, S, rho",
        "whether a latent's mean activity rises or falls with the level: S counts pairs of trainings "
        "in order less those out of order, rho is Spearman's rank correlation",
    ),
    (
        "steering, alpha",
        "adding a direction to the residual stream while the model answers; alpha is its length in "
        "median norms of that stream",
    ),
    (
        "gain",
        "accuracy steered less unsteered, in points, on the same questions",
    ),
    (
        "delta_u",
        "the direction from the mean residual stream of the lowest level to that of the highest; it "
        "needs no SAE",
    ),
    (
        "control latents, random directions",
        "latents that fire as often without a trend, and directions drawn at random: what any "
        "disturbance does",
    ),
    (
        "R_K, base rate",
        "of the answers that steering brought back, the share that the reference, the lowest level, "
        "has right; and that share of all that was wrong before",
    ),
)


def glossary(material: Material) -> Section | None:
    """The words that the sections use; none where nothing was found or steered."""
    if material.chain.find is None:
        return None
    words = dict(_WORDS)
    if settings_of(material.chain.find, FindRun).rho_of == OF_LEVELS:
        words["trend, S, rho"] += " of the levels, each by the mean of its trainings"
    body = table(("word", "means"), list(words.items()), caption="The words used here")
    return Section("words", "The words", folded("What M_100, latent, S, alpha, R_K and others mean", body))
