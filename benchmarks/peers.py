"""Features as users compute them themselves: with Daft, Ray Data or a UDF of Spark.

    python benchmarks/peers.py daft|ray FOLDER NETWORK.onnx HEIGHT WIDTH OUTPUT

It runs in an environment of its own, without Firn, which the head of benchmarks/featurize.py says how to make. The network takes
``uint8 (n, height, width, 3)``. Prints one JSON object: `rows` with features, and `seconds` from the first line of this file.
"""

import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any

STARTED = perf_counter()
BATCH = 32
CORES = len(os.sched_getaffinity(0))


class Network:
    """The session of a worker."""

    def __init__(self, path: str, height: int, width: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = CORES
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.name = self.session.get_inputs()[0].name
        self.size = (width, height)

    def pixels(self, content: bytes | None) -> Any:
        """One decoded image; None where it cannot be read."""
        import numpy as np
        from PIL import Image

        try:
            image = Image.open(io.BytesIO(content or b"")).convert("RGB")
            return np.asarray(image.resize(self.size, Image.Resampling.BILINEAR))
        except (OSError, ValueError):
            return None

    def features_of(self, images: list[Any]) -> Any:
        """The features of decoded images."""
        import numpy as np

        return np.asarray(self.session.run(None, {self.name: np.stack(images)})[0])

    def features(self, contents: list[bytes | None]) -> list[Any]:
        """The features of each image; None where it cannot be read."""
        import numpy as np

        decoded = [self.pixels(content) for content in contents]
        batch = [pixels for pixels in decoded if pixels is not None]
        rows = iter(self.session.run(None, {self.name: np.stack(batch)})[0] if batch else [])
        return [None if pixels is None else next(rows).tolist() for pixels in decoded]


def run_daft(folder: str, network: str, height: int, width: int, output: str) -> int:
    """Daft decodes and resizes by itself, in its own threads; the network is a class with a batch method."""
    import daft
    import numpy as np
    from daft import DataType, col

    @daft.cls(max_concurrency=1)
    class Features:
        def __init__(self) -> None:
            self.network = Network(network, height, width)

        @daft.method.batch(return_dtype=DataType.list(DataType.float32()), batch_size=BATCH)
        def __call__(self, images: Any) -> Any:
            return list(self.network.features_of([np.asarray(image) for image in images.to_pylist()]))

    features = Features()
    frame = daft.from_glob_path(f"{folder}/**")
    content = col("path").download(on_error="null")
    frame = frame.with_column("image", content.decode_image(on_error="null", mode="RGB"))
    frame = frame.where(~col("image").is_null()).with_column("image", col("image").resize(width, height))
    frame.with_column("features", features(col("image"))).exclude("image").write_parquet(output)
    return int(daft.read_parquet(f"{output}/*.parquet").count_rows())


def run_ray(folder: str, network: str, height: int, width: int, output: str) -> int:
    """A class in `map_batches`, which is the way of Ray's own examples."""
    import ray

    class Features:
        def __init__(self) -> None:
            self.network = Network(network, height, width)

        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            found = self.network.features(list(batch["bytes"]))
            kept = [number for number, row in enumerate(found) if row is not None]
            return {"path": [batch["path"][number] for number in kept], "features": [found[number] for number in kept]}

    ray.init(num_cpus=CORES, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    files = ray.data.read_binary_files(folder, include_paths=True)
    rows = files.map_batches(Features, batch_size=BATCH, compute=ray.data.ActorPoolStrategy(size=1), num_cpus=1)
    rows.write_parquet(output)
    return int(ray.data.read_parquet(output).count())


def make_pandas_udf(network: str, height: int, width: int, prepare: Callable[[Any], Any]) -> Any:
    """An iterator pandas UDF around `model.predict` of a .keras file."""
    import pandas as pd
    from pyspark.sql.pandas.functions import pandas_udf

    @pandas_udf("array<float>")  # type: ignore[call-overload]
    def features_of(batches: Iterator[pd.Series]) -> Iterator[pd.Series]:
        import keras

        model = keras.saving.load_model(network, compile=False)
        for contents in batches:
            pixels = prepare(stack_images(contents, height, width).astype("float32"))
            features = model.predict(pixels, batch_size=BATCH, verbose=0)
            yield pd.Series(list(features.reshape(len(features), -1)))

    return features_of


def make_predict_batch_udf(network: str, height: int, width: int) -> Any:
    """`predict_batch_udf` around an ONNX file."""
    from pyspark.ml.functions import predict_batch_udf
    from pyspark.sql.types import ArrayType, FloatType

    def load() -> Callable[[Any], Any]:
        loaded = Network(network, height, width)
        return lambda contents: loaded.features_of(list(stack_images(contents, height, width)))

    return predict_batch_udf(load, return_type=ArrayType(FloatType()), batch_size=BATCH)


def stack_images(contents: Any, height: int, width: int) -> Any:
    """Decoded images: ``uint8 (n, height, width, 3)``."""
    import numpy as np
    from PIL import Image

    images = [Image.open(io.BytesIO(content)).convert("RGB") for content in contents]
    return np.stack([np.asarray(image.resize((width, height), Image.Resampling.BILINEAR)) for image in images])


def main() -> None:
    """Runs Daft or Ray Data."""
    tool, folder, network, height, width, output = sys.argv[1:]
    run = {"daft": run_daft, "ray": run_ray}[tool]
    rows = run(folder, network, int(height), int(width), output)
    print(json.dumps({"rows": rows, "seconds": perf_counter() - STARTED}))


if __name__ == "__main__":
    main()
