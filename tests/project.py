"""A repository of the project's files with tiny settings, and real DVC in it."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from subprocess import Popen
from typing import IO, ClassVar

import yaml

from carseg.params import Params
from carseg.u2net import Level, Variant

ROOT = Path(__file__).parent.parent
# Python takes no pattern for them.
MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for folder in ("carseg", "stages")
    for path in sorted((ROOT / folder).rglob("*.py"))
]
TINY = {
    "model": "u2netp",
    "init": "scratch",
    "image_size": 64,
    "epochs": 2,
    "batch_size": 3,
    "learning_rate": 0.001,
    "precision": "float32",
    "split": {"val_size": 1, "fold": None},
}
USER = ("Image", "Mask", "Weights")
# U²-Net† with half of its levels, a tenth of its channels and of its time.
SHALLOW = Variant(
    encoder=(Level(3, 4, 8), Level(3, 4, 8), Level(2, 4, 8, dilated=True)),
    decoder=(Level(3, 4, 8), Level(3, 4, 8)),
)


def heed_interruptions() -> None:
    """Let a process be interrupted, also where these tests run in the background and ignore it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Project:
    """A repository of its own with the project's files and one commit.

    Attributes:
        started: processes in the background, of all projects, which a test's end ends.
    """

    started: ClassVar[list[Popen[str]]] = []

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder = folder
        self.extra = environment
        folder.mkdir()
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT, check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
        for name in filter(None, listed.split("\0")):
            # Results of the user's own cross-validation are none of the project's files.
            if (ROOT / name).is_file() and not name.startswith("crossval/"):
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes((ROOT / name).read_bytes())
        for name in ("dvc.lock", "metrics.json"):
            (folder / name).unlink(missing_ok=True)
        self.git("init", "--quiet", "--initial-branch=main")
        # In a file, too, as DVC does not read git's environment.
        self.git("config", "user.name", "Tester")
        self.git("config", "user.email", "tester@example.com")
        # Whatever the settings of the project at hand are: they are the user's to change.
        (folder / "params.yaml").write_text(yaml.safe_dump(Params().model_dump()))
        self.set(TINY)
        self.commit("start")

    @property
    def environment(self) -> dict[str, str]:
        # Nor are the user's settings of git, nor the repository that it may be at work in.
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
        return {
            **inherited,
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_CONFIG_SYSTEM": os.devnull,
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "GIT_CONFIG_COUNT": "2",
            **{"GIT_CONFIG_KEY_0": "user.name", "GIT_CONFIG_VALUE_0": "Tester"},
            **{"GIT_CONFIG_KEY_1": "user.email", "GIT_CONFIG_VALUE_1": "tester@example.com"},
            "COLUMNS": "400",
            "PYTHONWARNINGS": ",".join(f"error:::{name}" for name in ["__main__", *MODULES]),
            # As for most users: Python writes its bytecode beside the code.
            "PYTHONDONTWRITEBYTECODE": "",
            **self.extra,
        }

    @classmethod
    def at(cls, folder: Path, **environment: str) -> "Project":
        """Take a repository that exists."""
        project = object.__new__(cls)
        project.folder, project.extra = folder, environment
        return project

    def copy(self, folder: Path, **environment: str) -> "Project":
        """Give the same repository elsewhere, with all that has been made in it."""
        shutil.copytree(self.folder, folder, symlinks=True)
        return Project.at(folder, **environment)

    def start(self, *command: str, output: int | IO[str] = subprocess.DEVNULL) -> Popen[str]:
        """Run in the background, in a process group of its own that can be killed whole."""
        process = Popen(
            command, cwd=self.folder, env=self.environment, text=True, stdout=output,
            stderr=output, start_new_session=True, preexec_fn=heed_interruptions,
        )  # fmt: skip
        self.started.append(process)
        return process

    def run(self, *command: str, expect: int = 0) -> str:
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True,
            timeout=600,
        )  # fmt: skip
        assert done.returncode == expect, done.stdout + done.stderr
        return done.stdout + done.stderr

    def git(self, *arguments: str) -> str:
        return self.run("git", *arguments)

    def dvc(self, *arguments: str, expect: int = 0) -> str:
        return self.run(sys.executable, "-m", "dvc", *arguments, expect=expect)

    def carseg(self, *arguments: str) -> str:
        return self.run(sys.executable, "-m", "carseg", *arguments)

    def commit(self, message: str) -> None:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", message)

    def set(self, values: dict[str, object]) -> None:
        path = self.folder / "params.yaml"
        path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **values}))

    def make_shallow(self) -> None:
        """Let its small net be `SHALLOW`, where it is not the network that is tested; commit.

        Its last epoch is kept: of what it learns in two, nothing is better than its start.
        """
        with (self.folder / "carseg/u2net.py").open("a") as code:
            code.write(f'\n\nVARIANTS["u2netp"] = {SHALLOW!r}\n')
        self.set({"keep": "last"})
        self.commit("a smaller net")

    def save_every_epoch(self) -> None:
        """Let trainings write each epoch's state, however soon it comes after the one before."""
        code = self.folder / "carseg/checkpoint.py"
        whole = code.read_text()
        code.write_text(whole.replace("SHARE = 0.01 ", "SHARE = 1e9 "))
        assert code.read_text() != whole

    def bytes_of(self, *names: str) -> dict[str, bytes]:
        return {name: (self.folder / name).read_bytes() for name in names}

    def user_files(self) -> dict[str, str]:
        return {
            path.relative_to(self.folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for folder in USER
            for path in sorted((self.folder / folder).iterdir())
        }
