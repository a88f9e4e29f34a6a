"""What samples are worth, by a frozen classifier: its features' distance to real images', and its classes."""

from collections.abc import Callable
from functools import reduce
from operator import add
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from jaxkit.errors import ConfigError
from jaxkit.metrics.distributions import Moments, frechet_distance, inception_score, kernel_distance, manifold_scores
from jaxkit.schema.maskgit import Score
from jaxkit.tasks.judges import frozen_classifier
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
    network = frozen_classifier(config.classifier, context)
    same_classes = network.num_classes == context.num_classes

    def init(key, images):
        variables = network.init(key, images)
        _, features = jax.eval_shape(network.apply, variables, images)
        if config.feature not in features:
            raise ConfigError(f"task.score.feature: {config.feature!r} is none of {', '.join(features)}")
        return variables

    @jax.jit
    def look(variables, images):
        logits, features = network.apply(variables, images)
        feature = features[config.feature]
        return jax.nn.softmax(logits), feature if feature.ndim == 2 else feature.mean((1, 2))

    def features_of(variables, batches):
        return np.concatenate([np.asarray(look(variables, images)[1]) for images in batches])

    def score(variables, samples, train, test):
        probabilities, features, right = [], [], []
        for images, classes in samples:
            found, seen = (np.asarray(array) for array in look(variables, images))
            probabilities.append(found)
            features.append(seen)
            if classes is not None and same_classes:
                right.append(found.argmax(-1) == np.asarray(classes))
        drawn, real = np.concatenate(features), features_of(variables, test)
        # the training images may be many: their features are not kept
        of_train = reduce(add, (Moments.of(np.asarray(look(variables, images)[1])) for images in train))
        manifolds = manifold_scores(real, drawn)
        scores = {
            "fid": frechet_distance(Moments.of(drawn), Moments.of(real)),
            "fid_train_vs_test": frechet_distance(of_train, Moments.of(real)),
            "kid": kernel_distance(real, drawn).mean,
            "precision": manifolds.precision,
            "recall": manifolds.recall,
            "inception_score": inception_score(np.concatenate(probabilities)).mean,
        }
        return scores | ({"class_conditional_accuracy": np.concatenate(right).mean()} if right else {})

    return Judge(init, score)
