"""Tests of networks.user_functions and its checks: what users' networks become, and every reason to refuse one."""

import hashlib
import re
import subprocess
import sys
import types
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import user_networks
from helpers.project import ROOT

from featurize.errors import UsageError
from featurize.recipes.model_section import ModelSettings
from finetune.networks.build import build_model, layer_seeds, logits_of, model_faults
from finetune.networks.user_functions import source_digest

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
FEATURES = np.random.default_rng(1).normal(size=(6, 12)).astype(np.float32)


def build(function: str, *, features: Any = FEATURES, seed: int = 1, **settings: Any) -> Any:
    name = function if ":" in function else f"user_networks:{function}"
    return build_model(
        ModelSettings(name=name, url="unused", **settings),
        feature_shape=features.shape[1:],
        feature_dtype=str(features.dtype),
        n_classes=3,
        seed=seed,
    )


def refusal(function: str, **arguments: Any) -> str:
    with pytest.raises(UsageError) as raised:
        build(function, **arguments)
    message = str(raised.value)
    assert "`model." in message
    return message


def layer_names(model: Any) -> list[str]:
    return [type(layer).__name__ for layer in model.layers]


def softmax(logits: Any) -> Any:
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(
    ("function", "features", "layers"),
    [
        ("logits", FEATURES, ["InputLayer", "Flatten", "Dense", "Softmax"]),
        ("dense_softmax", FEATURES, ["InputLayer", "Flatten", "Dense", "Dropout", "Dense", "Softmax"]),
        ("softmax_layer", FEATURES, ["InputLayer", "Flatten", "Dense", "Dropout", "Dense", "Softmax"]),
        ("activation_layer", IMAGES, ["InputLayer", "Rescaling", "Flatten", "Dense", "Softmax"]),
    ],
)
def test_networks_become_flat_and_end_in_one_softmax(function: str, features: Any, layers: list[str]) -> None:
    model = build(function, features=features)
    assert layer_names(model) == layers
    logits = np.asarray(logits_of(model)(features))
    assert not np.allclose(logits.sum(axis=1), 1)
    np.testing.assert_allclose(np.asarray(model(features)), softmax(logits), rtol=1e-5, atol=1e-7)
    assert model.layers[-1].name == "probabilities"


def test_logits_of_dense_softmax_are_those_of_its_weights() -> None:
    model = build("dense_softmax", options={"units": 5})
    kernel, bias, last_kernel, last_bias = model.get_weights()
    assert kernel.shape == (12, 5)
    expected = np.maximum(FEATURES @ kernel + bias, 0) @ last_kernel + last_bias
    np.testing.assert_allclose(np.asarray(logits_of(model)(FEATURES)), expected, rtol=1e-5, atol=1e-6)


def test_graph_with_shared_layers_and_inner_models_computes_what_the_users_own_does() -> None:
    import keras

    model = build("branches", features=IMAGES)
    keras.utils.set_random_seed(1)
    own = user_networks.branches((8, 8, 3), 3, 1)
    np.testing.assert_allclose(
        np.asarray(logits_of(model)(IMAGES)), np.asarray(own(IMAGES / np.float32(255))), rtol=1e-4, atol=1e-5
    )
    assert [weights.shape for weights in model.get_weights()] == [weights.shape for weights in own.get_weights()]
    assert "SpatialDropout2D" in layer_names(model)
    assert not {"Sequential", "Functional"} & set(layer_names(model))


