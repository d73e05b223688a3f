"""Files that no backbone is read from: one fault in the recipe, which names the file and says how it becomes one that is read."""

import pytest

from featurize.errors import UsageError
from featurize.recipes.backbone_section import BackboneSettings, not_read
from featurize.recipes.toml_settings import check_settings

ADVICE = {
    "a/flowers.h5": '`keras.models.load_model("a/flowers.h5", compile=False).save("flowers.keras")`',
    "flowers.HDF5": '`keras.models.load_model("flowers.HDF5", compile=False).save("flowers.keras")`',
    "flowers.tflite": "`python -m tf2onnx.convert --tflite flowers.tflite --output flowers.onnx`",
    "a/flowers/saved_model.pb": "`python -m tf2onnx.convert --saved-model a/flowers --output flowers.onnx`",
    "saved_model.pb": "`python -m tf2onnx.convert --saved-model . --output model.onnx`",
    "frozen.pb": "--graphdef frozen.pb --inputs",
    "vit.safetensors": "Name its folder, which has config.json",
    "hdfs:///nets/vit.pth": 'torch.onnx.export(model, torch.zeros(1, 3, 224, 224), "vit.onnx"',
    "pytorch_model.bin": '"pytorch_model.onnx", input_names=["images"], dynamic_axes={"images": {0: "n"}})`',
}


@pytest.mark.parametrize("name", ADVICE)
def test_a_file_that_is_not_read_is_one_fault_with_its_conversion(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_settings(BackboneSettings, {"name": name}, origin="recipe.toml")
    message = str(caught.value)
    assert "1 fault:" in message
    assert f"`name`: {name} is " in message
    assert ADVICE[name] in message


@pytest.mark.parametrize("name", ["VGG16", "a.keras", "b.onnx", "./vit", "nets/weights.h5/", "pixels"])
def test_other_names_are_read(name: str) -> None:
    assert not_read(name) is None
