"""Parts of saved trees: what is asked for, beside what a checkpoint holds."""

import jax
from jaxtyping import PyTree


def with_strays(asked: PyTree, saved: PyTree) -> PyTree:
    """What is asked for, in dicts, and what else is saved beside it."""
    if not isinstance(asked, dict):
        return asked
    strays = {name: jax.tree.map(_shape, tree) for name, tree in (saved or {}).items() if name not in asked}
    return {name: with_strays(tree, (saved or {}).get(name)) for name, tree in asked.items()} | strays


def asked_for(found: PyTree, asked: PyTree) -> PyTree:
    """What is asked for, in dicts, of what was found."""
    return {name: asked_for(found[name], tree) for name, tree in asked.items()} if isinstance(asked, dict) else found


def _shape(leaf) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
