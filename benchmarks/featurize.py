"""Images per second of `featurize run`, beside the bare engines, the decoders alone, and what users write themselves.

    python benchmarks/featurize.py [RECIPE] [--images FOLDER ...] [--peers PYTHON] [--rounds N] [--fast]
    python benchmarks/featurize.py [RECIPE] [--images FOLDER ...] [--check-images N] --precision-check

RECIPE gives the backbone, without one it is VGG16 to `fc2` with random weights, which do not change the speed. FOLDER holds a
folder per class, and may be given several times; without one, scenes are drawn.
Every round measures each of these in processes of its own:

- bare: each installed engine on ready pixels, on all cores, in each precision; before and after `firn`
- decoders: Firn's decoders alone, on all cores
- firn: `featurize run` as a user starts it: in steady state, and the whole command
- pandas_udf: an iterator pandas UDF over Spark's binaryFile source: Pillow decodes, `model.predict` of Keras computes in float32
- predict_batch_udf: `pyspark.ml.functions.predict_batch_udf` around ONNX Runtime and Firn's own ONNX file, in float32
- daft, ray: Daft and Ray Data around ONNX Runtime and the same ONNX file (see peers.py), where PYTHON has them:
      uv venv peers && uv pip install --python peers "daft==0.7.26" "ray[data]==2.60" onnxruntime pillow "numpy<2" pandas pyarrow

The rates of UDFs and peers in steady state are the difference in images between a long and a short job, divided by the
difference in seconds. `whole` is all that a user waits for, start included, on WHOLE images. A ratio is the median over rounds
of the ratio within a round, as the speed of a machine varies. What Firn keeps between runs (the exported network, what was
measured) is there, as in all but the first run; `first_seconds` is that first run. Prints one JSON object.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import cycle, takewhile
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # before the folder of this file, named as a package is
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np

from benchmarks.images import draw_images, image_files, link_classes, link_part, read_pixels, spread
from benchmarks.peers import make_pandas_udf, make_predict_batch_udf
from benchmarks.precision import compare_precisions
from featurize.backbones.backbone import load_backbone, prepare_backbone
from featurize.backbones.keras_network import preprocess, set_threads
from featurize.backbones.measure import ways_of
from featurize.backbones.spec import BackboneSpec
from featurize.decoding.decode import DecodeError
from featurize.decoding.decoder_process import DecoderPool
from featurize.engines.engine import installed_engines, precisions_of
from featurize.engines.pieces import BATCHES_AT_ONCE
from featurize.engines.precision import has_bfloat16
from featurize.map_ahead import map_ahead
from featurize.recipes.backbone_section import BackboneSettings
from featurize.recipes.recipe import read_recipe
from featurize.tables.publication import read_published_features

ROOT = Path(__file__).resolve().parent.parent
BATCH = 32
CORES = len(os.sched_getaffinity(0))
WHOLE = 900  # images of a job that is timed with its start
SHORT_IMAGES, LONG_IMAGES = 2 * BATCH, 16 * BATCH  # of the UDFs
_BARE_S = 3.0  # with each batch size


@dataclass(frozen=True)
class Plan:
    """The settings that all processes share, passed to them as JSON.

    Attributes:
        files: the network for each engine: path and SHA-256.
        images: folder of all images, with a folder per class.
        whole: the same for WHOLE images.
        short: the same for the few images of a UDF's short job.
        long: the same for the images of its long job, or of the precision check.
        peers: a Python that has Daft and Ray Data; None: they are left out.
    """

    settings: dict[str, Any]
    spec: dict[str, Any]
    files: dict[str, tuple[str, str]]
    images: str
    whole: str
    short: str
    long: str
    peers: str | None

    @property
    def backbone_spec(self) -> BackboneSpec:
        return BackboneSpec.from_dict(self.spec)


def measure_bare(plan: Plan) -> dict[str, Any]:
    """Every engine in every precision, each in its own process."""
    rates = {}
    for engine in installed_engines():
        for precision in precisions_of(engine):
            if engine in plan.files:
                part = ["--part", "one", "--plan", os.environ["FIRN_PLAN"]]
                result = run_json(__file__, *part, "--engine", engine, "--precision", precision)
                rates[f"{engine} {precision}"] = result["images_per_second"]
    return {"images_per_second": max(rates.values()), "rates": rates}


def measure_one(plan: Plan, engine: Any, precision: Any) -> dict[str, Any]:
    """One engine, in the best of the ways that `featurize run` tries."""
    spec = replace(plan.backbone_spec, engine=engine, precision=precision)
    if engine == "tensorflow":
        set_threads(CORES)
    pixels = read_pixels(spread(image_files(plan.images), 4 * BATCH), height=spec.height, width=spec.width)
    path, sha256 = plan.files[engine]
    best = 0.0
    for size, per_core in ways_of(engine, CORES):
        forward = load_backbone(spec, path, sha256=sha256, threads=CORES, batch_size=size, per_core=per_core)
        forward(pixels[:size])
        end, at_once = perf_counter() + _BARE_S, BATCHES_AT_ONCE if per_core else 1
        batches = takewhile(partial(_is_before, end), (pixels[i : i + size] for i in cycle(range(0, 4 * BATCH, size))))
        done = sum(map(len, map_ahead(forward, batches, threads=at_once, ahead=at_once)))
        best = max(best, done / (perf_counter() - end + _BARE_S))
    return {"images_per_second": best}


def _is_before(end: float, _: object) -> bool:
    return perf_counter() < end


def measure_decoders(plan: Plan) -> dict[str, Any]:
    """Reading and decoding to the network's size, by as many decoders as there are cores."""
    spec, pool = plan.backbone_spec, DecoderPool(CORES)

    def decode(path: Path) -> None:
        try:
            with pool.lend() as decoder:
                decoder.decode(path.read_bytes(), height=spec.height, width=spec.width, channels=3, fit=spec.fit)
        except DecodeError:
            pass

    files = image_files(plan.images)
    with ThreadPoolExecutor(CORES) as threads:
        list(threads.map(decode, files[:BATCH]))
        begun = perf_counter()
        list(threads.map(decode, files))
        elapsed = perf_counter() - begun
    pool.close()
    return {"images_per_second": len(files) / elapsed}


