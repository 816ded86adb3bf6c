"""Experiments side by side give what each gives alone."""

import json
import time
from pathlib import Path

import pytest
from conftest import write_pairs
from project import Project

SEEDS = (1, 2, 3, 4)
SHOWN = ("metrics.json", "plots/bce.csv", "plots/dice.csv", "plots/scores.csv")


@pytest.mark.slow
def test_four_experiments_in_a_queue_are_those_run_alone(tmp_path: Path) -> None:
    queued, alone = (Project(tmp_path / name, OMP_NUM_THREADS="1") for name in ("queue", "alone"))
    for project in (queued, alone):
        write_pairs(project.folder / "Image", project.folder / "Mask", 5)
        project.set({"epochs": 1})
        project.commit("start")
        project.dvc("repro", "dataset", "weights")
        project.commit("data")
    seeds = ",".join(map(str, SEEDS))
    queued.dvc("exp", "run", "--queue", "--set-param", f"seed={seeds}")
    queued.dvc("queue", "start", "--jobs", "4")
    end = time.monotonic() + 400
    while (said := queued.dvc("queue", "status")).count("Success") < len(SEEDS):
        assert "Failed" not in said, said
        assert time.monotonic() < end, said
        time.sleep(5)  # asking takes as long as an epoch, on the same cores
    (committed,) = [
        row for row in json.loads(queued.dvc("exp", "show", "--json")) if row["rev"] != "workspace"
    ]
    rows = committed["experiments"]
    found = {}
    for row in rows:
        (revision,) = row["revs"]
        seed = revision["data"]["params"]["params.yaml"]["data"]["seed"]
        found[seed] = [queued.git("show", f"{revision['rev']}:{name}") for name in SHOWN]
    assert sorted(found) == list(SEEDS)
    for seed in SEEDS:
        alone.dvc("exp", "run", "--set-param", f"seed={seed}")
        assert found[seed] == [(alone.folder / name).read_text() for name in SHOWN]
    assert len({json.dumps(scores) for scores in found.values()}) == len(SEEDS)
