"""Multi-head attention: on GPUs by the cuDNN kernel that never stores the weights, elsewhere by XLA."""

from collections.abc import Callable
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype
from jaxtyping import Array, Bool, Float

from jaxkit.errors import ConfigError, ShapeError


class Attention(nn.Module):
    """Attends from every position of ``x`` to those of ``context``, or of ``x`` itself, with several heads.

    ``out(softmax(query(x) key(context)ᵀ / sqrt(d / num_heads)) value(context))``. Positions of the context where
    ``mask`` is False are not attended to. In training each weight is dropped with probability ``dropout_rate``.
    The softmax is float32, the products are in ``dtype``. ``implementation`` is that of
    ``jax.nn.dot_product_attention``: None leaves the choice to JAX. With a mask it is XLA's, since cuDNN's kernel
    trains on no masked context of odd length, such as CLIP's 77 tokens.

    Raises ShapeError if the heads do not divide the width, and ConfigError for what cuDNN's kernel cannot do:
    float32, and dropping weights.

    Source: Vaswani et al., "Attention Is All You Need", NeurIPS 2017, section 3.2.
    """

    num_heads: int
    use_bias: bool = False
    dropout_rate: float = 0.0
    kernel_init: Callable = nn.initializers.normal(0.02)
    implementation: Literal["xla", "cudnn"] | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b t d"],
        context: Float[Array, "b s e"] | None = None,
        mask: Bool[Array, "b s"] | None = None,
        train: bool = False,
    ) -> Float[Array, "b t d"]:
        width = x.shape[-1]
        if width % self.num_heads:
            raise ShapeError(f"{self.num_heads} heads do not divide a width of {width}")
        options = {"use_bias": self.use_bias, "kernel_init": self.kernel_init, "dtype": self.dtype}
        project = partial(nn.DenseGeneral, (self.num_heads, width // self.num_heads), **options)

        context = x if context is None else context
        query, key, value = project(name="query")(x), project(name="key")(context), project(name="value")(context)
        y = self._attend(query, key, value, None if mask is None else mask[:, None, None, :], train)
        return nn.DenseGeneral(width, axis=(-2, -1), name="out", **options)(y)

    def _attend(self, query, key, value, mask, train: bool) -> Float[Array, "b t n d"]:
        drop = train and self.dropout_rate > 0
        if self.implementation == "cudnn" and (drop or jnp.dtype(self.dtype).itemsize != 2):
            fault = "drop attention weights: set attention_dropout to 0" if drop else f"compute in {self.dtype}"
            raise ConfigError(f"attention 'cudnn' cannot {fault}, or take attention 'xla'")
        if not drop:
            implementation = self.implementation if mask is None else "xla"
            return jax.nn.dot_product_attention(query, key, value, mask=mask, implementation=implementation)
        return nn.dot_product_attention(
            query,
            key,
            value,
            mask=mask,
            broadcast_dropout=False,
            dropout_rng=self.make_rng("dropout"),
            dropout_rate=self.dropout_rate,
            deterministic=False,
            dtype=self.dtype,
            force_fp32_for_softmax=True,
        )
