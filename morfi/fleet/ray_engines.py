"""Engines in actors of Ray, on this machine."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import re
import secrets
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from morfi.device import is_gpu
from morfi.engine.protocol import Completion, Sampling
from morfi.errors import InputError, MorfiError
from morfi.fleet.actor import Died, EngineActor, Refused, Started
from morfi.fleet.pool import EngineLostError, Pool

if TYPE_CHECKING:
    from morfi.checkpoints import Checkpoint
    from morfi.engine.directions import DecoderRows, Direction, SaeLatents
    from morfi.engine.protocol import StartEngine
    from morfi.engine.steering import Capture, Steering

LONGEST_S = 3600.0  # that a start may take, or a batch while nothing is known of the engine's speed
SHORTEST_S = 600.0  # that any other batch is waited for
_PATIENCE = 20.0  # times the slowest batch before, by prompt
_CORES = Path("/sys/devices/system/cpu")
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # or an actor without one sees "" as its devices
    "RAY_memory_monitor_refresh_ms": "0",  # it would end engines for what other programs take
}


@dataclass(slots=True)
class RayEngine:
    """The engine of an actor, as a `morfi.engine.protocol.Engine`."""

    actor: Any
    started: Started
    longest_s: float
    _s_by_prompt: float = 0.0  # of the slowest batch

    @property
    def settings(self) -> Mapping[str, Any]:
        """The settings that it runs with."""
        return self.started.settings

    @property
    def device(self) -> str:
        """Its device."""
        return self.started.device

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling | Sequence[Sampling],
        on_finished: Callable[[int], None] | None = None,
        *,
        steering: Sequence[Sequence[Steering]] | None = None,
        capture: Capture | Sequence[Capture | None] | None = None,
    ) -> list[list[Completion]]:
        """As of an engine; `on_finished` hears of all completions at their end."""
        begun = time.monotonic()
        asked = self.actor.call.remote("generate", prompts, sampling, steering=steering, capture=capture)
        found: list[list[Completion]] = _answer(asked, self._limit_s(len(prompts)))
        self._s_by_prompt = max(self._s_by_prompt, (time.monotonic() - begun) / max(1, len(prompts)))
        if on_finished is not None:
            on_finished(sum(map(len, found)))
        return found

    def reset_prefix_cache(self) -> None:
        """Forgets every cached prefix."""
        self._call("reset_prefix_cache")

    def register(self, what: Direction | SaeLatents | DecoderRows) -> str:
        """Makes a direction or SAE known."""
        name: str = self._call("register", what)
        return name

    def load_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Serves `checkpoint` from now on."""
        self._call("load_checkpoint", checkpoint)

    @contextlib.contextmanager
    def shards(self, folder: Path) -> Iterator[None]:
        """For a block: what is captured in it goes to `folder`, which appears whole at its end."""
        _answer(self.actor.open_shards.remote(folder.absolute()), self.longest_s)
        try:
            yield
        except BaseException:
            with contextlib.suppress(EngineLostError, MorfiError):
                _answer(self.actor.close_shards.remote(whole=False), self.longest_s)
            raise
        _answer(self.actor.close_shards.remote(whole=True), self.longest_s)

    def _call(self, name: str, *given: Any) -> Any:
        return _answer(self.actor.call.remote(name, *given), self.longest_s)

    def _limit_s(self, n_prompts: int) -> float:
        """How long a batch is waited for."""
        if not self._s_by_prompt:
            return self.longest_s
        return min(self.longest_s, max(SHORTEST_S, _PATIENCE * self._s_by_prompt * n_prompts))


def _answer(asked: Any, limit_s: float) -> Any:
    """The answer of an actor; raises EngineLostError where its engine or process is gone, or hangs."""
    import ray
    from ray.exceptions import GetTimeoutError, RayError

    try:
        found = ray.get(asked, timeout=limit_s)
    except GetTimeoutError as error:
        raise EngineLostError(f"it gave no answer for {limit_s:.0f} s") from error
    except RayError as error:
        raise EngineLostError("its process has ended") from error
    if isinstance(found, Died):
        raise EngineLostError(found.reason)
    if isinstance(found, Refused):
        raise (InputError if found.is_input else MorfiError)(found.reason)
    return found


