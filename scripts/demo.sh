#!/usr/bin/env bash
# The main job on drawn scenes: images -> images table -> VGG16 fc2 features -> softmax head on two ranks -> evaluation.
# Run again, it finds everything done. `rm -r demo` starts from nothing.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=.venv/bin
step() { printf '\n== %s\n' "$*"; }
started=$SECONDS

step "600 scenes, drawn and packed into an images table"
$bin/featurize ingest datasets/synthetic_scenes.toml --output demo/images
step "their features, by VGG16 up to fc2"
$bin/featurize run configs/demo.toml || {
    echo "If an earlier demo ran with other weights (ImageNet's or random ones): rm -r demo, and run it again." >&2
    exit 1
}
$bin/featurize describe demo/features
step "a softmax head on them, on two Horovod ranks"
$bin/finetune fit configs/demo.toml --num-proc 2
step "its evaluation on the test split"
$bin/finetune evaluate demo/model

cat <<END

Done in $((SECONDS - started)) s. Look at:
  demo/model/confusion-test.png   the confusion matrix
  demo/model/history.png          loss and accuracy over the epochs
  demo/model/model.json           everything about the model
  demo/features/manifest.json     everything about the features
END
if grep -q '"weights": "random' demo/features/manifest.json; then
    cat <<'END'

The backbone had RANDOM weights, as Keras could not find or download those of ImageNet. Such features give an accuracy of
about 0.7, those of ImageNet far more. To use a file of ImageNet weights, see "Networks and weights" in docs/features.md.
END
fi
