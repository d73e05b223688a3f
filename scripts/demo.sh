#!/usr/bin/env bash
# The main job on drawn scenes: images -> images table -> features -> softmax head on two ranks -> evaluation -> report.
# BACKBONE=VGG16 takes VGG16 cut at fc2 in place of EfficientNet-Lite0. Run again, it finds everything done. `rm -r demo` starts
# from nothing.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=.venv/bin
step() { printf '\n== %s\n' "$*"; }
started=$SECONDS

folder=demo images=demo/images scenes=600
settings=()

# As many as VGG16 takes in two and a half minutes: it is 31 billion operations an image, and the processor is asked for its own number.
count_scenes() {
    $bin/python - <<'END'
from time import perf_counter

import numpy as np

from featurize.engines.precision import has_bfloat16

a = np.ones((1024, 1024), np.float32)
a @ a
started = perf_counter()
for _ in range(10):
    a @ a
images_per_s = 10 * 2 * 1024**3 / (perf_counter() - started) / 31e9
print(600 if has_bfloat16() else min(600, max(120, int(150 * images_per_s) // 20 * 20)))
END
}

case ${BACKBONE:-EfficientNetLite0} in
    EfficientNetLite0) what="EfficientNet-Lite0, with its ImageNet weights" ;;
    VGG16)
        what="VGG16 up to fc2"
        folder=demo/vgg16 images=demo/vgg16/images
        scenes=$(count_scenes)
        # ImageNet's weights if Keras has them or can download them, otherwise random ones, with a note.
        settings=(--set images.source=$images --set backbone.name=VGG16 --set backbone.layer=fc2 --set backbone.weights=imagenet_or_random
            --set features.url=$folder/features --set model.url=$folder/model)
        ;;
    *) echo "BACKBONE must be EfficientNetLite0 or VGG16. Got $BACKBONE." >&2; exit 2 ;;
esac

step "$scenes scenes, drawn and packed into an images table"
mkdir -p $folder
sed "s/^images = 600/images = $scenes/" datasets/synthetic_scenes.toml >$folder/scenes.toml
$bin/featurize ingest $folder/scenes.toml --output $images
step "their features, by $what"
$bin/featurize run configs/demo.toml "${settings[@]}" || {
    echo "If an earlier demo ran with another network or other weights: rm -r demo, and run it again." >&2
    exit 1
}
$bin/featurize describe $folder/features
step "a softmax head on them, on two Horovod ranks"
$bin/finetune fit configs/demo.toml "${settings[@]}" --num-proc 2
step "its evaluation on the test split"
$bin/finetune evaluate $folder/model
step "the report on it"
$bin/finetune report $folder/model --output $folder/report.html

if grep -q '"weights": "random' $folder/features/_delta_log/*.json; then
    cat <<'END'

The backbone had RANDOM weights, as Keras could not find or download those of ImageNet. Such features give an accuracy of
about 0.7, those of ImageNet far more. To use a file of ImageNet weights, see "Networks and weights" in docs/features.md.
END
fi
cat <<END

Done in $((SECONDS - started)) s. Open the report in a browser: $folder/report.html
Beside it: $folder/model/model.json, everything about the model; $folder/features, a Delta table of the features.
END
