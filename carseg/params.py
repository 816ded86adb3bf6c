"""`params.yaml`, read and checked once."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from carseg.errors import IS_FOLDER, CarsegError

STARTS = ("official", "u2netp", "u2net", "scratch")

# What a plain word of YAML may be.
INT, FLOAT, BOOL = (f"tag:yaml.org,2002:{kind}" for kind in ("int", "float", "bool"))


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Split(_Section):
    """How the pairs are divided into training and validation."""

    val_size: int = Field(default=5, ge=1, description="a whole number from 1")
    fold: int | None = Field(default=None, ge=0, description="null or a whole number from 0")


class Params(_Section):
    """All settings of the pipeline. Each description says what the value may be."""

    seed: int = Field(default=42, ge=0, lt=2**32, description="a whole number from 0 to 4294967295")
    model: Literal["u2net", "u2netp"] = Field(default="u2net", description="u2net or u2netp")
    init: str = Field(
        default="official",
        description="official, u2netp, u2net, scratch, or the path of a .pth or .onnx file",
    )
    renderings: int = Field(default=0, ge=0, le=1000, description="a whole number from 0 to 1000")
    image_size: int = Field(
        default=320, ge=64, le=2048, multiple_of=32, description="a multiple of 32 from 64 to 2048"
    )
    epochs: int = Field(default=20, ge=1, le=10**6, description="a whole number from 1 to 1000000")
    batch_size: int = Field(
        default=2, ge=1, le=10**6, description="a whole number from 1 to 1000000"
    )
    learning_rate: float = Field(
        default=1e-4, gt=0, le=1, description="a number above 0, at most 1"
    )
    keep: Literal["best", "last"] = Field(default="best", description="best or last")
    patience: int | None = Field(default=None, ge=1, description="null or a whole number from 1")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="auto, float32 or bfloat16"
    )
    workers: int = Field(default=0, ge=0, le=256, description="a whole number from 0 to 256")
    launcher: str = Field(
        default="python",
        pattern=r"^(python|torchrun)( |$)",
        description="python, or torchrun with its options",
    )
    threshold: float = Field(default=0.5, gt=0, lt=1, description="a number between 0 and 1")
    cleanup: bool = Field(default=False, description="true or false")
    split: Split = Field(default=Split(), description="a section with val_size and fold")

    @field_validator("init")
    @classmethod
    def _known_start(cls, value: str) -> str:
        if value not in STARTS and Path(value).suffix not in (".pth", ".onnx"):
            raise ValueError("unknown start")
        return value


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads plain words as YAML 1.2 does, and DVC, which records what it reads.

    By YAML 1.1, as PyYAML reads it, 010 is eight, 1:30 is ninety, yes is true and 1e-4 is a word.
    """

    # None of 1.1's numbers and truth values.
    yaml_implicit_resolvers = {  # noqa: RUF012 - as in the base class
        first: [(tag, form) for tag, form in found if tag not in (INT, FLOAT, BOOL)]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def _whole(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = node.value.replace("_", "")
    return int(text, 0 if text.lstrip("-+")[:2] in ("0b", "0o", "0x") else 10)


for tag, form, firsts in (  # of two that fit, the first
    (INT, r"^[-+]?(0b[01_]+|0o[0-7_]+|0x[\da-fA-F_]+|\d[\d_]*)$", "-+0123456789"),
    (
        FLOAT,
        r"^([-+]?((\d[\d_]*(\.[\d_]*)?|\.[\d_]+)([eE][-+]?\d+)?|\.(inf|Inf|INF))|\.(nan|NaN|NAN))$",
        "-+.0123456789",
    ),
    (BOOL, r"^(true|True|TRUE|false|False|FALSE)$", "tTfF"),
):
    _Loader.add_implicit_resolver(tag, re.compile(form), list(firsts))
_Loader.add_constructor(INT, _whole)


def read_yaml(text: str) -> Any:
    """Read YAML that DVC may have written.

    Raises:
        yaml.YAMLError, ValueError: it is broken.
    """
    return yaml.load(text, Loader=_Loader)  # noqa: S506 - a safe one


def load_params(path: Path = Path("params.yaml")) -> Params:
    """Read and check the parameters.

    Raises:
        CarsegError: the file cannot be read or is no YAML; else one line for each unknown key,
            wrong type or value out of range.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise CarsegError(f"{path}: {error.strerror}; get it back: git checkout {path}") from error
    except IsADirectoryError as error:
        raise CarsegError(f"{path}: {IS_FOLDER}") from error
    except OSError as error:
        raise CarsegError(f"{path}: {error.strerror}; check its permissions") from error
    except UnicodeDecodeError as error:
        raise CarsegError(f"{path}: not valid YAML: {error}; correct that line") from error
    return parse_params(text, path)


def parse_params(text: str, path: Path = Path("params.yaml")) -> Params:
    """Check the parameters in a text, which is told of as that of the file at `path`.

    Raises:
        CarsegError: it is no YAML; else one line for each unknown key, wrong type or value out of
            range.
    """
    try:
        content = read_yaml(text)
    except (yaml.YAMLError, ValueError) as error:
        why = " ".join(str(error).split())
        raise CarsegError(f"{path}: not valid YAML: {why}; correct that line") from error
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise CarsegError(f"{path}: expected lines of the form 'name: value'")
    try:
        return Params.model_validate(content)
    except ValidationError as error:
        raise CarsegError("\n".join(f"{path}: {line}" for line in _explain(error))) from error


def _explain(error: ValidationError) -> Iterator[str]:
    for fault in error.errors():
        *sections, name = (str(part) for part in fault["loc"])
        model: type[BaseModel] = Split if sections == ["split"] else Params
        key = ".".join([*sections, name])
        if fault["type"] in ("extra_forbidden", "invalid_key"):
            yield f"{key} is not a parameter{_suggest(key)}"
        else:
            allowed = model.model_fields[name].description
            yield f"{key} is {_show(fault['input'])}; it must be {allowed}"


def _suggest(key: str) -> str:
    known = [name for name in Params.model_fields if name != "split"]
    known += [f"split.{name}" for name in Split.model_fields]
    # A key put into, or left out of, its section is a near miss too.
    known_as = {name.rsplit(".", 1)[-1]: name for name in known} | {name: name for name in known}
    short = key.rsplit(".", 1)[-1]
    near = [
        known_as[match]
        for wanted in (short, key)
        for match in difflib.get_close_matches(wanted, known_as, 1, cutoff=0.7)
    ]
    return f"; did you mean {near[0]}?" if near else f"; known are {', '.join(known)}"


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
