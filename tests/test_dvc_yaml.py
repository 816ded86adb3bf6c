"""dvc.yaml against the code: a stage must rerun when, and only when, what it uses changes."""

import ast
import hashlib
import json
import subprocess
from pathlib import Path

import pytest
import yaml
from project import ROOT

from carseg.params import Params

STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
# They word messages and check settings; the settings themselves DVC tracks one by one.
WITHOUT_EFFECT = {"carseg/errors.py", "carseg/params.py", "carseg/__init__.py"}
WITHOUT_RESULT = {"workers", "launcher"}  # parameters that change none


def imported(path: Path) -> set[Path]:
    """The project's own modules that a module imports, directly."""
    found = set()
    tree = ast.parse(path.read_text())
    # What the package itself imports inside a function is for those who ask for it by name, in
    # Python; a stage's own functions are run.
    for node in tree.body if path.name == "__init__.py" else ast.walk(tree):
        if isinstance(node, ast.Import):
            assert not any(alias.name.startswith("carseg") for alias in node.names), path
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("carseg"):
            parts = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            for part in parts:
                base = ROOT / part.replace(".", "/")
                found |= {p for p in (base.with_suffix(".py"), base / "__init__.py") if p.exists()}
    return found


def used(stage: str) -> set[str]:
    """All modules that a stage comes to import, as dvc.yaml names them."""
    waiting, seen = {ROOT / "stages" / f"{stage}.py"}, set()
    while waiting:
        path = waiting.pop()
        seen.add(path)
        waiting |= imported(path) - seen
    seen |= {template for path in seen if (template := path.with_suffix(".html.j2")).exists()}
    names = {path.relative_to(ROOT).as_posix() for path in seen}
    # A package is one dependency, the folder.
    names = {"carseg/sample" if name.startswith("carseg/sample/") else name for name in names}
    return names - WITHOUT_EFFECT


def test_stages_come_in_the_documented_order() -> None:
    first = ["dataset", "split", "weights", "renderings"]
    assert list(STAGES) == [*first, "train_bce", "train_dice", "evaluate"]


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_the_modules_that_it_uses(stage: str) -> None:
    code = {dep for dep in STAGES[stage]["deps"] if dep.startswith(("carseg/", "stages/"))}
    assert code == used(stage)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_is_a_thin_script(stage: str) -> None:
    lines = (ROOT / "stages" / f"{stage}.py").read_text().splitlines()
    assert len(lines) <= 22
    launcher = "${launcher}" if stage.startswith("train") else "python"
    assert STAGES[stage]["cmd"] == f"{launcher} -m stages.{stage}"


def test_every_parameter_is_tracked_but_those_that_change_no_result() -> None:
    # The launcher is part of commands, which DVC compares as they are.
    tracked = {name for stage in STAGES.values() for name in stage.get("params", [])}
    assert Params.model_fields.keys() - tracked == WITHOUT_RESULT


TRAINED = {
    *("seed", "model", "init", "image_size", "epochs", "batch_size", "learning_rate", "keep"),
    *("patience", "precision", "threshold", "renderings"),
}
STARTS = {"dataset", "split", "pretrained"}
CURVES = {"plots/bce.csv", "plots/dice.csv"}
FIRST, SECOND = "u2net_segmentation.pth", "u2net_segmentation_dice_loss.pth"


@pytest.mark.parametrize(
    ("stage", "data", "params"),
    [
        ("dataset", set(), set()),
        ("split", {"dataset"}, {"seed", "split"}),
        ("weights", {"Weights"}, {"init", "model"}),
        ("renderings", set(), {"renderings"}),
        ("train_bce", STARTS | {"renderings"}, TRAINED),
        ("train_dice", STARTS | {"renderings", FIRST}, TRAINED),
        ("evaluate", STARTS | CURVES | {FIRST, SECOND}, TRAINED | {"split", "cleanup"}),
    ],
)
def test_a_stage_depends_on_the_data_and_parameters_that_it_reads(
    stage: str, data: set[str], params: set[str]
) -> None:
    deps = {dep for dep in STAGES[stage]["deps"] if not dep.startswith(("carseg/", "stages/"))}
    assert (deps, set(STAGES[stage].get("params", []))) == (data, params)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_tracks_every_parameter_that_its_code_reads(stage: str) -> None:
    modules = [ROOT / name for name in used(stage) if name.endswith(".py")]
    read = {
        node.attr
        for path in modules
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        if ast.unparse(node.value) in ("params", "load_params()")
    }
    assert read & Params.model_fields.keys() - WITHOUT_RESULT <= {*STAGES[stage].get("params", [])}
    assert stage == "dataset" or read, "nothing was found"


def test_the_users_folders_are_never_cached() -> None:
    outs = [out for out in STAGES["dataset"]["outs"] if isinstance(out, dict)]
    assert outs == [
        {"Image": {"cache": False, "persist": True}},
        {"Mask": {"cache": False, "persist": True}},
    ]


@pytest.mark.parametrize("stage", [name for name in STAGES if name != "dataset"])
def test_every_output_of_a_stage_can_come_out_of_the_run_cache(stage: str) -> None:
    # Of stages with other outputs that DVC does not cache, it never remembers a run.
    assert all(isinstance(out, str) for out in STAGES[stage]["outs"])


def committed(*words: str) -> bytes:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, check=True).stdout


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="an archive has no history")
def test_what_is_committed_was_made_by_the_code_beside_it() -> None:
    """Or a fresh clone would begin with results that are not its own."""
    files = committed("ls-tree", "-r", "--name-only", "HEAD").decode().splitlines()
    stages = yaml.safe_load(committed("show", "HEAD:dvc.lock"))["stages"]
    settings = yaml.safe_load(committed("show", "HEAD:params.yaml"))
    assert stages.keys() == STAGES.keys()
    for stage, found in stages.items():
        told = found.get("params", {}).get("params.yaml", {})
        assert told == {name: settings[name] for name in STAGES[stage].get("params", [])}, stage
        for path, md5 in ((each["path"], each["md5"]) for each in found["deps"] + found["outs"]):
            if not path.startswith(("carseg/", "stages/", "plots/", "metrics.json")):
                continue
            if md5.endswith(".dir"):
                inside = [name for name in files if name.startswith(f"{path}/")]
                entries = [
                    {"md5": md5_of(name), "relpath": name.removeprefix(f"{path}/")}
                    for name in sorted(inside)
                ]
                now = hashlib.md5(json.dumps(entries).encode()).hexdigest() + ".dir"
            else:
                now = md5_of(path)
            assert now == md5, f"{stage}: {path} was changed since; see CONTRIBUTING"


def md5_of(name: str) -> str:
    return hashlib.md5(committed("show", f"HEAD:{name}")).hexdigest()