@dataclass(slots=True)
class RayStarter:
    """Starts `n` engines alike, each in an actor: a `morfi.fleet.pool.Starter`.

    `engines` are those that have started, by number. Their temporary files lie in `folder`, where those of
    vLLM stay when its process is ended; what torch has compiled stays where other processes find it.
    """

    start_engine: StartEngine
    checkpoint: Checkpoint
    how: Mapping[str, Any]  # of StartEngine
    n: int
    folder: Path
    longest_s: float = LONGEST_S
    engines: dict[int, RayEngine] = field(default_factory=dict)
    _actors: dict[int, Any] = field(default_factory=dict)

    def start(self, number: int) -> RayEngine:
        """Engine `number`."""
        import ray
        from torch._inductor.runtime.cache_dir_utils import cache_dir

        overrides = dict(self.how["overrides"])
        world = world_size(overrides)
        # Left to itself, vLLM may choose Ray once more, inside.
        overrides.setdefault("distributed_executor_backend", "mp" if world > 1 else "uni")
        cores = [] if is_gpu() else cores_of(number, self.n)
        environment = {name: str(len(cores)) for name in _THREADS if cores}
        environment |= {"TMPDIR": str(self.folder), "TORCHINDUCTOR_CACHE_DIR": cache_dir()}
        options = {"num_cpus": 1, "num_gpus": world if is_gpu() else 0, "max_restarts": 0}
        actor = ray.remote(EngineActor).options(**options).remote(sys.path, cores, environment)
        self._actors[number] = actor
        asked = actor.start.remote(self.start_engine, self.checkpoint, **{**self.how, "overrides": overrides})
        engine = RayEngine(actor, _answer(asked, self.longest_s), self.longest_s)
        self.engines[number] = engine
        return engine

    def end(self, number: int) -> None:
        """Ends the process of engine `number`."""
        import ray

        self.engines.pop(number, None)
        actor = self._actors.pop(number, None)
        if actor is not None:
            ray.kill(actor)


def check_engines(n: int) -> None:
    """Raises InputError where this machine cannot run `n` engines, or Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        raise InputError("--engines needs Ray, which is not installed: pip install 'morfi[ray]'")
    prepare_process()
    cores = len(os.sched_getaffinity(0))
    if not is_gpu() and n > cores:
        raise InputError(f"--engines is {n}; expected at most {cores}, the cores of this machine")


def prepare_process() -> None:
    """Sets what Ray reads from the environment when it is imported; values that the user has set stay.

    Nobody without the token of this process can then ask its Ray.
    """
    if "ray" in sys.modules:
        return
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if not {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


def world_size(overrides: Mapping[str, Any]) -> int:
    """The GPUs of one engine; raises InputError for settings that are no numbers of GPUs."""
    n = 1
    for name in ("tensor_parallel_size", "pipeline_parallel_size"):
        value = overrides.get(name, 1)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"engine: {name} is {value!r}; give a whole number from 1 on")
        n *= value
    return n


def cores_of(number: int, n: int) -> list[int]:
    """The cores of engine `number` of `n`: those of this process, in `n` parts.

    Two threads of the same core are often numbered far apart; in two engines they would slow each other down.
    """
    cores = sorted(os.sched_getaffinity(0), key=_place)
    return sorted(cores[len(cores) * number // n : len(cores) * (number + 1) // n])


def _place(core: int) -> tuple[int, int, int]:
    """The socket of a core, the lowest number of a core that is the same one, and its own."""
    topology = _CORES / f"cpu{core}" / "topology"
    try:
        socket = int((topology / "physical_package_id").read_text())
        same = re.split("[,-]", (topology / "thread_siblings_list").read_text())
        return socket, int(same[0]), core
    except (OSError, ValueError):  # a system that does not say
        return 0, core, core


@contextlib.contextmanager
def start_engines(
    start_engine: StartEngine,
    n: int,
    checkpoint: Checkpoint,
    *,
    context: int,
    seed: int,
    overrides: Mapping[str, Any],
    verbose: bool = False,
) -> Iterator[Pool]:
    """Starts `n` engines by `start_engine`, which other processes can import, for a block.

    Raises InputError where this machine has too few cores or GPUs.
    """
    check_engines(n)
    if is_gpu():
        import torch

        if n * world_size(overrides) > torch.cuda.device_count():
            raise InputError(
                f"--engines is {n}, with {world_size(overrides)} GPUs each; this machine has "
                f"{torch.cuda.device_count()}"
            )
    how = {"context": context, "seed": seed, "overrides": overrides}
    with (
        running_ray(n, verbose=verbose) as folder,
        contextlib.closing(Pool(RayStarter(start_engine, checkpoint, how, n, folder), n)) as pool,
    ):
        yield pool


def starting(start_engine: StartEngine, n: int, *, verbose: bool) -> StartEngine:
    """What starts `n` engines as one."""

    def start(
        checkpoint: Checkpoint, *, context: int, seed: int, overrides: Mapping[str, Any]
    ) -> AbstractContextManager[Pool]:
        how: dict[str, Any] = {"context": context, "seed": seed, "overrides": overrides}
        return start_engines(start_engine, n, checkpoint, **how, verbose=verbose)

    return start


@contextlib.contextmanager
def running_ray(n: int, *, verbose: bool = False) -> Iterator[Path]:
    """Ray on this machine alone for a block, with room for `n` actors; one that runs already is used.

    Gives a folder for the temporary files of Ray and of the actors, which goes at the end.
    """
    prepare_process()
    import ray

    prefix = f"morfi-ray-{os.getpid()}-"
    with tempfile.TemporaryDirectory(prefix=prefix, dir="/tmp", ignore_cleanup_errors=True) as folder:
        if ray.is_initialized():
            yield Path(folder)
            return
        before = signal.getsignal(signal.SIGTERM)  # Ray takes it for itself
        try:
            ray.init(
                address="local",
                num_cpus=n,
                include_dashboard=False,
                log_to_driver=verbose,
                logging_level=logging.ERROR,
                _temp_dir=folder,
            )
            signal.signal(signal.SIGTERM, before)
            yield Path(folder)
        finally:
            ray.shutdown()
