"""Labels of plots."""

import pytest

from finetune.reports.svg import shorten_apart


@pytest.mark.parametrize(
    ("labels", "room", "shown"),
    [
        (["0.01", "0.1"], 6, ["0.01", "0.1"]),
        (["features_fc1", "features_fc2"], 9, ["fc1", "fc2"]),
        (["features", "features_fc2"], 9, ["features", "features…"]),
        (["softmax_head", "mlp_head"], 9, ["softmax_…", "mlp_head"]),
        (
            ["features_lite_avg_pool", "features_lite_block10_add_mean", "features_lite_block15_bn_mean"],
            9,
            ["avg_pool", "block10_…", "block15_…"],
        ),
        (["a_network_of_mine_fc1", "a_network_of_mine_fc2", "another"], 9, ["…mine_fc1", "…mine_fc2", "another"]),
        (["a_long_name_of_one_value"], 9, ["a_long_n…"]),
    ],
)
def test_long_labels_stay_different(labels: list[str], room: int, shown: list[str]) -> None:
    assert shorten_apart(labels, room) == shown
