"""Shortcuts by name: step caches, fewer steps, other solvers, fewer bits, other attention; alone or several at once."""

from __future__ import annotations

import ast
import contextlib
import io
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import diffusers

from ..errors import UserError, did_you_mean, quoted
from ..hunyuan.backends import choose_backend, use_backend
from ..model.models import Models
from ..model.quantise import HOWS, WHOLE, quantised
from ..settings import Settings
from ..stages.denoising import denoise
from ..stages.noise import initial_latents
from ..stages.prompt import encode_prompt

#: Step caches, and a threshold (or interval in steps) of each that is worth a trial
CACHES = {"first block": 0.1, "MagCache": 0.12, "SeaCache": 0.3, "TaylorSeer": 3, "pyramid": 2, "FasterCache": 2}
_WHOLE_NUMBERS = ("TaylorSeer", "pyramid", "FasterCache")
_FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
#: Solvers of diffusers that take a flow, beside Euler's
SOLVERS: dict[str, tuple[type, dict]] = {
    "UniPC": (diffusers.UniPCMultistepScheduler, _FLOW),
    "DPM++": (diffusers.DPMSolverMultistepScheduler, _FLOW),
    "Heun": (diffusers.FlowMatchHeunDiscreteScheduler, {}),
}
BITS = (*HOWS, *WHOLE)


@dataclass(frozen=True)
class Shortcut:
    """What is done otherwise than in a plain run; None is as there.

    Attributes:
        name: As it was asked for.
        steps: How many.
        solver: A name of `SOLVERS`.
        cache: A name of `CACHES` with its threshold or interval, or a cache configuration of diffusers.
        bits: A name of `BITS`.
        attention: A backend of diffusers.
    """

    name: str
    steps: int | None = None
    solver: str | None = None
    cache: tuple[str, float] | Any = None
    bits: str | None = None
    attention: str | None = None

    @contextlib.contextmanager
    def taken(self, models: Models, settings: Settings) -> Iterator[tuple[Models, Settings]]:
        """Inside, the models and settings that it yields take the shortcut; the given models are as before afterwards.

        Args:
            models: What `load` gave.
            settings: Of the plain run.

        Raises:
            UserError: These models cannot take it.
        """
        if self.steps is not None:
            settings = replace(settings, num_inference_steps=self.steps)
        if self.bits is not None:
            models = quantised(models, self.bits)
        with contextlib.ExitStack() as undo:
            if self.attention is not None:
                undo.enter_context(_attending(models, self.attention))
            if self.solver is not None:
                undo.enter_context(_solving(models, self.solver))
            if self.cache is not None:
                undo.enter_context(_caching(models, settings, self.cache))
            yield models, settings


def shortcut(what: object) -> Shortcut:
    """Read a shortcut.

    Args:
        what: "10 steps"; a step cache with its threshold or interval, as "SeaCache 0.3"; a solver, as "UniPC"; bits, as
            "int8"; "attention sage"; several of these with " + " between them; or a cache configuration of diffusers.

    Raises:
        UserError: It is nothing of the kind; the message has the nearest one.

    Example:
        >>> shortcut("UniPC + 10 steps").steps
        10
    """
    if isinstance(what, Shortcut):
        return what
    if type(what).__module__.startswith("diffusers.") and type(what).__name__.endswith("Config"):
        return Shortcut(type(what).__name__.removesuffix("Config"), cache=what)
    if not isinstance(what, str) or not what.strip():
        raise UserError(
            f"shortcut={quoted(what)}: must be a name, or a cache configuration of diffusers; 'SeaCache 0.3' would "
            "work.",
            setting="shortcut",
        )
    parts: dict[str, Any] = {}
    for text in what.split(" + "):
        kind, value = _part(text.strip(), what)
        if kind in parts:
            raise UserError(f"shortcut={what!r}: names two of a kind; one of them would work.", setting="shortcut")
        parts[kind] = value
    return Shortcut(what.strip(), **parts)


def _part(text: str, whole: str) -> tuple[str, Any]:
    """One shortcut of several, as a field of `Shortcut` and its value."""
    by_lower = {name.lower(): name for name in (*CACHES, *SOLVERS, *BITS)}
    word, _, number = text.rpartition(" ")
    if match := re.fullmatch(r"(\d+) steps?", text):
        return "steps", int(match[1])
    if text.startswith("attention "):
        return "attention", text.split(" ", 1)[1].strip()
    name = by_lower.get(text.lower())
    if name in SOLVERS:
        return "solver", name
    if name in BITS:
        return "bits", name
    cache = name if name in CACHES else by_lower.get(word.lower())
    if cache in CACHES:
        return "cache", (cache, CACHES[cache] if name else _threshold(cache, number, whole))
    known = [f"{name} {value}" for name, value in CACHES.items()] + [*SOLVERS, *BITS, "10 steps", "attention native"]
    hint = did_you_mean(text, known, f"known are {', '.join(known)}.")
    raise UserError(f"shortcut={quoted(whole)}: {quoted(text)} is not known; {hint}", setting="shortcut")


