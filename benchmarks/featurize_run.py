"""Images per second of `featurize run`, beside the bare network and beside what Spark users write themselves.

    python benchmarks/featurize_run.py [RECIPE] [--images FOLDER ...] [--rounds N] [--fast]
    python benchmarks/featurize_run.py [RECIPE] [--images FOLDER ...] [--check-images N] --precision-check

RECIPE gives the backbone; without one it is VGG16 to `fc2` with random weights, which do not change the speed. FOLDER holds a
folder per class, and may be given several times; without one, scenes are drawn. Every round measures each of these in processes
of its own:

- bare: the compiled network on ready pixels, on all cores, in the precision that the recipe leads to; before and after `firn`
- firn: `featurize run` as a user starts it, in steady state
- pandas_udf: an iterator pandas UDF over Spark's binaryFile source: Pillow decodes, `model.predict` computes in float32
- predict_batch_udf: the same through `pyspark.ml.functions.predict_batch_udf`
- openvino: the network on ready pixels in OpenVINO in bfloat16, where `openvino` is installed

No rate includes start-up. The UDFs get only some of the images, and the best conditions: the session is Firn's, with one task on
all cores that loads the network once, and their rate is the difference in images between a long and a short job, divided by the
difference in seconds, in a session that is warm. A ratio is the median over rounds of the ratio within a round, as the speed of a
machine varies. Prints one JSON object. With --precision-check it measures the effect of bfloat16 on features and heads instead.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from benchmarks.images import draw_images, image_files, link_classes, link_part, spread
from benchmarks.networks import BATCH, CORES, measure_bare, measure_openvino
from benchmarks.precision import compare_precisions
from featurize.backbones.backbone import prepare_backbone
from featurize.backbones.keras_network import preprocess, set_threads
from featurize.backbones.spec import BackboneSpec
from featurize.engines.precision import has_bfloat16
from featurize.recipes.backbone_section import BackboneSettings
from featurize.recipes.recipe import read_recipe

ROOT = Path(__file__).resolve().parent.parent
SHORT_IMAGES, LONG_IMAGES = 2 * BATCH, 16 * BATCH  # of the UDFs


@dataclass(frozen=True)
class Plan:
    """The settings that all processes share, passed to them as JSON.

    Attributes:
        images: folder of all images, with a folder per class.
        short: the same for the few images of a UDF's short job.
        long: the same for the images of its long job, or of the precision check.
        batches: number of batches that the bare network computes in one measurement.
    """

    settings: dict[str, Any]
    spec: dict[str, Any]
    backbone: str
    sha256: str
    images: str
    short: str
    long: str
    batches: int

    @property
    def backbone_spec(self) -> BackboneSpec:
        return BackboneSpec(**{**self.spec, "feature_shape": tuple(self.spec["feature_shape"])})


def measure_network(plan: Plan, *, openvino: bool) -> dict[str, Any]:
    files = spread(image_files(plan.images), 8 * BATCH)
    if openvino:
        return measure_openvino(plan.backbone_spec, plan.backbone, files=files, batches=plan.batches)
    return measure_bare(plan.backbone_spec, plan.backbone, sha256=plan.sha256, files=files, batches=plan.batches)


def measure_firn(plan: Plan) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="firn-") as folder:
        recipe = Path(folder, "recipe.toml")
        backbone = "".join(f"{key} = {json.dumps(value)}\n" for key, value in plan.settings.items())
        images, features = json.dumps(plan.images), json.dumps(f"{folder}/features")
        text = f"[images]\nsource = {images}\n[features]\nurl = {features}\n[backbone]\n{backbone}"
        recipe.write_text(text, encoding="utf-8")
        started = perf_counter()
        result = run_json("-m", "featurize", "run", str(recipe), "--json")
        elapsed = perf_counter() - started
    images, rate, timings = result["rows"] + result["rejects"], result["steady_images_per_second"], result["timings"]
    return {
        "images_per_second": rate,
        "start_up_seconds": elapsed - images / rate,
        "images_per_second_with_start_up": images / elapsed,
        "images_per_second_of_forward": result["rows"] / timings["forward"],
        **{key: result[key] for key in ("rows", "rejects", "precision", "timings")},
    }


def load_predict(plan: Plan) -> Callable[[Any], NDArray[np.float32]]:
    """Worker side: the function that Spark users write, from the bytes of images, one after the other, to their features."""
    import keras
    from PIL import Image

    spec = plan.backbone_spec
    model = keras.saving.load_model(plan.backbone, compile=False)

    def predict(contents: Any) -> NDArray[np.float32]:
        images = [Image.open(io.BytesIO(content)).convert("RGB") for content in contents]
        size = (spec.width, spec.height)
        pixels = np.stack([np.asarray(image.resize(size, Image.Resampling.BILINEAR), np.float32) for image in images])
        features = model.predict(preprocess(pixels, spec.preprocessing), batch_size=BATCH, verbose=0)
        return np.asarray(features, np.float32).reshape(len(features), -1)

    return predict


def make_pandas_udf(plan: Plan) -> Any:
    from pyspark.sql.pandas.functions import pandas_udf

    @pandas_udf("array<float>")  # type: ignore[call-overload]
    def features_of(batches: Iterator[pd.Series]) -> Iterator[pd.Series]:
        predict = load_predict(plan)
        for contents in batches:
            yield pd.Series(list(predict(contents)))

    return features_of


def make_predict_batch_udf(plan: Plan) -> Any:
    from pyspark.ml.functions import predict_batch_udf
    from pyspark.sql.types import ArrayType, FloatType

    return predict_batch_udf(lambda: load_predict(plan), return_type=ArrayType(FloatType()), batch_size=BATCH)


def measure_udf(plan: Plan, make_udf: Callable[[Plan], Any]) -> dict[str, Any]:
    """Runs in a fresh session a short job to warm it, then the long job, then the short job twice, of which the faster counts."""
    from featurize.building.session import open_session

    started = perf_counter()
    with open_session("benchmark") as session, tempfile.TemporaryDirectory(prefix="firn-") as folder:
        session.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", str(4 * BATCH))
        features_of = make_udf(plan)

        def seconds(images: str, name: str) -> float:
            begun = perf_counter()
            files = session.read.format("binaryFile").option("recursiveFileLookup", "true").load(images).coalesce(1)
            files.select("path", features_of("content").alias("features")).write.parquet(f"{folder}/{name}")
            return perf_counter() - begun

        seconds(plan.short, "warm")
        start_up = perf_counter() - started
        long = seconds(plan.long, "long")
        short = min(seconds(plan.short, name) for name in ("short", "short again"))
    more = len(image_files(plan.long)) - len(image_files(plan.short))
    return {"images_per_second": more / (long - short), "start_up_seconds": start_up}


def check_precision(plan: Plan) -> dict[str, Any]:
    if not has_bfloat16():
        return {"bfloat16": False}
    import keras

    set_threads(CORES)
    network = keras.saving.load_model(plan.backbone, compile=False)
    return {"bfloat16": True, **compare_precisions(network, plan.backbone_spec, image_files(plan.long))}


PARTS: dict[str, Callable[[Plan], dict[str, Any]]] = {
    "bare": lambda plan: measure_network(plan, openvino=False),
    "firn": measure_firn,
    "pandas_udf": lambda plan: measure_udf(plan, make_pandas_udf),
    "predict_batch_udf": lambda plan: measure_udf(plan, make_predict_batch_udf),
    "openvino": lambda plan: measure_network(plan, openvino=True),
    "precision": check_precision,
}


def run_json(*arguments: str) -> dict[str, Any]:
    """Runs Python in the folder of the packages; the last line that it prints is its result."""
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def run_part(part: str, plan_file: Path) -> dict[str, Any]:
    result = run_json(__file__, "--part", part, "--plan", str(plan_file))
    print(f"{part}: {json.dumps(to_digits(result))}", file=sys.stderr, flush=True)
    return result


def compare(plan: Plan, plan_file: Path, rounds: int) -> dict[str, Any]:
    parts = ["bare", "firn", "bare", "pandas_udf", "predict_batch_udf"] + ["openvino"] * bool(find_spec("openvino"))
    runs: dict[str, list[dict[str, Any]]] = {part: [] for part in parts}
    load_before = os.getloadavg()[0]  # much more than 0 means that other processes disturb the figures
    for part in parts * rounds:
        runs[part].append(run_part(part, plan_file))
    rates = {part: np.array([run["images_per_second"] for run in done]) for part, done in runs.items()}
    rates["bare"] = rates["bare"].reshape(rounds, 2).mean(1)
    ratios = {f"firn / {part}": rates["firn"] / rate for part, rate in rates.items() if part != "firn"}
    medians = {name: float(median(ratio)) for name, ratio in ratios.items()}
    return {
        "backbone": {key: plan.spec[key] for key in ("name", "layer", "weights", "precision")},
        "cores": CORES,
        "load_average_before": load_before,
        "images": len(image_files(plan.images)),
        "images_of_udfs": [len(image_files(folder)) for folder in (plan.short, plan.long)],
        "openvino": None,
        **{part: summarize(done) for part, done in runs.items()},
        "ratios": medians,
        "ratios_of_rounds": {name: ratio.tolist() for name, ratio in ratios.items()},
        "goals": {
            "firn >= 0.9 bare": medians["firn / bare"] >= 0.9,
            "firn >= 6 pandas_udf": medians["firn / pandas_udf"] >= 6,
        },
    }


def summarize(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The run of median rate, with the rates of all runs."""
    ranked = sorted(runs, key=lambda run: float(run["images_per_second"]))
    return {**ranked[len(ranked) // 2], "rates": [run["images_per_second"] for run in runs]}


def to_digits(value: Any) -> Any:
    """`value` with numbers rounded to four significant digits, as no measurement here has more."""
    if isinstance(value, dict):
        return {key: to_digits(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [to_digits(inner) for inner in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def make_plan(options: argparse.Namespace, work: Path) -> Plan:
    settings = read_recipe(options.recipe).backbone if options.recipe else None
    settings = settings or BackboneSettings(name="VGG16", layer="fc2", weights="random")
    folder = work / "images"
    drawn = 256 if options.fast else 3000
    images = link_classes(options.images, folder) if options.images else draw_images(drawn, folder)
    prepared = prepare_backbone(settings, work)
    if prepared.path is None or prepared.sha256 is None:
        raise SystemExit("the backbone must have a network; `pixels` has none.")
    long = options.check_images if options.precision_check else LONG_IMAGES
    return Plan(
        settings=settings.model_copy(update={"batch_size": BATCH}).model_dump(exclude_none=True),
        spec=prepared.spec.as_dict(),
        backbone=str(prepared.path),
        sha256=prepared.sha256,
        images=str(images),
        short=str(link_part(images, SHORT_IMAGES, work / "short")),
        long=str(link_part(images, long, work / "long")),
        batches=10 if options.fast else 30,
    )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measures featurize run beside its peers; prints one JSON object.")
    parser.add_argument(
        "recipe", nargs="?", help="recipe whose [backbone] is measured; default: VGG16 to fc2, random weights"
    )
    parser.add_argument(
        "--images", action="append", default=[], metavar="FOLDER", help="a folder per class; repeatable"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--fast", action="store_true", help="one round on few drawn images, to try it out")
    parser.add_argument("--precision-check", action="store_true", help="bfloat16 against float32, instead of speed")
    parser.add_argument("--check-images", type=int, default=1000, help="number of images for --precision-check")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--plan", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = parse_arguments()
    if options.part:
        print(json.dumps(PARTS[options.part](Plan(**json.loads(options.plan.read_text(encoding="utf-8"))))))
        return
    with tempfile.TemporaryDirectory(prefix="firn-") as folder:
        plan_file = Path(folder, "plan.json")
        plan = make_plan(options, Path(folder))
        plan_file.write_text(json.dumps(asdict(plan)), encoding="utf-8")
        if options.precision_check:
            result = run_part("precision", plan_file)
        else:
            result = to_digits(compare(plan, plan_file, 1 if options.fast else options.rounds))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
