"""Checks of a steering or capture specification before its request may join a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from morfi.engine.directions import DecoderRows, Direction, SaeLatents, is_numbers, pack
from morfi.engine.residual_stream import ResidualStream
from morfi.engine.steering import Capture, Steering, from_json, to_json
from morfi.errors import InputError
from morfi.serve.plugin.bank import Registry
from morfi.serve.plugin.finite import check_amounts
from morfi.serve.plugin.joint import join, put_in_together
from morfi.serve.plugin.plain import comes_with_end, parsed
from morfi.serve.plugin.requested import IN_CORE


@dataclass(slots=True)
class Admission:
    """The steering that one engine can do: why not at all, or its layers, width and registered directions."""

    refusal: str | None
    n_layers: int
    d_model: int
    registry: Registry = field(default_factory=Registry)
    dtype: str = "float32"

    @classmethod
    def of(cls, config: Any) -> Admission:
        """The admission of an engine of this vLLM configuration, with nothing registered."""
        model = config.model_config
        return cls(
            unsteerable(config),
            model.get_total_num_hidden_layers(),
            model.get_hidden_size(),
            dtype=str(model.dtype).removeprefix("torch."),
        )

    @property
    def stream(self) -> ResidualStream:
        """The residual stream of the model."""
        return ResidualStream("the model", self.n_layers, self.d_model)

    def register(self, what: Direction | SaeLatents | DecoderRows) -> str:
        """Registers a direction or SAE that fits the model; returns the name that requests use."""
        if not isinstance(what, Direction | SaeLatents | DecoderRows):
            raise InputError(
                f"a {type(what).__name__} cannot be registered; make a Direction or SaeLatents of it"
            )
        self._check_width(what)
        return self.registry.add(what)

    def directions(
        self,
        steering: Sequence[Steering],
        capture: Capture | None,
        inline: Mapping[str, Direction],
        n_prompt: int,
    ) -> dict[str, bytes]:
        """The packed directions of a request, by name: those that came with it and registered ones.

        Raises InputError for what this engine cannot do exactly as asked, of a prompt of `n_prompt` tokens.
        """
        if self.refusal is not None:
            raise InputError(self.refusal)
        for layer in (*(one.layer for one in steering), *(capture.layers if capture else ())):
            self.stream.check_layer(layer, "what is steered or captured")
        packed = {}
        for one in steering:
            if isinstance(one.direction, str) and one.direction in inline:
                direction = inline[one.direction]
                self._check_width(direction)
            else:
                direction = self.registry.get(one.direction)
            packed[str(one.direction)] = pack(direction)
            if one.does.needs_latent and direction.encoder is None:
                raise InputError(
                    f"{one.operation} needs a latent with its encoder, which direction "
                    f"{str(one.direction)[:12]} lacks; add or project it"
                )
        for parts in put_in_together(join(steering, packed, n_prompt)):
            check_amounts(parts, self.dtype)
        return packed

    def _check_width(self, what: Direction | SaeLatents | DecoderRows) -> None:
        if isinstance(what, Direction):
            self.stream.check_width(len(what.vector), "this vector")
        else:
            self.stream.check_width(what.vectors.shape[1], "this SAE")


def admission_of(input_processor: Any) -> Admission:
    """The admission that belongs to an engine's input processor, made on first use."""
    found: Admission | None = getattr(input_processor, "morfi_admission", None)
    if found is None:
        found = Admission.of(input_processor.vllm_config)
        input_processor.morfi_admission = found
    return found


def admit(request: Any, admission: Admission) -> None:
    """Checks the specification of an `EngineCoreRequest` and makes it ready for the workers.

    One that captures, or whose changes depend on a latent's value, reads no cached prefix. Raises InputError;
    the request must not be run then.
    """
    params = request.sampling_params
    if request.resumable:
        raise InputError("a prompt that comes in parts cannot be steered or captured; send it whole")
    specification = parsed(params.extra_args["morfi"])
    # What morfi's own engine adds: whether it will ask for a report, and the request's number in shards.
    own = {"report": specification.get("report", False), "shard": specification.get("shard")}
    plain, inline = _named({key: value for key, value in specification.items() if key not in own})
    steering, capture = from_json(plain)
    if "report" not in specification and comes_with_end(params, capture):
        own["report"] = IN_CORE
    packed = admission.directions(steering, capture, inline, _prompt_length(request))
    ready = {**to_json(steering, capture), **own, "directions": packed}
    params.extra_args = {**params.extra_args, "morfi": ready}
    # What a latent's value changes is counted where it is computed.
    depends = any(one.does.needs_latent and one.positions != "generated" for one in steering)
    if capture is not None or depends:
        params.skip_reading_prefix_cache = True


def _prompt_length(request: Any) -> int:
    """Tokens of the prompt of an `EngineCoreRequest`."""
    if request.prompt_token_ids is not None:
        return len(request.prompt_token_ids)
    return len(request.prompt_embeds)


def _named(specification: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Direction]]:
    """The specification with a name for each direction that is given as numbers, and those directions."""
    entries = specification.get("steering")
    if not isinstance(entries, list):
        return specification, {}
    inline: dict[str, Direction] = {}
    named = []
    for entry in entries:
        numbers: Any = entry.get("direction") if isinstance(entry, dict) else None
        if is_numbers(numbers):
            direction = Direction(numbers)
            inline[direction.sha256] = direction
            named.append({**entry, "direction": direction.sha256})
        else:
            named.append(entry)
    return {**specification, "steering": named}, inline


def unsteerable(config: Any) -> str | None:
    """Why the engine of a vLLM configuration cannot steer, whatever its model; None where it can."""
    parallel = config.parallel_config
    reasons = {
        "speculative decoding": config.speculative_config is not None,
        "two micro-batches a step": parallel.use_ubatching,
        "context parallelism": parallel.decode_context_parallel_size > 1
        or getattr(parallel, "prefill_context_parallel_size", 1) > 1,
        # Whoever computed them need not have steered them alike.
        "keys and values from elsewhere (kv_transfer_config)": config.kv_transfer_config is not None,
        # It takes the directions from the device, and does not bring them back.
        "sleep mode (enable_sleep_mode)": config.model_config.enable_sleep_mode,
    }
    found = [reason for reason, applies in reasons.items() if applies]
    return f"steering and capture do not work with {' and '.join(found)}; start without" if found else None
