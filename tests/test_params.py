"""params.yaml: what is accepted, and the one line that each fault gets."""

import re
from pathlib import Path
from unittest.mock import Mock

import pytest
import yaml
from dvc.utils.serialize import parse_yaml
from project import ROOT

from carseg.errors import CarsegError
from carseg.params import Params, Split, load_params, read_yaml

WHOLE = "a whole number from 1"
TO_A_MILLION = "a whole number from 1 to 1000000"


def read(text: str, folder: Path) -> Params:
    path = folder / "params.yaml"
    path.write_text(text, encoding="utf-8")
    return load_params(path)


def faults(text: str, folder: Path) -> list[str]:
    """The lines of the error, each without the path that it must begin with."""
    with pytest.raises(CarsegError) as caught:
        read(text, folder)
    lines = str(caught.value).splitlines()
    start = f"{folder / 'params.yaml'}: "
    assert all(line.startswith(start) for line in lines)
    return [line.removeprefix(start) for line in lines]


def test_what_keeps_it_from_being_read_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "params.yaml"
    path.mkdir()
    with pytest.raises(
        CarsegError, match=r"params\.yaml: is a folder where a file is to be; move "
    ):
        load_params(path)
    refused = PermissionError(13, "Permission denied")
    monkeypatch.setattr(Path, "read_text", Mock(side_effect=refused))
    with pytest.raises(
        CarsegError, match=r"params\.yaml: Permission denied; check its permissions"
    ):
        load_params(path)


def test_the_readme_tells_every_parameter_and_its_default() -> None:
    """Not params.yaml, which is the user's to change."""
    rows = re.findall(r"^\| `([a-z_.]+)` \| (\S+) \|", (ROOT / "README.md").read_text(), re.M)
    told = {name: yaml.safe_load(value.strip("`")) for name, value in rows}
    defaults = Params().model_dump()
    defaults |= {f"split.{name}": value for name, value in defaults.pop("split").items()}
    assert told == defaults


def test_the_committed_file_spells_out_every_parameter() -> None:
    lines = [line.split(":")[0] for line in (ROOT / "params.yaml").read_text().splitlines()]
    names = [*Params.model_fields, *(f"  {name}" for name in Split.model_fields)]
    assert [line for line in lines if not line.startswith("#")] == names


@pytest.mark.parametrize("text", ["", "# nothing but a remark\n", "---\n"])
def test_an_empty_file_means_the_defaults(text: str, tmp_path: Path) -> None:
    assert read(text, tmp_path) == Params()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("seed: 0", Params(seed=0)),
        ("seed: 4294967295", Params(seed=2**32 - 1)),
        ("model: u2netp", Params(model="u2netp")),
        ("init: scratch", Params(init="scratch")),
        ("init: Weights/my net.onnx", Params(init="Weights/my net.onnx")),
        ("image_size: 64", Params(image_size=64)),
        ("image_size: 2048", Params(image_size=2048)),
        ("learning_rate: 1", Params(learning_rate=1.0)),
        ("patience: 1", Params(patience=1)),
        ("patience: null", Params(patience=None)),
        ("keep: last", Params(keep="last")),
        ("cleanup: true", Params(cleanup=True)),
        ("precision: bfloat16", Params(precision="bfloat16")),
        ("workers: 256", Params(workers=256)),
        ("launcher: torchrun --nproc-per-node=2", Params(launcher="torchrun --nproc-per-node=2")),
        ("threshold: .25", Params(threshold=0.25)),
        ("split: {val_size: 1, fold: 0}", Params(split=Split(val_size=1, fold=0))),
        ("split: {fold: 3}", Params(split=Split(val_size=5, fold=3))),
    ],
)
def test_a_value_within_its_range_is_taken(text: str, expected: Params, tmp_path: Path) -> None:
    assert read(text, tmp_path) == expected


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-4", 1e-4), ("3e-05", 3e-5), ("1E-4", 1e-4), ("5.e-3", 5e-3), (".5e-3", 5e-4),
     ("1.5e-3", 1.5e-3), ("+1e-2", 1e-2), ("0.0001", 1e-4)],
)  # fmt: skip
def test_a_number_with_an_exponent_is_a_number(text: str, value: float, tmp_path: Path) -> None:
    assert read(f"learning_rate: {text}", tmp_path).learning_rate == value


