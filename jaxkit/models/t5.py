"""T5's encoder. transformers has one in Flax, but it calls what newer versions of JAX have not."""

import math
import re
from functools import partial

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn
from flax.typing import Dtype
from jaxtyping import Array, Float, Int

ACTIVATIONS = {"relu": nn.relu, "gelu_new": nn.gelu, "gelu": lambda x: nn.gelu(x, approximate=False), "silu": nn.silu}
# Of each of our names, the one that transformers gives the same array.
_NAMES = (
    (r"block(\d+)/([qkvo])/kernel", r"encoder/block/\1/layer/0/SelfAttention/\2/kernel"),
    (r"block(\d+)/(w\w+)/kernel", r"encoder/block/\1/layer/1/DenseReluDense/\2/kernel"),
    (r"block(\d+)/norm_attention/scale", r"encoder/block/\1/layer/0/layer_norm/weight"),
    (r"block(\d+)/norm_feed_forward/scale", r"encoder/block/\1/layer/1/layer_norm/weight"),
    (r"norm/scale", "encoder/final_layer_norm/weight"),
    (r"position_bias/embedding", "encoder/block/0/layer/0/SelfAttention/relative_attention_bias/embedding"),
)


class T5Encoder(nn.Module):
    """Encodes tokens by layers whose attention knows relative positions (Raffel et al., 2020, section 2.1).

    The fields are those of transformers' config.json. ``attention_mask`` is 1 where a token is attended to. Returns the
    states before each layer, and those behind the last norm.
    """

    vocab_size: int
    d_model: int
    d_kv: int
    d_ff: int
    num_layers: int
    num_heads: int
    dense_act_fn: str = "relu"
    is_gated_act: bool = False
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, input_ids: Int[Array, "b t"], attention_mask: Int[Array, "b t"]
    ) -> list[Float[Array, "b t {self.d_model}"]]:
        table = relative_buckets(
            input_ids.shape[1], self.relative_attention_num_buckets, self.relative_attention_max_distance
        )
        position = nn.Embed(self.relative_attention_num_buckets, self.num_heads, name="position_bias")(table)
        hidden = jnp.where(attention_mask, 0.0, jnp.finfo(jnp.float32).min)
        bias = rearrange(position, "q k h -> 1 h q k") + rearrange(hidden, "b k -> b 1 1 k")

        x = nn.Embed(self.vocab_size, self.d_model, dtype=self.dtype, name="shared")(input_ids)
        states = [x]
        for number in range(self.num_layers):
            states.append(self._block(f"block{number}")(states[-1], bias))
        return [*states[:-1], nn.RMSNorm(self.layer_norm_epsilon, dtype=self.dtype, name="norm")(states[-1])]

    def _block(self, name: str) -> "_Block":
        return _Block(
            self.num_heads, self.d_kv, self.d_ff, self.dense_act_fn, self.is_gated_act, self.layer_norm_epsilon,
            self.dtype, name=name,
        )  # fmt: skip


class _Block(nn.Module):
    """Attention and a feed-forward layer, each behind a norm and beside a shortcut."""

    num_heads: int
    d_kv: int
    d_ff: int
    activation: str
    gated: bool
    epsilon: float
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "b t d"], bias: Float[Array, "b h t t"]) -> Float[Array, "b t d"]:
        dense = partial(nn.Dense, use_bias=False, dtype=self.dtype)
        norm = partial(nn.RMSNorm, self.epsilon, dtype=self.dtype)

        y = norm(name="norm_attention")(x)
        q, k, v = (
            rearrange(dense(self.num_heads * self.d_kv, name=name)(y), "b t (h d) -> b h t d", h=self.num_heads)
            for name in "qkv"
        )
        # T5's scores are not scaled
        scores = (q @ rearrange(k, "b h t d -> b h d t")).astype(jnp.float32) + bias
        y = nn.softmax(scores).astype(self.dtype) @ v
        x = x + dense(x.shape[-1], name="o")(rearrange(y, "b h t d -> b t (h d)"))

        y = norm(name="norm_feed_forward")(x)
        act = ACTIVATIONS[self.activation]
        if self.gated:
            y = act(dense(self.d_ff, name="wi_0")(y)) * dense(self.d_ff, name="wi_1")(y)
        else:
            y = act(dense(self.d_ff, name="wi")(y))
        return x + dense(x.shape[-1], name="wo")(y)


def relative_buckets(length: int, buckets: int, max_distance: int) -> Int[np.ndarray, "{length} {length}"]:
    """Numbers the distances from each position to each other: near ones singly, far ones by logarithmic bins.

    Half of the buckets are for positions behind, half for those ahead; ``max_distance`` and beyond share the last.
    """
    distance = np.arange(length)[None, :] - np.arange(length)[:, None]
    half = buckets // 2
    exact = half // 2
    near = np.abs(distance)
    # float32, as torch: a bin's edge may be its neighbour's in float64
    bins = np.log(np.maximum(near, 1).astype(np.float32) / exact) / math.log(max_distance / exact) * (half - exact)
    far = np.minimum(exact + bins.astype(np.int64), half - 1)
    return np.where(near < exact, near, far) + half * (distance > 0)


def stored_name(path: str) -> str:
    """The path that transformers gives the array at ``path``, of parts joined by ``/``."""
    for pattern, name in _NAMES:
        path, found = re.subn(f"^{pattern}$", name, path)
        if found:
            return path
    return path
