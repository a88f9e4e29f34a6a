"""Classifier-free guidance: how far logits are driven from those without a condition, at every step.

Two conventions are in use: a scale ``g`` of ``u + g (c - u)`` (Muse, diffusers), and a weight ``w`` of
``(1 + w) c - w u`` (Ho & Salimans, 1d-tokenizer, Halton-MaskGIT); ``g = 1 + w``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxkit.errors import ConfigError
from jaxkit.spelling import nearest

GuidanceSchedule = Literal["constant", "linear", "cosine", "power_cosine"]
Convention = Literal["scale", "weight"]


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """How strong guidance is at every step.

    Args:
        strength: the scale ``g``, or the weight ``w``, at its full.
        schedule: ``constant``; ``linear``, from 0 at the first step to ``strength`` at the last (Muse);
            ``cosine``, ``⌊strength cos(π/2 (1 - (s + 1) / T))⌋`` at step ``s`` of ``T`` (open-muse);
            ``power_cosine``, ``g = 1 + (strength - 1) (1 - cos(π (s / T)^power)) / 2`` (MDT, 1d-tokenizer).
        power: of ``power_cosine``, and of nothing else; 1d-tokenizer has 3.
        convention: what ``strength`` and the schedule are of: the ``scale`` or the ``weight``.

    Raises:
        ConfigError: for options that are unknown or contradict each other.
    """

    strength: float
    schedule: GuidanceSchedule = "constant"
    power: float | None = None
    convention: Convention = "scale"

    def __post_init__(self):
        for name, kinds in (("schedule", get_args(GuidanceSchedule)), ("convention", get_args(Convention))):
            if (given := getattr(self, name)) not in kinds:
                raise ConfigError(f"guidance.{name}: {given!r} is unknown{nearest(given, kinds)}; one of {kinds}")
        if not self.strength >= 0:
            raise ConfigError(f"guidance.strength: must be 0 or more, got {self.strength!r}")
        if (self.power is not None) != (self.schedule == "power_cosine"):
            raise ConfigError(f"guidance.power: is for power_cosine, which needs it; the schedule is {self.schedule!r}")
        if self.power is not None and not self.power > 0:
            raise ConfigError(f"guidance.power: must be above 0, got {self.power!r}")

    def scales(self, steps: int) -> Float[np.ndarray, " t"]:
        """The scale ``g`` of ``u + g (c - u)`` at each of so many steps, float32."""
        step = np.arange(steps)
        match self.schedule:
            case "constant":
                values = np.full(steps, self.strength)
            case "linear":
                values = np.linspace(0, self.strength, steps)
            case "cosine":
                # float32 as in open-muse: the floor tells on the last digit
                quarter = (1 - (step + 1) / steps).astype(np.float32) * np.float32(np.pi) / 2
                values = np.floor(np.cos(quarter) * np.float32(self.strength))
            case "power_cosine":
                full = self.strength - (self.convention == "scale")
                weights = full * (1 - np.cos(np.pi * (step / steps) ** self.power)) / 2
                values = weights + (self.convention == "scale")
        return (scale_of_weight(values) if self.convention == "weight" else values).astype(np.float32)


def scale_of_weight(weight: Any) -> Any:
    """``g = 1 + w``: the scale of ``u + g (c - u)`` that equals the weight of ``(1 + w) c - w u``."""
    return 1 + weight


def weight_of_scale(scale: Any) -> Any:
    """``w = g - 1``: the weight of ``(1 + w) c - w u`` that equals the scale of ``u + g (c - u)``."""
    return scale - 1


def guide(
    conditional: Float[Array, "*b k"], unconditional: Float[Array, "*b k"], scale: Float[Array, ""] | float
) -> Float[Array, "*b k"]:
    """``u + g (c - u)``. Source: Ho & Salimans, "Classifier-Free Diffusion Guidance", 2022, in Muse's convention."""
    return unconditional + scale * (conditional - unconditional)


def guide_adapted(
    adapted: Float[Array, "*b k"],
    conditional: Float[Array, "*b k"],
    unconditional: Float[Array, "*b k"],
    adapter_weight: float,
    text_weight: float,
) -> Float[Array, "*b k"]:
    """Guides by ``a + λ_A (a - c) + λ_B (c - u)``; ``a`` are logits of the network with its adapter, others without it.

    Source: Sohn et al., "StyleDrop: Text-to-Image Generation in Any Style", NeurIPS 2023, eq. 4.
    """
    return adapted + adapter_weight * (adapted - conditional) + text_weight * (conditional - unconditional)


def both_at_once(network: Callable[[Int[Array, "b2 h w"], Any], Array], conditions: Any, empty: Any) -> Callable:
    """Makes the ``logits`` of guided sampling, which calls the network once a step, with a batch twice as large.

    Args:
        network: ``tokens [2b h w], conditions [2b ...] -> logits [2b h w k]``.
        conditions: any tree of arrays ``[b ...]``.
        empty: the same tree of arrays ``[b ...]`` or ``[1 ...]``, of no condition.
    """
    doubled = jax.tree.map(lambda c, e: jnp.concatenate([c, jnp.broadcast_to(e, c.shape)]), conditions, empty)

    def logits(tokens: Int[Array, "b h w"], step: Int[Array, ""]) -> tuple[Array, Array]:
        conditional, unconditional = jnp.split(network(jnp.concatenate([tokens, tokens]), doubled), 2)
        return conditional, unconditional

    return logits


def adapted_at_once(
    adapted: Callable[[Int[Array, "b h w"], Any], Array],
    network: Callable[[Int[Array, "b2 h w"], Any], Array],
    conditions: Any,
    empty: Any,
    adapter_weight: float,
) -> Callable:
    """Makes the ``logits`` of sampling guided by :func:`guide_adapted`, which calls both networks once a step.

    Between the two that it gives, the scale ``1 + λ_B`` leads to ``a + λ_A (a - c) + λ_B (c - u)``. If the adapter
    changes nothing, they are those of :func:`both_at_once`.

    Args:
        adapted: ``tokens [b h w], conditions [b ...] -> logits [b h w k]``, with the adapter.
        network: the same without it, of twice as many.
        conditions: any tree of arrays ``[b ...]``.
        empty: the same tree of arrays ``[b ...]`` or ``[1 ...]``, of no condition.
        adapter_weight: ``λ_A``.
    """
    both = both_at_once(network, conditions, empty)

    def logits(tokens: Int[Array, "b h w"], step: Int[Array, ""]) -> tuple[Array, Array]:
        conditional, unconditional = both(tokens, step)
        given = adapted(tokens, conditions), conditional, unconditional, adapter_weight
        return guide_adapted(*given, 0.0), guide_adapted(*given, -1.0)

    return logits
