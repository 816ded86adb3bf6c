"""The command line, `carseg` or `python -m carseg`: a pipeline as a whole, and what it made."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import shtab

from carseg import __version__
from carseg.errors import CarsegError, hold_interrupts, is_lack_of_memory, run
from carseg.settings import DEVICES, EXPORTED, SIZES, settings_of

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
Options: TypeAlias = "argparse._ActionsContainer"


def main() -> None:
    """Run the command that the arguments name; what the user can fix ends in one line."""

    def start() -> None:
        arguments = command_line().parse_args()
        arguments.start(arguments)

    run(start, lighter="close other programs")


def command_line() -> argparse.ArgumentParser:
    """Return what parses all commands; `start` of what it returns is what to call with that."""
    parser = argparse.ArgumentParser(
        prog="carseg",
        description="Find the car in photos with what dvc repro has trained, or with the official "
        "weights; show the scores of dvc repro, cross-validate, export networks, import masks that "
        "annotation tools have written.",
    )
    parser.add_argument("--version", action="version", version=f"carseg {__version__}")
    shtab.add_argument_to(parser, ["--print-completion"])
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    for add in (_add_scores, _add_crossval, _add_predict, _add_export, _add_masks):
        add(commands)
    return parser


def _add_weights(command: Options, what: str) -> None:
    command.add_argument(
        "--weights",
        type=_path("--weights", "a file"),
        default=Path("u2net_segmentation_dice_loss.pth"),
        metavar="FILE",
        help=f"{what} [%(default)s]",
    )


def _add_image_size(command: Options, known: str = "") -> None:
    command.add_argument(
        "--image-size",
        type=int,
        metavar="N",
        help="side of the square that the network sees [that of dvc.lock, or of "
        f"params.yaml, beside the weights, else 320]{known}",
    )


def check_weights(path: Path) -> None:
    """Check that a weights file exists; a missing exported file is reported when it is opened.

    Raises:
        CarsegError: it does not.
    """
    if not path.exists() and path.suffix.lower() not in EXPORTED:
        raise CarsegError(
            f"{path}: there is no such file; run dvc repro in the project's folder, or name the "
            "weights with --weights (carseg predict --untrained needs none)"
        )


def check(name: str, value: float | None, least: float, most: float) -> None:
    """Check an option's value, if it was given.

    Raises:
        CarsegError: it is out of range.
    """
    if value is not None and not least <= value <= most:
        raise CarsegError(f"{name} {value}: give a number from {least} to {most}")


def _path(option: str, what: str = "a folder") -> Callable[[str], Path]:
    """Return what converts the value of an option to the path that it names."""

    def convert(text: str) -> Path:
        if not text:  # as an unset variable of a shell is; Path("") is the current folder
            raise CarsegError(f"{option}: names nothing; give {what}")
        return Path(text)

    return convert


def expand(texts: Sequence[str]) -> list[Path]:
    """Expand patterns to files, as some shells do not; a pattern of none stays itself."""
    from carseg.inputs import matches

    found: list[Path] = []
    for text in texts:
        there = [] if Path(text).exists() else matches(text)
        found += there or [Path(text)]
    return found


def _add_scores(commands: Commands) -> None:
    command = commands.add_parser(
        "scores",
        help="what the last dvc repro scored, as a table",
        description="Print metrics.json as a table, a row for each net (untrained, bce, dice) and "
        "way to look (plain, upright, closer, d4, d4_closer); "
        "dvc metrics show has these and the pooled ones in one long line.",
    )
    command.set_defaults(start=_scores)


def _scores(_: argparse.Namespace) -> None:
    with hold_interrupts():
        from carseg.scores import as_table, read_metrics

    print(as_table(read_metrics(Path("metrics.json"))))


def _add_crossval(commands: Commands) -> None:
    command = commands.add_parser(
        "crossval",
        help="train once for each fold, so that every photo is judged by a net new to it",
        description="Train once for each fold, so that every photo is judged by a net that has not "
        "seen it, and print the scores of all. Takes as long as dvc repro for each fold, of which "
        "20 photos have four.",
    )
    command.add_argument(
        *("--set-param", "-S"),
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a parameter for this run, one value each, as in dvc exp run; any but keep, "
        "patience and split",
    )
    command.add_argument(
        "--out",
        type=_path("--out"),
        default=Path("crossval"),
        metavar="DIR",
        help="results, in place of those of an earlier run there; DVC's experiments of an earlier "
        "run from the same commit are replaced wherever its results are [crossval]",
    )
    command.set_defaults(start=_crossval)


def _crossval(arguments: argparse.Namespace) -> None:
    with hold_interrupts():
        from carseg.crossval import crossval

    crossval(arguments.set_param, arguments.out)


def _add_predict(commands: Commands) -> None:
    command = commands.add_parser(
        "predict",
        help="masks, cut-outs and overlays of photos",
        description="Find the car in photos. Where it lies on its side, the photo is looked at "
        "once more, turned, unless --d4 is given. A photo that cannot be read is named "
        "at the end, when all others are done, and the exit code is 1.",
        epilog="examples:\n"
        "  carseg predict ../photos --out ../masks              a mask of every photo in a folder\n"
        "  carseg predict a.jpg b.jpg --cutout --out ../cars    cars on transparent ground\n"
        "  carseg predict '../p/*.jpg' --background white --out ../w\n"
        "                                                       before a white background\n"
        "  carseg predict - < car.jpg > ../mask.png             standard input to standard output\n"
        "  carseg predict ../photos --untrained --out ../drafts before anything is trained",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument(
        "paths", nargs="+", metavar="PATH", help="photos, folders, patterns, or - for a stream"
    )
    command.add_argument("--out", type=_path("--out"), metavar="DIR", help="results [predicted]")
    net = command.add_mutually_exclusive_group()
    _add_weights(net, "what a training saved, or an .onnx or .xml file of carseg export")
    net.add_argument(
        "--untrained",
        action="store_true",
        help="take the official weights as they are, 176 MB, fetched once: masks to begin with, "
        "before there is anything to train on",
    )
    _add_image_size(command, "; exported files know theirs")
    for kind, meaning in (
        ("mask", "white car on black, PNG; the default"),
        ("cutout", "the car on transparent ground, PNG"),
        ("overlay", "the photo with its car tinted, JPEG"),
    ):
        command.add_argument(
            f"--{kind}", dest="kinds", action="append_const", const=kind, help=meaning
        )
    command.add_argument(
        "--background", metavar="COLOUR|IMAGE", help="the car before a colour or picture, JPEG"
    )
    command.add_argument(
        "--d4",
        action="store_true",
        help="average over all turns and flips, 8 looks: better where the car is hard to find",
    )
    command.add_argument(
        "--closer",
        action="store_true",
        help="look again, at the car's box alone, turned so that the car stands, and average: "
        "better, but where the car is hard to find; 2 looks more, 4 where it is unclear how the "
        "car stands; with --d4 twice that",
    )
    command.add_argument(
        "--threshold",
        type=float,
        metavar="P",
        help="probability from which a pixel is car [that of params.yaml beside the weights, for "
        "exported files that of their export, else 0.5]; does nothing to cut-outs and backgrounds "
        "unless with --cleanup",
    )
    command.add_argument(
        "--cleanup",
        action=argparse.BooleanOptionalAction,
        help="keep only the largest piece of car, fill its holes [likewise, else no]",
    )
    command.add_argument(
        "--device",
        choices=DEVICES,
        default="auto",
        help="what to compute on [auto: the GPU where there is one]",
    )
    command.add_argument("--recursive", "-r", action="store_true", help="subfolders, too")
    existing = command.add_mutually_exclusive_group()
    existing.add_argument(
        "--force", action="store_true", help="replace files that exist, but none among photos"
    )
    existing.add_argument(
        "--skip-existing",
        action="store_true",
        help="leave files that exist as they are, and make the others",
    )
    command.add_argument(
        "--jobs",
        type=int,
        metavar="N",
        help="photos processed at once [as many as suit the machine]",
    )
    command.set_defaults(start=_predict)


def _predict(arguments: argparse.Namespace) -> None:
    check("--image-size", arguments.image_size, SIZES[0], SIZES[-1])
    check("--threshold", arguments.threshold, 0, 1)
    check("--jobs", arguments.jobs, 1, 64)
    of_files = ("out", "force", "skip_existing", "recursive", "jobs")
    ignored = [f"--{name.replace('_', '-')}" for name in of_files if getattr(arguments, name)]
    if arguments.paths == ["-"] and ignored:
        raise CarsegError(f"-: goes to standard output; leave out {', '.join(ignored)}")
    if not arguments.untrained:
        check_weights(arguments.weights)
    with hold_interrupts():
        import torch

        from carseg.batch import predict
        from carseg.model import Model, load, untrained
        from carseg.outputs import Kinds

    torch.backends.cudnn.allow_tf32 = False  # as when scores were computed

    def model() -> Model:
        if arguments.untrained:
            return untrained(arguments.image_size, device=arguments.device)
        return load(arguments.weights, arguments.image_size, device=arguments.device)

    predict(
        arguments.paths,
        arguments.out or Path("predicted"),
        model,
        Kinds(arguments.kinds or [], arguments.threshold, arguments.background, arguments.cleanup),
        d4=arguments.d4,
        closer=arguments.closer,
        recursive=arguments.recursive,
        force=arguments.force,
        skip_existing=arguments.skip_existing,
        jobs=arguments.jobs,
    )


def _add_export(commands: Commands) -> None:
    command = commands.add_parser(
        "export",
        help="ONNX, OpenVINO and safetensors files, and a model card",
        description="Write trained weights as other programs read them, checked against torch.",
        epilog="examples:\n"
        "  carseg export                                        all formats, into exported/\n"
        "  carseg export --format onnx --batch 1 --out ../one   one photo at a time, ONNX alone\n"
        "  carseg export --int8 Image --out ../small            in 8-bit integers",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_weights(command, "what a training saved")
    _add_image_size(command)
    command.add_argument(
        "--out",
        type=_path("--out"),
        default=Path("exported"),
        metavar="DIR",
        help="results [exported]",
    )
    command.add_argument(
        "--format",
        dest="formats",
        action="append",
        choices=["onnx", "openvino", "safetensors"],
        help="may be given more than once [all]",
    )
    command.add_argument("--batch", type=int, metavar="N", help="photos at once [any number]")
    command.add_argument(
        "--int8",
        type=_path("--int8"),
        metavar="DIR",
        help="networks in 8-bit integers, smaller and faster, calibrated on photos in this folder; "
        "half of them are held out to compare masks on",
    )
    command.add_argument("--force", action="store_true", help="replace files that exist")
    command.set_defaults(start=_export)


def _export(arguments: argparse.Namespace) -> None:
    check("--image-size", arguments.image_size, SIZES[0], SIZES[-1])
    check("--batch", arguments.batch, 1, 64)  # checking takes memory for each of them
    if arguments.weights.suffix.lower() in (*EXPORTED, ".safetensors"):
        raise CarsegError(f"{arguments.weights}: is exported already; name the .pth it was made of")
    check_weights(arguments.weights)
    with hold_interrupts():
        from carseg.export import export
        from carseg.formats import WRITERS
        from carseg.inputs import list_photos

    formats = arguments.formats or list(WRITERS)
    photos = list_photos([str(arguments.int8)], recursive=True) if arguments.int8 else []
    try:
        written = export(
            arguments.weights,
            arguments.out,
            formats,
            arguments.image_size or settings_of(arguments.weights).image_size,
            arguments.batch,
            arguments.force,
            [path for path, _ in photos],
        )
    except (MemoryError, RuntimeError) as error:
        if not is_lack_of_memory(error):
            raise
        raise CarsegError(
            "memory ran out; lower --batch or --image-size, or export one --format at a time, each "
            "into an --out of its own"
        ) from error
    print("\n".join(str(path) for path in written))


def _add_masks(commands: Commands) -> None:
    masks = commands.add_parser(
        "masks",
        help="masks out of annotation files",
        description="Make masks of what annotation tools write.",
    )
    command = masks.add_subparsers(required=True, metavar="COMMAND").add_parser(
        "import",
        help="write Mask/ from COCO, LabelMe or CVAT",
        description="Turn what annotation tools write into masks, white car on black. Nothing is "
        "written unless every picture is right.",
        epilog="examples:\n"
        "  carseg masks import instances.json --class car\n"
        "  carseg masks import labels/*.json --class car --class van\n"
        "  carseg masks import annotations.xml --images photos --out masks",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        help="COCO JSON, LabelMe JSON or CVAT XML; patterns, too",
    )
    command.add_argument(
        "--class",
        dest="classes",
        action="append",
        default=[],
        metavar="NAME",
        help="what is car; may be given more than once [the only class there is]",
    )
    command.add_argument(
        "--images",
        type=_path("--images"),
        default=Path("Image"),
        metavar="DIR",
        help="the photos [Image]",
    )
    command.add_argument(
        "--out", type=_path("--out"), default=Path("Mask"), metavar="DIR", help="the masks [Mask]"
    )
    command.add_argument("--force", action="store_true", help="replace masks that exist")
    command.set_defaults(start=_import_masks)


def _import_masks(arguments: argparse.Namespace) -> None:
    with hold_interrupts():
        from carseg.masks import import_masks

    written = import_masks(
        expand(arguments.files), arguments.classes, arguments.images, arguments.out, arguments.force
    )
    print(f"{len(written)} masks written to {arguments.out}")


if __name__ == "__main__":
    main()
