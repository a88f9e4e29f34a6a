"""What samples are worth, by a frozen classifier: its features' distance to real images', and its classes."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from jaxkit.errors import ConfigError
from jaxkit.metrics.distributions import Moments, frechet_distance
from jaxkit.schema.maskgit import Score
from jaxkit.tasks.classifier import build, shapes
from jaxkit.tasks.task import Context


class Judge(NamedTuple):
    """A frozen classifier as functions of its variables."""

    init: Callable[..., PyTree]
    """``key, images -> variables``, read from the run that trained it."""
    score: Callable[..., dict[str, float]]
    """``variables, samples, train, test -> {name: number}``: samples are pairs of images and classes (or None), train
    and test batches of images."""


def judge(config: Score, context: Context) -> Judge:
    """Makes the judge that a ``score`` section names. FID is of all images against all of the test split."""
    network = build(config.classifier.model, context)

    def init(key, images):
        found = context.load_weights(config.classifier, shapes(network, key, images))
        variables = {"params": found["params"], **found["state"]}
        _, features = jax.eval_shape(network.apply, variables, images)
        if config.feature not in features:
            raise ConfigError(f"task.score.feature: {config.feature!r} is none of {', '.join(features)}")
        return variables

    @jax.jit
    def look(variables, images):
        logits, features = network.apply(variables, images)
        feature = features[config.feature]
        return logits.argmax(-1), feature.reshape(len(feature), -1) if feature.ndim == 2 else feature.mean((1, 2))

    def moments(variables, batches):
        return _total(Moments.of(np.asarray(look(variables, images)[1])) for images in batches)

    def score(variables, samples, train, test):
        right, seen = [], []
        for images, classes in samples:
            found, features = look(variables, images)
            seen.append(Moments.of(np.asarray(features)))
            if classes is not None:
                right.append(np.asarray(found == classes))
        real = moments(variables, test)
        scores = {
            "fid": frechet_distance(_total(seen), real),
            "fid_train_vs_test": frechet_distance(moments(variables, train), real),
        }
        return scores | ({"class_conditional_accuracy": np.concatenate(right).mean()} if right else {})

    return Judge(init, score)


def _total(moments) -> Moments:
    first, *rest = moments
    for more in rest:
        first += more
    return first
