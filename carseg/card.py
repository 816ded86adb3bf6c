"""The model card: what a trained model is, what it was made of, and how good it is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError

from carseg import __version__
from carseg.columns import TRAINED
from carseg.errors import CarsegError
from carseg.learner import MAX_DICE_RATE
from carseg.lock import Lock, Stage, read_lock
from carseg.pairs import read_manifest
from carseg.params import Params, load_params
from carseg.scores import ByView, read_metrics
from carseg.settings import is_foreign
from carseg.tensors import MEAN, STD

TASK = {file: task for task, file in TRAINED.items()}
LOSS = {"bce": "BCEWithLogitsLoss", "dice": "BCEWithLogitsLoss, then Dice loss"}
NETWORK = {"u2net": "U²-Net, 44.0 M parameters", "u2netp": "U²-Net†, 1.1 M parameters"}
WEIGHTS_ALONE = (
    "The safetensors file holds the weights alone, under the key names of the authors' code, whose "
    "network gives logits: a sigmoid makes probabilities of them."
)
INTEGERS = (
    "The networks compute in 8-bit integers, for processors. Their masks agree with those of the "
    "weights, which scores are of, at IoU {:.3f}, in the mean of photos that they were not "
    "calibrated with."
)
CLEANUP = "; carseg then keeps only the largest piece of car, and fills its holes"
NO_SCORES = "Not known: no `metrics.json` beside the weights tells of them."
OTHER_SCORES = "Not known: the last evaluation was of other weights."
OTHER_SETTING = "Not known with this `{}`: the last evaluation was with {}."
CLEANED = " Masks were cleaned up before, as `cleanup` says: their largest piece, without holes."
SCORES = {"dice": "Dice", "iou": "IoU", "boundary_iou": "boundary IoU", "hd95": "HD95, pixels"}

MACHINE = TypeAdapter(dict[str, Any])


class Trained(NamedTuple):
    """What the training is known to have been made of; what is not known is None or empty."""

    params: Params | None
    data: str | None  # the dataset's hash in DVC
    train: int | None  # photos
    machine: dict[str, Any]


class Judged(NamedTuple):
    """What the evaluation found of these weights."""

    scores: ByView | str  # view → score, or why there are none
    untrained: ByView
    cleaned: bool  # scores are of masks that were cleaned up
    validation: int | None  # photos, if known


class Card(NamedTuple):
    """What is known of a model."""

    source: str
    variant: str
    size: int
    threshold: float
    cleanup: bool
    task: str | None
    trained: Trained
    judged: Judged

    @classmethod
    def of(cls, source: Path, variant: str, size: int) -> Card:
        """Gather what the files beside the weights tell.

        Raises:
            CarsegError: one of them is broken.
        """
        root, ours = source.parent, not is_foreign(source.parent)
        task = TASK.get(source.name) if ours else None
        file = root / "params.yaml"
        now = load_params(file) if ours and file.is_file() else None
        trained, judged = Trained(None, None, None, {}), Judged(NO_SCORES, {}, False, None)
        if ours:
            lock = read_lock(root / "dvc.lock")
            judged = _judged(source, task, lock, size, now)
            if task and not lock.of(f"train_{task}").differs(source):
                trained = _trained(root, task, lock, now)
            else:  # of how many photos other weights were judged by says nothing
                judged = judged._replace(validation=None)
        settings = now or Params()
        return cls(
            source.name,
            variant,
            size,
            settings.threshold,
            settings.cleanup,
            task,
            trained,
            judged,
        )

    def metadata(self) -> dict[str, str]:
        """Return what goes into exported files, as text by name."""
        known: dict[str, object] = {
            "carseg": __version__,
            "network": self.variant,
            "classes": ["background", "car"],
            "output": "probability of car, 0 to 1",
            "image_size": self.size,
            "threshold": self.threshold,
            "cleanup": self.cleanup,
            "mean": [round(float(x), 3) for x in MEAN.flatten()],
            "std": [round(float(x), 3) for x in STD.flatten()],
            "metrics": None if isinstance(self.judged.scores, str) else self.judged.scores,
            "metrics_cleaned_up": self.judged.cleaned or None,
            "data": self.trained.data,
        }
        return {
            name: value if isinstance(value, str) else json.dumps(value)
            for name, value in known.items()
            if value is not None
        }


def card(
    about: Card, files: Sequence[str], batch: int | None, agreement: float | None = None
) -> str:
    """Write the model card in Markdown.

    Args:
        about: what is known of the model.
        files: names of those that the card goes with.
        batch: how many photos the network takes at once; None: any number.
        agreement: mean IoU of the masks of networks in 8-bit integers with those of the weights;
            None: there are no such networks.
    """
    count = {None: "any number of photos", 1: "1 photo"}.get(batch, f"{batch} photos")
    listed = ", ".join(f"`{name}`" for name in files)
    integers = [INTEGERS.format(agreement), ""] if agreement is not None else []
    alone = [WEIGHTS_ALONE, ""] if "model.safetensors" in files else []
    lines = [
        "# Car segmentation",
        "",
        f"{NETWORK[about.variant]}, from `{about.source}` of carseg {__version__}. It gives each "
        "pixel's probability of belonging to the car that a photo is of.",
        "",
        "## Use",
        "",
        f"Files: {listed}. Input `photo`: {count}, float32, (N, 3, {about.size}, "
        f"{about.size}), RGB. Stretch the photo to a square (Lanczos), divide it by its own "
        "brightest value, subtract the mean (0.485, 0.456, 0.406), divide by the deviation "
        f"(0.229, 0.224, 0.225). Output `probability`: float32, (N, 1, {about.size}, {about.size}),"
        " 0 to 1, no sigmoid needed. Scale it back to the photo's size, then cut at "
        f"{about.threshold}{CLEANUP if about.cleanup else ''}.",
        "",
        *integers,
        *alone,
        "## Scores",
        "",
        *_scores(about.judged),
        "",
        "## Training",
        "",
        *_training(about),
        "",
        "## Limits",
        "",
        "Made for photos of one car in the foreground. Cars further back are background. Photos "
        "unlike those it was trained on, and any use that someone's safety depends on, want "
        "checking first.",
        "",
        "Network and official weights: Qin et al. 2020, U²-Net, arXiv:2005.09007, Apache-2.0.",
        "",
    ]
    return "\n".join(lines)


def _scores(judged: Judged) -> list[str]:
    if isinstance(judged.scores, str):
        return [judged.scores]
    rows = {"trained": judged.scores, "untrained start": judged.untrained}
    lines = [
        f"Means over {judged.validation or 'the'} validation photos that it was not trained on. "
        "plain is one look, as other programs take it; the other views are carseg's: upright adds "
        "a look, turned, where the car lies on its side; d4 is the average over all turns and "
        "flips; closer averages upright, or d4, with looks at the car's box alone. The epoch kept "
        "was chosen on them, unless `keep` is `last` and `patience` is null."
        + (CLEANED if judged.cleaned else ""),
        "",
        "| | view | " + " | ".join(SCORES.values()) + " |",
        "|---|---" + "|---" * len(SCORES) + "|",
    ]
    for name, views in rows.items():
        for view, scores in views.items():
            cells = " | ".join(f"{scores[key]:.4f}" for key in SCORES)
            lines.append(f"| {name} | {view} | {cells} |")
    return lines


def _training(about: Card) -> list[str]:
    if about.trained.params is None:
        return ["Not known: no file beside the weights tells of their training."]
    params = about.trained.params
    slower = (
        f", {MAX_DICE_RATE:g} for the Dice loss"
        if about.task == "dice" and params.learning_rate > MAX_DICE_RATE
        else ""
    )
    told = {
        "photos": (
            f"{about.trained.train} to train, {about.judged.validation} to validate"
            if about.trained.train and about.judged.validation
            else None
        ),
        "data, MD5 in DVC": about.trained.data,
        "renderings": f"{params.renderings} trained along" if params.renderings else None,
        "loss": LOSS[about.task] if about.task else None,
        "start": params.init,
        "epochs": f"{params.epochs} of each loss" if about.task == "dice" else params.epochs,
        "optimiser": f"Adam, learning rate {params.learning_rate:g}{slower}",
        "batch": f"{params.batch_size} photos",
        "seed": params.seed,
        **{name: about.trained.machine.get(name) for name in ("processor", "precision", "python")},
    }
    return ["| | |", "|---|---|", *(f"| {k} | {v} |" for k, v in told.items() if v is not None)]


def _trained(root: Path, task: str, lock: Lock, now: Params | None) -> Trained:
    """Gather what weights were made of, `now` being the present parameters."""
    run, params = lock.of(f"train_{task}"), now
    if now:  # which may have been changed since
        told = {k: v for k, v in run.settings().items() if k in Params.model_fields}
        if told:  # a run before there were any has not told
            told.setdefault("renderings", 0)
        params = now.model_copy(update=told)
    return Trained(
        params,
        run.md5("dataset") or lock.of("dataset").md5("dataset"),
        _photos(root, "train", run, lock),
        _machine(root / f"provenance/train_{task}.json"),
    )


def _judged(source: Path, task: str | None, lock: Lock, size: int, now: Params | None) -> Judged:
    """Gather the scores of weights, unless the last evaluation was of others or set otherwise."""
    root, run = source.parent, lock.of("evaluate")
    file = root / "metrics.json"
    metrics = read_metrics(file) if file.is_file() else {}
    scores: ByView | str = metrics.get(task or "") or NO_SCORES
    settings = (now or Params()).model_dump() | {"image_size": size}
    judged_with = (now.model_dump() if now else {}) | run.settings()
    if run.differs(source) or run.differs(file):
        scores = OTHER_SCORES
    elif not isinstance(scores, str):
        for name in ("image_size", "threshold"):
            if judged_with.get(name, settings[name]) != settings[name]:
                scores = OTHER_SETTING.format(name, judged_with[name])
                break
    return Judged(
        scores,
        metrics.get("untrained", {}),
        not isinstance(scores, str) and bool(judged_with.get("cleanup")),
        _photos(root, "val", run, lock),
    )


def _photos(root: Path, part: str, run: Stage, lock: Lock) -> int | None:
    """Count a part's photos, as far as a run had those that are in the manifest now."""
    if lock.of("split").md5("split") not in (None, run.md5("split")):
        return None
    manifest = root / f"split/{part}.csv"
    return len(read_manifest(manifest)) if manifest.is_file() else None


def _machine(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return MACHINE.validate_json(path.read_bytes())
    except ValidationError as error:
        raise CarsegError(f"{path}: is not what carseg writes there; run dvc repro") from error