def run_firn(plan: Plan, images: str) -> tuple[float, dict[str, Any]]:
    """The seconds of the whole command, and what it prints."""
    with tempfile.TemporaryDirectory(prefix="firn-") as folder:
        recipe = Path(folder, "recipe.toml")
        backbone = "".join(f"{key} = {json.dumps(value)}\n" for key, value in plan.settings.items())
        text = f"[images]\nsource = {json.dumps(images)}\n[features]\nurl = {json.dumps(folder + '/features')}\n"
        recipe.write_text(f"{text}[backbone]\n{backbone}", encoding="utf-8")
        started = perf_counter()
        result = run_json("-m", "featurize", "run", str(recipe), "--json")
        elapsed = perf_counter() - started
        made_by = read_published_features(f"{folder}/features").backbone
    return elapsed, {**result, **{key: made_by[key] for key in ("engine", "batch_size")}}


def measure_firn(plan: Plan) -> dict[str, Any]:
    first, _ = run_firn(plan, plan.short)  # keeps what is kept between runs
    _, result = run_firn(plan, plan.images)
    whole, _ = run_firn(plan, plan.whole)
    kept = ("rows", "rejects", "precision", "engine", "batch_size", "timings")
    return {
        "images_per_second": result["steady_images_per_second"],
        "whole_images_per_second": len(image_files(plan.whole)) / whole,
        "whole_seconds": whole,
        "first_seconds": first,
        **{key: result[key] for key in kept},
    }


def measure_peer(plan: Plan, tool: str) -> dict[str, Any]:
    """Whole commands on few and on more images."""
    spec, seconds = plan.backbone_spec, {}
    for images in (plan.short, plan.whole):
        with tempfile.TemporaryDirectory(prefix="firn-") as folder:
            size = [str(spec.height), str(spec.width)]
            command = [
                str(plan.peers),
                str(ROOT / "benchmarks" / "peers.py"),
                tool,
                images,
                plan.files["onnxruntime"][0],
            ]
            started = perf_counter()
            done = subprocess.run(
                [*command, *size, f"{folder}/out"],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                check=True,
            )
            seconds[images] = perf_counter() - started
            rows = json.loads(done.stdout.strip().splitlines()[-1])["rows"]
    count = {images: len(image_files(images)) for images in seconds}
    more = count[plan.whole] - count[plan.short]
    return {
        "images_per_second": more / (seconds[plan.whole] - seconds[plan.short]),
        "whole_images_per_second": count[plan.whole] / seconds[plan.whole],
        "whole_seconds": seconds[plan.whole],
        "rows": rows,
    }


def measure_udf(plan: Plan, kind: str) -> dict[str, Any]:
    """Runs in a fresh session a short job to warm it, then the long job, then the short job twice, of which the faster counts."""
    from featurize.building.session import open_session

    spec, started = plan.backbone_spec, perf_counter()
    with open_session("benchmark") as session, tempfile.TemporaryDirectory(prefix="firn-") as folder:
        if kind == "pandas_udf":
            udf = make_pandas_udf(
                plan.files["tensorflow"][0], spec.height, spec.width, lambda x: preprocess(x, spec.preprocessing)
            )
        else:
            udf = make_predict_batch_udf(plan.files["onnxruntime"][0], spec.height, spec.width)
        session.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", str(4 * BATCH))

        def seconds(images: str, name: str) -> float:
            begun = perf_counter()
            files = session.read.format("binaryFile").option("recursiveFileLookup", "true").load(images).coalesce(1)
            files.select("path", udf("content").alias("features")).write.parquet(f"{folder}/{name}")
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
    network = keras.saving.load_model(plan.files["tensorflow"][0], compile=False)
    return {"bfloat16": True, **compare_precisions(network, plan.backbone_spec, image_files(plan.long))}


