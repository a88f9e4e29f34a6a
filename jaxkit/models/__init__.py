"""The models by name: ``MODELS[name]`` is the file that defines it, imported when it is built.

Names without suffix are torchvision's, or of networks that exist once. A suffix tells whose layout it is where several
differ: ``_tfkd`` (teacher-free distillation), ``_sween``, ``_repdistiller``, ``_cifar`` where these agree.
"""

from importlib import import_module

# family -> side of the images its models were made for -> names
_FAMILIES = {
    "alexnet": {224: "alexnet", 32: "alexnet_tfkd alexnet_sween alexnet_tiny_tfkd", 64: "alexnet_tiny"},
    "cifar_resnet": {
        32: "resnet8 resnet14 resnet20 resnet26 resnet32 resnet44 resnet56 resnet110 resnet8x4 resnet32x4",
        8: "cifar_resnet_tiny",
    },
    "cnn": {32: "cnn", 16: "cnn_tiny"},
    "densenet": {
        224: "densenet121 densenet161 densenet169 densenet201",
        32: (
            "densenet121_tfkd densenet161_tfkd densenet169_tfkd densenet201_tfkd densenet_bc_100_12 densenet_bc_190_40"
        ),
        40: "densenet_tiny",
        16: "densenet_tiny_tfkd densenet_bc_tiny",
    },
    "googlenet": {
        224: "googlenet googlenet_aux",
        32: "googlenet_tfkd",
        64: "googlenet_tiny",
        16: "googlenet_tiny_tfkd",
    },
    "inception": {299: "inception_v3 inception_v3_aux", 80: "inception_tiny"},
    "lenet": {32: "lenet", 20: "lenet_tiny"},
    "mnasnet": {224: "mnasnet0_5 mnasnet0_75 mnasnet1_0 mnasnet1_3", 40: "mnasnet_tiny"},
    "mobilenet_v2": {
        224: "mobilenet_v2",
        32: "mobilenet_v2_tfkd mobile_half",
        40: "mobilenet_v2_tiny",
        16: "mobilenet_v2_tiny_tfkd mobile_tiny",
    },
    "resnet": {
        224: (
            "resnet18 resnet34 resnet50 resnet101 resnet152 "
            "resnext50_32x4d resnext101_32x8d resnext101_64x4d wide_resnet50_2 wide_resnet101_2"
        ),
        32: "resnet18_cifar resnet34_cifar resnet50_cifar resnet101_cifar resnet152_cifar",
        17: "resnet_tiny",
        8: "resnet_tiny_cifar",
    },
    "resnext": {32: "resnext29_8x64d", 8: "resnext_tiny"},
    "shufflenet_v1": {32: "shufflenet_v1", 16: "shufflenet_v1_tiny"},
    "shufflenet_v2": {
        224: "shufflenet_v2_x0_5 shufflenet_v2_x1_0 shufflenet_v2_x1_5 shufflenet_v2_x2_0",
        32: (
            "shufflenet_v2_x0_5_tfkd shufflenet_v2_x1_0_tfkd shufflenet_v2_x1_5_tfkd shufflenet_v2_x2_0_tfkd "
            "shufflenet_v2_repdistiller"
        ),
        40: "shufflenet_v2_tiny",
        16: "shufflenet_v2_tiny_tfkd shufflenet_v2_tiny_repdistiller",
    },
    "squeezenet": {224: "squeezenet1_0 squeezenet1_1", 24: "squeezenet_tiny"},
    "vgg": {
        224: "vgg11 vgg13 vgg16 vgg19 vgg11_bn vgg13_bn vgg16_bn vgg19_bn",
        32: (
            "vgg11_sween vgg13_sween vgg16_sween vgg19_sween "
            "vgg8_repdistiller vgg11_repdistiller vgg13_repdistiller vgg16_repdistiller vgg19_repdistiller "
            "vgg_tiny vgg_tiny_bn vgg_tiny_sween vgg_tiny_repdistiller"
        ),
    },
    "wide_resnet": {32: "wrn_16_1 wrn_16_2 wrn_40_1 wrn_40_2 wrn_40_4 wrn_28_10", 8: "wrn_tiny"},
}
MODELS = {name: family for family, sides in _FAMILIES.items() for names in sides.values() for name in names.split()}
IMAGE_SIDES = {name: side for sides in _FAMILIES.values() for side, names in sides.items() for name in names.split()}

_DROPOUT = (
    "alexnet alexnet_tiny cnn cnn_tiny googlenet googlenet_aux googlenet_tiny googlenet_tfkd googlenet_tiny_tfkd "
    "inception_v3 inception_v3_aux inception_tiny mnasnet0_5 mnasnet0_75 mnasnet1_0 mnasnet1_3 mnasnet_tiny "
    "mobilenet_v2 mobilenet_v2_tiny squeezenet1_0 squeezenet1_1 squeezenet_tiny "
    "vgg11 vgg13 vgg16 vgg19 vgg11_bn vgg13_bn vgg16_bn vgg19_bn vgg_tiny vgg_tiny_bn "
    "wrn_16_1 wrn_16_2 wrn_40_1 wrn_40_2 wrn_40_4 wrn_28_10 wrn_tiny"
)
# Networks whose published weights were trained with a deviation from their paper: ``compat`` chooses which to build.
_COMPAT = (
    "densenet121_tfkd densenet161_tfkd densenet169_tfkd densenet201_tfkd densenet_tiny_tfkd "
    "googlenet googlenet_aux googlenet_tiny googlenet_tfkd googlenet_tiny_tfkd "
    "mobilenet_v2_tfkd mobilenet_v2_tiny_tfkd mobile_half mobile_tiny "
    "shufflenet_v2_x0_5_tfkd shufflenet_v2_x1_0_tfkd shufflenet_v2_x1_5_tfkd shufflenet_v2_x2_0_tfkd "
    "shufflenet_v2_tiny_tfkd"
)
WITH_DROPOUT, WITH_COMPAT = tuple(_DROPOUT.split()), tuple(_COMPAT.split())
# Networks whose published weights expect pixels in [-1, 1] of images normalised as all others' are.
WITH_TRANSFORM_INPUT = (
    *("googlenet", "googlenet_aux", "googlenet_tiny"),
    *("inception_v3", "inception_v3_aux", "inception_tiny"),
)
# Networks with auxiliary heads, whose logits are the features aux1, aux2: what torchvision weighs the loss of each by.
AUXILIARY = {"googlenet_aux": 0.3, "googlenet_tiny": 0.3, "inception_v3_aux": 0.4, "inception_tiny": 0.4}


def build(name: str, **fields):
    """Builds the linen module called ``name``; ``fields`` are its attributes, such as ``num_classes``."""
    return getattr(import_module(f"jaxkit.models.{MODELS[name]}"), name)(**fields)
