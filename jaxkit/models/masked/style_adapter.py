"""StyleDrop's adapter: a small bottleneck behind every layer's attention to the text."""

import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype
from jaxtyping import Array, Float

from jaxkit.nn.transformer import exact_gelu


class StyleAdapter(nn.Module):
    """The weights ``down`` [l d h] and ``up`` [l h d] of the bottlenecks of all layers.

    With ``shared`` the layers have one pair in common, to which each adds a vector of its own, ``down_shift`` [l h]
    and ``up_shift`` [l d]. The way up starts at zero, and with it the adapter's effect.

    Source: Sohn et al., "StyleDrop", NeurIPS 2023, section 3.2 and appendix; open-muse's ``Adapter``.
    """

    layers: int
    size: int
    shared: bool
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, width: int) -> tuple[Float[Array, "l d h"], Float[Array, "l h d"]]:
        normal, zeros, pairs = nn.initializers.normal(0.02), nn.initializers.zeros, 1 if self.shared else self.layers
        down = self.param("down", normal, (pairs, width, self.size), jnp.float32)
        up = self.param("up", zeros, (pairs, self.size, width), jnp.float32)
        if self.shared:
            down = down + self.param("down_shift", normal, (self.layers, self.size), jnp.float32)[:, None]
            up = up + self.param("up_shift", zeros, (self.layers, width), jnp.float32)[:, None]
        return down.astype(self.dtype), up.astype(self.dtype)


def adapted(x: Float[Array, "b n d"], down: Float[Array, "d h"], up: Float[Array, "h d"]) -> Float[Array, "b n d"]:
    """Adds what a bottleneck makes of ``x``: ``x + gelu(x down) up``."""
    return x + exact_gelu(x @ down) @ up