PARTS: dict[str, Callable[[Plan], dict[str, Any]]] = {
    "bare": measure_bare,
    "decoders": measure_decoders,
    "firn": measure_firn,
    "pandas_udf": lambda plan: measure_udf(plan, "pandas_udf"),
    "predict_batch_udf": lambda plan: measure_udf(plan, "predict_batch_udf"),
    "daft": lambda plan: measure_peer(plan, "daft"),
    "ray": lambda plan: measure_peer(plan, "ray"),
    "precision": check_precision,
}


def run_json(*arguments: str) -> dict[str, Any]:
    """Runs Python in the folder of the packages; the last line that it prints is its result."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}  # for Spark's workers
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def run_part(part: str, plan_file: Path) -> dict[str, Any]:
    result = run_json(__file__, "--part", part, "--plan", str(plan_file))
    print(f"{part}: {json.dumps(to_digits(result))}", file=sys.stderr)
    return result


def compare(plan: Plan, plan_file: Path, rounds: int) -> dict[str, Any]:
    parts = [
        "bare",
        "firn",
        "bare",
        "decoders",
        "pandas_udf",
        "predict_batch_udf",
        *(["daft", "ray"] if plan.peers else []),
    ]
    runs: dict[str, list[dict[str, Any]]] = {part: [] for part in parts}
    load_before = os.getloadavg()[0]  # much more than 0 means that other processes disturb the figures
    for part in parts * rounds:
        runs[part].append(run_part(part, plan_file))
    rates = {part: np.array([run["images_per_second"] for run in done]) for part, done in runs.items()}
    chosen = runs["firn"][0]
    way = f"{chosen['engine']} {chosen['precision']}"
    rates["bare"] = np.array([run["rates"][way] for run in runs["bare"]]).reshape(rounds, 2).mean(1)
    ratios = {f"firn / {part}": rates["firn"] / rate for part, rate in rates.items() if part != "firn"}
    whole = {part: np.array([run["whole_images_per_second"] for run in runs[part]]) for part in runs if part in _WHOLE}
    ratios |= {f"firn / {part}, whole": whole["firn"] / rate for part, rate in whole.items() if part != "firn"}
    return {
        "backbone": {key: plan.spec[key] for key in ("name", "layer", "weights")},
        "bare_is": way,
        "cores": CORES,
        "load_before": load_before,
        "images": len(image_files(plan.images)),
        "images_of_udfs": [len(image_files(folder)) for folder in (plan.short, plan.long)],
        **{part: summarize(done) for part, done in runs.items()},
        "ratios": {name: float(median(ratio)) for name, ratio in ratios.items()},
    }


_WHOLE = ("firn", "daft", "ray")


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
    files: dict[str, tuple[str, str]] = {}
    spec = None
    for engine in installed_engines():
        place = work / engine
        place.mkdir()
        prepared = prepare_backbone(settings.model_copy(update={"engine": engine, "precision": "float32"}), place)
        if prepared.path is None or prepared.sha256 is None:
            raise SystemExit("the backbone must have a network; `pixels` has none.")
        files[engine], spec = (str(prepared.path), prepared.sha256), prepared.spec.as_dict()
    assert spec is not None
    long = options.check_images if options.precision_check else LONG_IMAGES
    return Plan(
        settings=settings.model_dump(exclude_none=True),
        spec=spec,
        files=files,
        images=str(images),
        whole=str(link_part(images, WHOLE, work / "whole")),
        short=str(link_part(images, SHORT_IMAGES, work / "short")),
        long=str(link_part(images, long, work / "long")),
        peers=options.peers,
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
    parser.add_argument("--peers", metavar="PYTHON", help="a Python with Daft and Ray Data")
    parser.add_argument("--part", choices=[*PARTS, "one"], help=argparse.SUPPRESS)
    parser.add_argument("--engine", help=argparse.SUPPRESS)
    parser.add_argument("--precision", help=argparse.SUPPRESS)
    parser.add_argument("--plan", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = parse_arguments()
    if options.part:
        os.environ["FIRN_PLAN"] = str(options.plan)
        plan = Plan(**json.loads(options.plan.read_text(encoding="utf-8")))
        one = options.part == "one"
        print(json.dumps(measure_one(plan, options.engine, options.precision) if one else PARTS[options.part](plan)))
        return
    with tempfile.TemporaryDirectory(prefix="firn-") as folder:
        os.environ["FIRN_CACHE"] = f"{folder}/cache"
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
