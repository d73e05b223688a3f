"""Searches of finetune.registry.client on a real SQLite store."""

from pathlib import Path

from helpers.models.logged_models import registry_in

from finetune.registry.client import open_registry, page_through


def test_every_page_of_a_search_is_read_once(tmp_path: Path) -> None:
    client = open_registry(str(registry_in(tmp_path).url), create=True)
    names = [f"experiment {number}" for number in range(4)]
    for name in names:
        client.create_experiment(name)
    for page in (1, 2, 5, 1000):
        found = [experiment.name for experiment in page_through(client.search_experiments, max_results=page)]
        assert sorted(found) == sorted([*names, "Default"])
