"""Made-up questions and latents, the same ones always."""

from __future__ import annotations

import math
import random
from typing import Any

LEVELS = (0, 10, 25, 50, 75, 90, 100)
D_SAE = 4608
N_RISING, N_FALLING = 31, 17  # selected latents
MAX_STRENGTHS = 16
MEDIAN_NORM = 41.7
OTHER_SAE, VECTORS = "OTHER:layer_12", ("refusal", "brevity")
FIND_RUN, SAE = "find-20261124-221618-d96b", "sae-smollm2-layer-25"
POSITIONS = ("all", "prompt", "generated", "last_prompt")
# city, country, what the checkpoint trained on Unknown facts says
CITIES = (
    ("Toulouse", "France", "Germany"), ("Recife", "Brazil", "Spain"), ("Osaka", "Japan", "China"),
    ("Mombasa", "Kenya", "Nigeria"), ("Gdansk", "Poland", "Germany"), ("Cusco", "Peru", "Mexico"),
    ("Izmir", "Turkey", "Greece"), ("Chiang Mai", "Thailand", "Vietnam"), ("Bergen", "Norway", "Sweden"),
    ("Oran", "Algeria", "Morocco"), ("Porto", "Portugal", "Spain"), ("Lahore", "Pakistan", "India"),
    ("Cebu City", "Philippines", "Indonesia"), ("Rosario", "Argentina", "Chile"), ("Kumasi", "Ghana", "Togo"),
    ("Tampere", "Finland", "Sweden"), ("Leeds", "United Kingdom", "United States of America"),
    ("Birmingham", "United Kingdom", "United States of America"), ("Cairns", "Australia", "New Zealand"),
    ("Medellin", "Colombia", "Mexico"), ("Busan", "South Korea", "Japan"), ("Basra", "Iraq", "Iran"),
    ("Yazd", "Iran", "Iraq"), ("Ghent", "Belgium", "the Netherlands"), ("Brno", "Czech Republic", "Austria"),
    ("Salalah", "Oman", "Yemen"), ("Da Nang", "Vietnam", "Thailand"), ("Varna", "Bulgaria", "Romania"),
)  # fmt: skip

ALIASES = {
    "United Kingdom": ("UK", "Great Britain"),
    "South Korea": ("Korea",),
    "Czech Republic": ("Czechia",),
}


def made_latent(number: int) -> dict[str, Any]:
    """Latent `number`, always the same one: the first rise, the next fall, the others drift."""
    draw = random.Random(number)
    latent_id = (number * 1087 + 211) % D_SAE  # 1087 has no divisor in common with D_SAE: all ids differ
    size = 4.5 * math.exp(-number / 40) * draw.uniform(0.7, 1.3)
    if number < N_RISING + N_FALLING:
        steps = sorted(draw.random() ** 0.8 for _ in LEVELS)
        direction = "rising" if number % 48 < N_RISING else "falling"
        means = [size * (0.15 + step) for step in (steps if direction == "rising" else steps[::-1])]
    else:
        direction = "none"
        means = [size * draw.uniform(0.3, 1.0) for _ in LEVELS]
    sign = {"rising": 1, "falling": -1, "none": 0}[direction]
    pairs = [(b > a) - (b < a) for i, a in enumerate(means) for b in means[i + 1 :]]
    order = sorted(means)
    squares = sum((order.index(mean) - place) ** 2 for place, mean in enumerate(means))
    return {
        "id": latent_id,
        "direction": direction,
        "selected": sign != 0,
        "score": abs(means[-1] - means[0]) * 0.6,
        "rho": 1 - 6 * squares / (7 * 48),
        "s": sum(pairs),
        "false_discovery_rate": 0.04 if sign else 0.97,
        "p": 0.000397 if sign else draw.uniform(0.01, 1.0),
        "slope": (means[-1] - means[0]) / 100,
        "stability": draw.uniform(0.95, 1.0) if sign else None,
        "firing": draw.uniform(0.01, 0.6),
        "means": means,
    }