def _threshold(cache: str, number: str, whole: str) -> float:
    """The number behind a cache's name."""
    try:
        value = float(number)
    except ValueError:
        value = -1.0
    least = 2 if cache in _WHOLE_NUMBERS else 0
    if not least <= value < float("inf") or (cache in _WHOLE_NUMBERS and value != int(value)):
        kind = "a whole number of steps from 2" if cache in _WHOLE_NUMBERS else "a number from 0"
        near = f"{cache} {CACHES[cache]}"
        raise UserError(f"shortcut={quoted(whole)}: {cache} takes {kind}; {near!r} would work.", setting="shortcut")
    return int(value) if cache in _WHOLE_NUMBERS else value


@contextlib.contextmanager
def _attending(models: Models, name: str) -> Iterator[None]:
    transformer = models.network("transformer")
    width = transformer.config.attention_head_dim
    backend = choose_backend(name, models.device, transformer.dtype, width)
    with models.lock:
        use_backend(transformer, backend)
    try:
        yield
    finally:
        with models.lock:
            use_backend(models.network("transformer"), models.attention)


@contextlib.contextmanager
def _solving(models: Models, name: str) -> Iterator[None]:
    kind, options = SOLVERS[name]
    before = models.pipe.scheduler
    with models.lock:
        models.pipe.scheduler = kind(num_train_timesteps=before.config.num_train_timesteps, **options)
    try:
        yield
    finally:
        with models.lock:
            models.pipe.scheduler = before


@contextlib.contextmanager
def _caching(models: Models, settings: Settings, cache: Any) -> Iterator[None]:
    transformer = models.network("transformer")
    if transformer.is_cache_enabled:
        raise UserError("a step cache is on already; models.pipe.transformer.disable_cache() first works.")
    if models.team is not None:
        raise UserError("a step cache would decide by a share of the tokens; one process alone would work.")
    config = make_cache(models, settings, *cache) if isinstance(cache, tuple) else cache
    with models.lock:
        transformer.enable_cache(config)
    try:
        yield
    finally:
        with models.lock:
            transformer.disable_cache()


def make_cache(models: Models, settings: Settings, name: str, value: float) -> Any:
    """Make a configuration of one of diffusers' step caches.

    Args:
        models: What `load` gave.
        settings: Of the run: MagCache is calibrated for its number of steps, on a run with another seed, which is made
            here.
        name: One of `CACHES`.
        value: Its threshold, or after how many steps something is computed anew.
    """
    identifiers = ("transformer_blocks", "single_transformer_blocks")
    broadcast: dict[str, Any] = {
        "spatial_attention_block_skip_range": int(value),
        "current_timestep_callback": lambda: models.pipe.current_timestep,
    }
    made: dict[str, Callable[[], Any]] = {
        "first block": lambda: diffusers.FirstBlockCacheConfig(value),
        "MagCache": lambda: diffusers.MagCacheConfig(
            value, num_inference_steps=_steps(models, settings), mag_ratios=magnitudes(models, settings)
        ),
        "SeaCache": lambda: diffusers.SeaCacheConfig(
            value, raw_vision_callback=lambda module, args, inputs: list(inputs["hidden_states"])
        ),
        "TaylorSeer": lambda: diffusers.TaylorSeerCacheConfig(
            int(value), use_lite_mode=True, taylor_factors_dtype=models.pipe.transformer.dtype
        ),
        "pyramid": lambda: diffusers.PyramidAttentionBroadcastConfig(
            spatial_attention_timestep_skip_range=(100, 950), **broadcast
        ),
        "FasterCache": lambda: diffusers.FasterCacheConfig(
            is_guidance_distilled=True,
            tensor_format="BCFHW",
            spatial_attention_block_identifiers=identifiers,
            spatial_attention_timestep_skip_range=(-1, 681),
            **broadcast,
        ),
    }
    return made[name]()


def magnitudes(models: Models, settings: Settings) -> list[float]:
    """How much the blocks add from step to step, in a run with the next seed: diffusers prints what MagCache needs."""
    config = diffusers.MagCacheConfig(calibrate=True, num_inference_steps=_steps(models, settings))
    other = replace(settings, seed=models.check(settings).seed + 1)
    prompt = encode_prompt(models, settings.prompt)
    noise = initial_latents(models, other)
    with contextlib.redirect_stdout(io.StringIO()) as said, _caching(models, other, config):
        for _ in denoise(models, prompt, noise, other):
            pass
    return ast.literal_eval(said.getvalue().splitlines()[-2])


def _steps(models: Models, settings: Settings) -> int:
    return models.check(settings).num_inference_steps
