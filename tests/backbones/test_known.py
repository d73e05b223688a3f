"""The table of backbones that recipes can name: equal to the networks as they are built, and to what their papers state."""

from pathlib import Path

import keras
import pytest

from featurize.backbones import keras_network
from featurize.backbones.backbone import open_backbone
from featurize.backbones.efficientnet_lite import NAME
from featurize.backbones.known import (
    PIXELS,
    count_multiply_adds,
    examine_network,
    find_backbones,
    known_networks,
    usual_layer,
)
from featurize.errors import UsageError
from featurize.recipes.backbone_section import BackboneSettings

# Parameters and billions of multiplications with their additions, of the whole network, as published. Sources: for parameters
# Keras's table of its applications; for operations torchvision's tables (VGG, Inception V3, DenseNet, ConvNeXt), He et al. (3.8
# to 3.9 for ResNet50 with the stride in the first convolution of a block; 4.1 is for the second), and the papers on MobileNet,
# MobileNetV2, NASNet and EfficientNet. For EfficientNetLite0 the repository d-li14/efficientnet-lite.pytorch; Google's 0.407
# counts more than convolutions. Its count of parameters leaves out what batch normalization has averaged.
PUBLISHED = {
    "VGG16": (138_357_544, 15.47),
    "VGG19": (143_667_240, 19.63),
    "ResNet50": (25_636_712, 3.86),
    "InceptionV3": (23_851_784, 5.71),
    "DenseNet121": (8_062_504, 2.83),
    "MobileNet": (4_253_864, 0.569),
    "MobileNetV2": (3_538_984, 0.300),
    "NASNetMobile": (5_326_716, 0.564),
    "EfficientNetB0": (5_330_571, 0.39),
    "ConvNeXtTiny": (28_589_128, 4.46),
    "EfficientNetLite0": (4_652_008 + 42_016, 0.385),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_and_operations_are_those_that_are_published(name: str) -> None:
    parameters, billions = PUBLISHED[name]
    (known,) = find_backbones([name])
    assert known.whole_parameters == parameters
    assert known.whole_multiply_adds / 1e9 == pytest.approx(billions, rel=0.02)
    assert known.flops == 2 * known.multiply_adds <= 2 * known.whole_multiply_adds


@pytest.mark.parametrize("name", ["MobileNet", "MobileNetV3Small", "NASNetMobile", "EfficientNetLite0"])
def test_the_table_says_what_is_found_where_the_network_is_built(name: str) -> None:
    """Among them networks of any size, of separable convolutions, and of layers that Keras names by numbers."""
    assert find_backbones([name]) == (examine_network(name),)


def test_every_network_of_keras_is_in_the_table_with_its_preparation() -> None:
    modules = keras_network.application_names()
    known = {one.name: one for one in known_networks()}
    assert set(known) == {*modules, NAME}
    assert list(known) == sorted(known)
    for name, module in modules.items():
        assert known[name].preparation == keras_network.PREPROCESSING_OF_MODULE[module]
    assert known[NAME].preparation == "none"


def test_a_recipe_with_the_layer_of_the_table_gives_the_features_of_the_table(tmp_path: Path) -> None:
    keras.utils.clear_session()
    (known,) = find_backbones(["MobileNetV3Small"])
    settings = BackboneSettings(name=known.name, layer=known.layer, weights="random", engine="tensorflow")
    spec = open_backbone(settings, tmp_path).spec
    assert (spec.height, spec.width, spec.preprocessing) == (known.height, known.width, known.preparation)
    assert spec.feature_shape == (1, 1, known.features)


def test_names_are_found_in_any_case_by_patterns_and_once() -> None:
    assert [one.name for one in find_backbones(["vgg*", "VGG16", "pixels"])] == ["VGG16", "VGG19", "pixels"]
    assert find_backbones() == (*known_networks(), PIXELS)


def test_an_unknown_name_is_refused_with_those_close_to_it() -> None:
    with pytest.raises(UsageError, match=r"no backbone is called 'resnet5'\. Did you mean .*ResNet50"):
        find_backbones(["VGG16", "resnet5"])
    with pytest.raises(UsageError, match=r"'\?!'\. Known are ConvNeXtBase, .*, pixels\."):
        find_backbones(["?!"])


def test_operations_are_counted_at_each_position_of_the_output() -> None:
    layers = keras.layers
    image = keras.Input((8, 8, 4))
    inner = keras.Sequential([keras.Input((8, 8, 4)), layers.Conv2D(6, 3, strides=2, padding="same", groups=2)])
    x = inner(image)  # 4 x 4 positions, 6 filters of 3 x 3 x 2
    x = layers.DepthwiseConv2D(3, padding="valid")(x)  # 2 x 2 positions, 6 filters of 3 x 3
    x = layers.SeparableConv2D(5, 3, padding="same")(x)  # 2 x 2 positions, 6 of 3 x 3, then 5 of 6
    x = layers.Dense(7)(layers.BatchNormalization()(x))  # 2 x 2 positions, 5 x 7
    network = keras.Model(image, layers.Dense(3)(layers.Dropout(0.5)(layers.Flatten(name="flat")(x))))
    expected = 16 * 6 * 18 + 4 * 6 * 9 + 4 * (6 * 9 + 6 * 5) + 4 * 5 * 7 + 28 * 3
    assert count_multiply_adds(network) == expected
    assert usual_layer(network) == "flat"


def test_what_cannot_be_counted_is_refused_and_not_counted_as_nothing() -> None:
    image = keras.Input((None, None, 3))
    with pytest.raises(ValueError, match="no known size"):
        count_multiply_adds(keras.Model(image, keras.layers.Conv2D(2, 3)(image)))
    words = keras.Input((4, 8))
    attention = keras.layers.MultiHeadAttention(2, 4)(words, words)
    with pytest.raises(ValueError, match="MultiHeadAttention"):
        count_multiply_adds(keras.Model(words, attention))