MODEL = "u2net or u2netp"
SEED = "a whole number from 0 to 4294967295"
INIT = "official, u2netp, u2net, scratch, or the path of a .pth or .onnx file"
SIZE = "a multiple of 32 from 64 to 2048"
RATE = "a number above 0, at most 1"
PATIENCE = "null or a whole number from 1"
PRECISION = "auto, float32 or bfloat16"
WORKERS = "a whole number from 0 to 256"
LAUNCHER = "python, or torchrun with its options"
THRESHOLD = "a number between 0 and 1"
FOLD = "null or a whole number from 0"
SECTION = "a section with val_size and fold"
RENDERINGS = "a whole number from 0 to 1000"
WRONG = {
    "renderings": (RENDERINGS, ["-1", "1001", "2.0", "true", "null", "many"]),
    "seed": (SEED, ["-1", "4294967296", "4.0", "abc", "true", "null", "[1]"]),
    "model": (MODEL, ["u2netx", "U2NET", "1", "null", "true"]),
    "init": (INIT, ["u2netx", "weights.pt", "weights.onnx.zip", "''", "1", "null"]),
    "image_size": (SIZE, ["32", "2080", "100", "320.0", "'320'", "true", "null", "0", "-64"]),
    "epochs": (TO_A_MILLION, ["0", "1000001", "-3", "1.5", "1e2", "ten", "true", "null"]),
    "batch_size": (TO_A_MILLION, ["0", "1000001", "2.0", "true", "null", "'4'"]),
    "learning_rate": (RATE, ["0", "0.0", "-1e-4", "1.1", ".inf", ".nan", "'1e-4'", "true", "null"]),
    "patience": (PATIENCE, ["0", "-1", "2.5", "false", "never"]),
    "precision": (PRECISION, ["float16", "16", "null", "true"]),
    "workers": (WORKERS, ["-1", "257", "1.0", "true", "null"]),
    "keep": ("best or last", ["first", "null", "1", "true"]),
    "cleanup": ("true or false", ["1", "'yes'", "null", "largest"]),
    "launcher": (LAUNCHER, ["mpirun", "null", "''", "2", "pythonw", "' torchrun'"]),
    "threshold": (THRESHOLD, ["0", "1", "0.0", "1.0", "-.5", ".nan", "half", "true", "null"]),
    "split": (SECTION, ["5", "null", "[5, null]", "true"]),
}
WRONG_IN_SPLIT = {
    "val_size": (WHOLE, ["0", "-5", "5.0", "0.25", "true", "null", "{a: 1}"]),
    "fold": (FOLD, ["-1", "1.0", "true", "first"]),
}


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [(key, value, allowed) for key, (allowed, values) in WRONG.items() for value in values],
)
def test_a_wrong_value_is_one_line_with_what_it_may_be(
    key: str, value: str, allowed: str, tmp_path: Path
) -> None:
    (line,) = faults(f"{key}: {value}", tmp_path)
    assert line.startswith(f"{key} is ")
    assert line.endswith(f"; it must be {allowed}")


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [(key, v, allowed) for key, (allowed, values) in WRONG_IN_SPLIT.items() for v in values],
)
def test_a_wrong_value_in_the_section_is_named_with_it(
    key: str, value: str, allowed: str, tmp_path: Path
) -> None:
    (line,) = faults(f"split:\n  {key}: {value}", tmp_path)
    assert line.startswith(f"split.{key} is ")
    assert line.endswith(f"; it must be {allowed}")


def test_every_parameter_has_wrong_values_in_the_tables_above() -> None:
    assert WRONG.keys() == Params.model_fields.keys()
    assert WRONG_IN_SPLIT.keys() == Split.model_fields.keys()


def test_the_wrong_value_is_shown_but_not_at_any_length(tmp_path: Path) -> None:
    assert faults("epochs: ten", tmp_path) == [f"epochs is 'ten'; it must be {TO_A_MILLION}"]
    (line,) = faults(f"epochs: {'x' * 1000}", tmp_path)
    assert len(line) < 150


