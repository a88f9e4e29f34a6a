from functools import cache

import jax
import jax.numpy as jnp
import pytest
from conftest import thinned

from jaxkit.models import IMAGE_SIDES, MODELS, build

# Trainable parameters of the published networks, by number of classes.
PARAMETERS = {
    1000: {
        "alexnet": 61_100_840,
        "densenet121": 7_978_856,
        "densenet161": 28_681_000,
        "densenet169": 14_149_480,
        "densenet201": 20_013_928,
        "googlenet": 6_624_904,
        "googlenet_aux": 13_004_888,
        "inception_v3_aux": 27_161_264,
        # Less the auxiliary head: 128 x 768 + 768 x 128 x 25 kernels, 2 x (128 + 768) of norms, 769 x 1000.
        "inception_v3": 27_161_264 - 3_326_696,
        "mnasnet0_5": 2_218_512,
        "mnasnet0_75": 3_170_208,
        "mnasnet1_0": 4_383_312,
        "mnasnet1_3": 6_282_256,
        "mobilenet_v2": 3_504_872,
        "resnet18": 11_689_512,
        "resnet34": 21_797_672,
        "resnet50": 25_557_032,
        "resnet101": 44_549_160,
        "resnet152": 60_192_808,
        "resnext50_32x4d": 25_028_904,
        "resnext101_32x8d": 88_791_336,
        "resnext101_64x4d": 83_455_272,
        "shufflenet_v2_x0_5": 1_366_792,
        "shufflenet_v2_x1_0": 2_278_604,
        "shufflenet_v2_x1_5": 3_503_624,
        "shufflenet_v2_x2_0": 7_393_996,
        "squeezenet1_0": 1_248_424,
        "squeezenet1_1": 1_235_496,
        "vgg11": 132_863_336,
        "vgg13": 133_047_848,
        "vgg16": 138_357_544,
        "vgg19": 143_667_240,
        "vgg11_bn": 132_868_840,
        "vgg13_bn": 133_053_736,
        "vgg16_bn": 138_365_992,
        "vgg19_bn": 143_678_248,
        "wide_resnet50_2": 68_883_240,
        "wide_resnet101_2": 126_886_696,
    },
    200: {"mobilenet_v2_tfkd": 2_497_480},
    100: {
        "alexnet_tfkd": 2_495_396,
        "cnn": 369_124,
        "densenet121_tfkd": 7_048_548,
        "densenet161_tfkd": 26_681_188,
        "densenet169_tfkd": 12_643_172,
        "densenet201_tfkd": 18_277_220,
        "googlenet_tfkd": 6_258_500,
        "mobile_half": 812_836,
        "mobilenet_v2_tfkd": 2_369_380,
        "resnet8": 83_892,
        "resnet14": 181_108,
        "resnet20": 278_324,
        "resnet32": 472_756,
        "resnet44": 667_188,
        "resnet56": 861_620,
        "resnet110": 1_736_564,
        "resnet8x4": 1_233_540,
        "resnet32x4": 7_433_860,
        "resnet18_cifar": 11_220_132,
        "resnet34_cifar": 21_328_292,
        "resnet50_cifar": 23_705_252,
        "resnet101_cifar": 42_697_380,
        "resnet152_cifar": 58_341_028,
        "resnext29_8x64d": 34_518_948,
        "shufflenet_v1": 949_258,
        "shufflenet_v2_x0_5_tfkd": 448_268,
        "shufflenet_v2_x1_0_tfkd": 1_360_896,
        "shufflenet_v2_x1_5_tfkd": 2_584_716,
        "shufflenet_v2_x2_0_tfkd": 5_550_976,
        "shufflenet_v2_repdistiller": 1_355_528,
        "vgg19_bn": 139_990_948,
        "vgg8_repdistiller": 3_965_028,
        "vgg11_repdistiller": 9_277_284,
        "vgg13_repdistiller": 9_462_180,
        "vgg16_repdistiller": 14_774_436,
        "vgg19_repdistiller": 20_086_692,
        "wrn_16_1": 180_916,
        "wrn_16_2": 703_284,
        "wrn_40_1": 569_780,
        "wrn_40_2": 2_255_156,
        "wrn_40_4": 8_972_340,
        "wrn_28_10": 36_536_884,
    },
    10: {
        "alexnet_sween": 2_472_266,
        "alexnet_tfkd": 2_472_266,
        "densenet_bc_100_12": 769_162,
        "densenet_bc_190_40": 25_624_430,
        "lenet": 62_006,
        "resnet20": 272_474,
        "resnet26": 369_690,
        "resnet32": 466_906,
        "resnet110": 1_730_714,
        "vgg11_sween": 9_231_114,
        "vgg13_sween": 9_416_010,
        "vgg16_sween": 14_728_266,
        "vgg19_sween": 20_040_522,
    },
}
PUBLISHED = [(name, classes, n) for classes, counts in PARAMETERS.items() for name, n in counts.items()]


CLASSES = {name: classes for name, classes, _ in PUBLISHED}


@cache
def traced(name, classes):
    """Shapes of logits, features and variables; tracing the larger models takes a second."""
    x = jnp.zeros((2, IMAGE_SIDES[name], IMAGE_SIDES[name], 3))
    (logits, features), variables = jax.eval_shape(
        build(name, num_classes=classes).init_with_output, jax.random.key(0), x
    )
    return logits, features, variables


# one of each family
SOME = {MODELS[case[0]]: case for case in reversed(PUBLISHED)}.values()


@pytest.mark.parametrize(("name", "classes", "expected"), thinned(PUBLISHED, SOME))
def test_models_have_as_many_parameters_as_published(name, classes, expected):
    _, _, variables = traced(name, classes)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == expected


def test_every_model_but_the_tiny_ones_has_a_published_count():
    assert set(CLASSES) | {name for name in MODELS if "tiny" in name} == set(MODELS)


# the last of each family, the deepest as a rule, and what all are counted by above
@pytest.mark.parametrize("name", thinned(MODELS, {family: name for name, family in MODELS.items()}.values()))
def test_every_model_returns_logits_and_features_by_name(name):
    classes = CLASSES.get(name, 7)
    logits, features, _ = traced(name, classes)
    auxiliary = [key for key in features if key.startswith("aux")]
    stages = [f"stage{i + 1}" for i in range(len(features) - len(auxiliary) - 2)]

    assert logits.shape == (2, classes)
    assert all(features[head].shape == (2, classes) for head in auxiliary)
    assert set(features) == {"stem", *stages, "pre_logits", *auxiliary}
    assert all(features[stage].ndim == 4 for stage in ("stem", *stages))
    assert features["pre_logits"].ndim == 2