def test_weights_follow_the_seed_even_where_the_function_does_not_use_it() -> None:
    one, same, other = (build("dense_softmax", seed=seed).get_weights()[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert (one != other).mean() > 0.99


def test_function_gets_the_seed_of_the_recipe() -> None:
    import keras

    kernel = build("logits", seed=5).get_layer("scores").get_weights()[0]
    np.testing.assert_array_equal(kernel, np.asarray(keras.initializers.GlorotUniform(seed=5)((12, 3))))
    assert 5 not in [next(layer_seeds(5))]


def test_features_of_several_dimensions_have_their_shape_in_the_network() -> None:
    settings = ModelSettings(name="user_networks:branches", url="unused")
    model = build_model(settings, feature_shape=[8, 8, 3], feature_dtype="float32", n_classes=3, seed=1)
    assert model.input_shape == (None, 192)
    pixels = build("branches", features=IMAGES)
    flat = IMAGES.reshape(6, 192) / np.float32(255)
    np.testing.assert_allclose(np.asarray(model(flat)), np.asarray(pixels(IMAGES)), rtol=1e-4, atol=1e-6)


def test_features_are_prepared_before_the_network_sees_them() -> None:
    model = build("logits", l2_normalize=True)
    kernel, bias = model.get_weights()
    expected = FEATURES / np.linalg.norm(FEATURES, axis=1, keepdims=True) @ kernel + bias
    np.testing.assert_allclose(np.asarray(logits_of(model)(FEATURES)), expected, rtol=1e-5, atol=1e-6)


def test_frozen_batch_normalization_is_allowed() -> None:
    assert "BatchNormalization" in layer_names(build("frozen_batch_normalization"))


REFUSED = {
    "batch_normalization": r"BatchNormalization 'batch_normalization\w*' depends on the rows.*GroupNormalization or LayerNorm",
    "wrapped_batch_normalization": "TimeDistributed .* depends on the rows",
    "spectral_normalization": "SpectralNormalization .* depends on the rows",
    "noise": r"GaussianNoise .* draws random numbers.*Dropout or SpatialDropout, or `training\.augmentation`",
    "wrapped_dropout": "TimeDistributed .* draws random numbers",
    "augmented": r"RandomFlip .* draws random numbers.*`training\.augmentation`",
    "same_mask_for_all": "`noise_shape`",
    "own_layer": "Doubled .* is a class of your own",
    "own_activation": "cannot be loaded again without your code.*doubled",
    "code": "Lambda .* contains code",
    "patched": "gives other results after saving",
    "regularized": r"has a regularizer.*`training\.l2`",
    "activity_regularized": "ActivityRegularization .* has a regularizer",
    "across_rows": "other results when other rows are beside it",
    "does_not_fit": r"does not take float32 features of shape \(",
    "nothing": "must return a keras.Model. Got NoneType",
    "Subclassed": "Subclassed .* is a class of your own. Use a keras.Sequential or functional",
    "subclassed_inside": "Subclassed .* is a class of your own. Use a keras.Sequential or functional",
    "one_class_too_many": r"must give float32 \(n_images, 3\). Got float32 \(None, 4\)",
    "half_precision": "Got bfloat16",
    "other_shape": r"must take float32 features of shape \(8, 8, 3\). Got float32 \(7,\)",
    "whole_numbers": r"must take float32 features .* Got uint8",
    "two_inputs": "one input and one output. Got 2 inputs and 1 outputs",
    "two_outputs": "one input and one output. Got 1 inputs and 2 outputs",
    "sigmoid": "must give logits or a softmax. Got sigmoid",
    "softmax_operation": "gives probabilities, not logits",
    "frozen": "nothing to train",
    "inner_mode": "'inner' inside the network is called with training",
    "no_seed": "must take the keyword arguments feature_shape, n_classes, seed: .*seed",
    "asks_for_more": "must take the keyword arguments .*units",
    "not_a_function": "has no function 'not_a_function'",
    "absent": "the module 'user_networks' has no function 'absent'",
}


@pytest.mark.parametrize("function", REFUSED)
def test_what_cannot_be_trained_exactly_or_be_saved_is_refused(function: str) -> None:
    message = refusal(function, features=IMAGES)
    assert re.search(REFUSED[function], message), message
    assert f"user_networks:{function}" in message


def test_every_function_of_the_users_is_tried() -> None:
    good = {"logits", "dense_softmax", "softmax_layer", "activation_layer", "branches", "frozen_batch_normalization"}
    public = {
        name
        for name, value in vars(user_networks).items()
        if callable(value) and not name.startswith("_") and getattr(value, "__module__", "") == "user_networks"
    }
    assert public - {"of_layer", "Doubled", "doubled"} == good | set(REFUSED) - {"not_a_function", "absent"}


def test_registered_classes_are_known_again_after_a_refusal() -> None:
    import keras

    refusal("own_activation")
    assert "user>doubled" in keras.saving.get_custom_objects()


def test_options_are_handed_over_and_unknown_ones_refused() -> None:
    assert build("dense_softmax", options={"units": 9, "dropout": 0.5}).get_weights()[0].shape == (12, 9)
    assert "unit" in refusal("dense_softmax", options={"unit": 9})
    assert "`model.options` must not have `n_classes` and `seed`" in refusal(
        "dense_softmax", options={"seed": 1, "n_classes": 2}
    )


@pytest.mark.parametrize("name", ["absent_module:build", "user_networks.inner:build", "firn_needs_this:build"])
def test_module_that_cannot_be_imported_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "firn_needs_this.py").write_text("import absent_library\n")
    monkeypatch.syspath_prepend(tmp_path)
    message = refusal(name)
    assert f"the module {name.partition(':')[0]!r} cannot be imported" in message
    assert "PYTHONPATH" in message


def test_module_that_is_no_python_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "firn_bad_syntax.py").write_text("def build(:\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert "cannot be imported: invalid syntax" in refusal("firn_bad_syntax:build")


def test_function_is_checked_before_any_network_is_built() -> None:
    settings = ModelSettings(name="user_networks:no_seed", url="unused")
    with pytest.raises(UsageError, match="must take the keyword arguments"):
        model_faults(settings, feature_shape=[12], feature_dtype="float32")


def test_error_in_the_users_own_code_is_shown_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "firn_raises.py").write_text("def build(feature_shape, n_classes, seed):\n    return 1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ZeroDivisionError):
        build("firn_raises:build")


def test_source_digest_is_that_of_the_modules_file_and_changes_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "firn_digested.py"
    path.write_text("raise RuntimeError('never run')\n")
    monkeypatch.syspath_prepend(tmp_path)
    first = source_digest("firn_digested:build")
    assert first == hashlib.sha256(path.read_bytes()).hexdigest()
    path.write_text("raise RuntimeError('never run, either')\n")
    assert source_digest("firn_digested:other") == hashlib.sha256(path.read_bytes()).hexdigest() != first


def test_source_digest_of_a_module_in_a_zip_is_that_of_its_text(tmp_path: Path) -> None:
    """As Spark's --py-files brings them."""
    source = "def build(feature_shape, n_classes, seed): ...\n"
    with zipfile.ZipFile(tmp_path / "nets.zip", "w") as archive:
        archive.writestr("firn_zipped.py", source)
    script = "from finetune.networks.user_functions import source_digest; print(source_digest('firn_zipped:build'))"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={"PYTHONPATH": f"{tmp_path}/nets.zip:{ROOT}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == hashlib.sha256(source.encode()).hexdigest()


@pytest.mark.parametrize(
    "name", ["absent_module:build", "absent_package.inner:build", "math:sqrt", "firn_made_up:build"]
)
def test_source_digest_needs_a_file_of_source(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "firn_made_up", types.ModuleType("firn_made_up"))  # has no __spec__
    with pytest.raises(UsageError, match=f"`model.name` {name}: the module"):
        source_digest(name)
