"""Asks a running `morfi serve --latents RUN` the same prompt without and with a latent steered.

With OpenAI's own client: the field `steering` goes in, and `steering_applied` says what was done.
"""

from __future__ import annotations

import argparse
import sys

from openai import APIConnectionError, APIStatusError, OpenAI


def main() -> None:
    """Prints both answers, and what was applied."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("latent", type=int, help="GET /v1/morfi/latents lists them")
    parser.add_argument("--sae", help="its name, where the server has several")
    parser.add_argument("--alpha", type=float, default=-0.5, help="in median residual norms")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--key", default="none", help="where the server wants one")
    parser.add_argument("--prompt", default="Q: Which country is Toulouse in?\nA:")
    options = parser.parse_args()
    latents = [{"id": options.latent, "sae": options.sae, "alpha": options.alpha}]
    try:
        with OpenAI(base_url=f"{options.url}/v1", api_key=options.key) as client:
            model = client.models.list().data[0].id
            asked = {"model": model, "prompt": options.prompt, "max_tokens": 16, "stop": "\n"}
            for name, extra in (("plain", {}), ("steered", {"steering": {"latents": latents}})):
                answer = client.completions.create(**asked, temperature=0, extra_body=extra)
                print(f"{name}: {answer.choices[0].text}")
            print(f"applied: {(answer.model_extra or {}).get('steering_applied')}")
    except APIConnectionError:
        sys.exit(f"no server answers at {options.url}; start one: morfi serve --ckpt M_100 --latents RUN")
    except APIStatusError as error:
        sys.exit(f"{options.url}: {error.message}")


if __name__ == "__main__":
    main()
