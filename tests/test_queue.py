"""Experiments side by side give what each gives alone."""

import json
import time
from pathlib import Path

import pytest
import yaml
from conftest import PAIRS, Run, write_pairs
from project import Project

SEEDS = (42, 1)  # the first is that of the project that `ran`
CURVE = "plots/bce.csv"


@pytest.mark.slow
def test_of_two_experiments_side_by_side_one_is_as_run_alone_and_the_other_another(
    ran: Run, tmp_path: Path
) -> None:
    queued = Project(tmp_path / "queue")
    queued.make_shallow()
    write_pairs(queued.folder / "Image", queued.folder / "Mask", PAIRS)
    queued.dvc("repro", "dataset", "weights")
    queued.commit("data")
    seeds = ",".join(map(str, SEEDS))
    queued.dvc("exp", "run", "--queue", "--set-param", f"seed={seeds}", "train_bce")
    queued.dvc("queue", "start", "--jobs", "2")
    end = time.monotonic() + 400
    # An experiment that is done has a ref; to ask DVC takes as long as an epoch, on the same cores.
    done: list[str] = []
    while len(done) < len(SEEDS):
        assert not queued.git("for-each-ref", "refs/exps/celery/failed")
        assert time.monotonic() < end, queued.dvc("queue", "status")
        time.sleep(1)
        done = queued.git("for-each-ref", "refs/exps/*/*/*").splitlines()
    while (said := queued.dvc("queue", "status")).count("Success") < len(SEEDS):
        assert "Failed" not in said, said
        assert time.monotonic() < end, said
    (committed,) = [
        row for row in json.loads(queued.dvc("exp", "show", "--json")) if row["rev"] != "workspace"
    ]
    rows = committed["experiments"]
    found = {}
    for row in rows:
        (revision,) = row["revs"]
        seed = revision["data"]["params"]["params.yaml"]["data"]["seed"]
        curve, lock = (queued.git("show", f"{revision['rev']}:{x}") for x in (CURVE, "dvc.lock"))
        found[seed] = (curve, yaml.safe_load(lock)["stages"]["train_bce"])
    assert set(found) == set(SEEDS)
    alone = yaml.safe_load((ran.project.folder / "dvc.lock").read_text())["stages"]["train_bce"]
    assert found[SEEDS[0]] == ((ran.project.folder / CURVE).read_text(), alone)
    outs = [[out["md5"] for out in lock["outs"]] for _, lock in found.values()]
    assert outs[0] != outs[1]
