"""One side of eval_throughput.py: transformers `generate`, each batch stopping when all its rows have."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    StoppingCriteria,
    StoppingCriteriaList,
)


class AllHaveNewline(StoppingCriteria):  # type: ignore[misc]
    """Ends a row at the first token that holds a newline."""

    def __init__(self, newline_ids: list[int]) -> None:
        self._newline_ids = torch.tensor(newline_ids)

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return torch.isin(input_ids[:, -1], self._newline_ids)


def main() -> None:
    """Reads {"model", "prompts", "dtype", "batch_size", "max_tokens"}; writes texts and seconds."""
    job = json.load(sys.stdin)
    tokenizer = AutoTokenizer.from_pretrained(job["model"], padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=getattr(torch, job["dtype"])).eval()
    pieces = tokenizer.batch_decode([[index] for index in range(len(tokenizer))])
    newline = AllHaveNewline([index for index, piece in enumerate(pieces) if "\n" in piece])
    # Batches of like lengths waste the least padding.
    order = sorted(range(len(job["prompts"])), key=lambda i: len(tokenizer(job["prompts"][i])["input_ids"]))
    texts: list[str] = [""] * len(order)
    started = time.perf_counter()
    for start in range(0, len(order), job["batch_size"]):
        rows = order[start : start + job["batch_size"]]
        inputs = tokenizer([job["prompts"][i] for i in rows], return_tensors="pt", padding=True)
        with torch.inference_mode():
            out = model.generate(
                **inputs,
                max_new_tokens=job["max_tokens"],
                do_sample=False,
                stopping_criteria=StoppingCriteriaList([newline]),
                pad_token_id=tokenizer.pad_token_id,
            )
        new = tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        for i, text in zip(rows, new, strict=True):
            texts[i] = text.split("\n", 1)[0]
    print(json.dumps({"generate_s": time.perf_counter() - started, "texts": texts}))


main()
