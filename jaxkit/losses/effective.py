"""What a loss amounts to: its terms with their weights, and what is odd about them."""

from typing import Literal, NamedTuple

Reduction = Literal["batchmean", "mean"]

NEGLIGIBLE_SHARE = 0.01
SMALL_SUM = 0.2


class Term(NamedTuple):
    """A summand of a loss."""

    weight: float
    name: str


class EffectiveWeights(NamedTuple):
    """The terms whose sum has the gradient of a loss; ``str`` of it is a line to print."""

    terms: tuple[Term, ...]
    warnings: tuple[str, ...] = ()

    def __str__(self) -> str:
        return " + ".join(f"{weight:.4g} x {name}" for weight, name in self.terms)


def weigh(*parts: Term, same_as: Term | None = None) -> EffectiveWeights:
    """Warns of parts that hardly count and of a sum far below that of plain cross-entropy.

    ``same_as`` is a single term with the gradient of all ``parts``, shown in their place.
    """
    total = sum(part.weight for part in parts)
    warnings = [
        f"{name} has weight {weight:.4g} of {total:.4g}: it hardly matters"
        for weight, name in parts
        if weight < NEGLIGIBLE_SHARE * total
    ]
    if total < SMALL_SUM:
        warnings.append(
            f"the weights add up to {total:.4g}: against the same weight decay, "
            f"the gradient is about {1 / total:.0f} times smaller than that of plain CE"
        )
    return EffectiveWeights((same_as,) if same_as else parts, tuple(warnings))


def divergence_weight(reduction: Reduction, num_classes: int) -> float:
    """The factor of a divergence summed over classes: ``mean`` divides by their number, as torch's ``KLDivLoss``."""
    return {"batchmean": 1.0, "mean": 1.0 / num_classes}[reduction]