@pytest.mark.parametrize(
    ("text", "suggestion"),
    [
        ("learning_rat: 1", "learning_rat is not a parameter; did you mean learning_rate?"),
        ("epoch: 1", "epoch is not a parameter; did you mean epochs?"),
        ("Seed: 1", "Seed is not a parameter; did you mean seed?"),
        ("batchsize: 1", "batchsize is not a parameter; did you mean batch_size?"),
        ("val_size: 1", "val_size is not a parameter; did you mean split.val_size?"),
        ("fold: 1", "fold is not a parameter; did you mean split.fold?"),
        ("split: {folds: 1}", "split.folds is not a parameter; did you mean split.fold?"),
        ("split: {epochs: 1}", "split.epochs is not a parameter; did you mean epochs?"),
        ("split: {seed: 1}", "split.seed is not a parameter; did you mean seed?"),
    ],
)
def test_an_unknown_key_gets_the_nearest_one(text: str, suggestion: str, tmp_path: Path) -> None:
    assert faults(text, tmp_path) == [suggestion]


def test_a_key_unlike_any_other_gets_the_list(tmp_path: Path) -> None:
    (line,) = faults("xyzzy: 1", tmp_path)
    known = [name for name in Params.model_fields if name != "split"]
    known += [f"split.{name}" for name in Split.model_fields]
    assert line == f"xyzzy is not a parameter; known are {', '.join(known)}"


@pytest.mark.parametrize("key", ["1", "true", "null", "2.5", "2024-01-01"])
def test_a_key_that_is_no_word_is_one_line(key: str, tmp_path: Path) -> None:
    assert len(faults(f"{key}: 3", tmp_path)) == 1


def test_every_fault_gets_a_line(tmp_path: Path) -> None:
    text = "epochs: 0\nmodel: x\nsplt: 1\nsplit: {val_size: 0, fold: -1}\nseed: 1\n"
    keys = [line.split()[0] for line in faults(text, tmp_path)]
    assert sorted(keys) == ["epochs", "model", "split.fold", "split.val_size", "splt"]


@pytest.mark.parametrize(
    "text", ["seed: [1", "seed: 1\n  model: 2", "a: b: c", "\tseed: 1", "seed: 2024-13-45"]
)
def test_what_is_no_yaml_is_one_line(text: str, tmp_path: Path) -> None:
    (line,) = faults(text, tmp_path)
    assert line.startswith("not valid YAML: ")


@pytest.mark.parametrize("text", ["- seed", "42", "seed", "!!python/object/apply:os.getcwd []"])
def test_a_file_without_settings_is_one_line(text: str, tmp_path: Path) -> None:
    assert len(faults(text, tmp_path)) == 1


def test_a_file_in_another_encoding_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes("seed: 1  # Übung".encode("latin-1"))
    with pytest.raises(CarsegError, match=r"params\.yaml: "):
        load_params(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CarsegError, match=r"params\.yaml: No such file or directory; "):
        load_params(tmp_path / "params.yaml")


@pytest.mark.parametrize(
    "word",
    ["0", "7", "-3", "+3", "1_000", "0x1F", "0o17", "0b11", "010", "0042", "-010", "08", "0o8",
     "1.5", "5.", ".5", "-0.5", "1_0.5", "1e3", "1e-4", "1.5E3", ".5e-3", "1e5_0", ".inf", ".nan",
     "1:30", "1:30.5", "true", "False", "TRUE", "yes", "no", "on", "off", "y", "n", "null", "~",
     "2020-01-01", "word", "'010'"],
)  # fmt: skip
def test_words_mean_what_dvc_records_them_as(word: str) -> None:
    assert repr(read_yaml(f"a: {word}")) == repr(dict(parse_yaml(f"a: {word}", "")))


@pytest.mark.parametrize("word", ["yes", "on", "off"])
def test_words_that_dvc_takes_for_text_are_no_truth_values(word: str, tmp_path: Path) -> None:
    assert faults(f"cleanup: {word}", tmp_path) == [
        f"cleanup is '{word}'; it must be true or false"
    ]
