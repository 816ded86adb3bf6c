"""Data and weights on an S3 server and on an SSH server: another machine takes them from there."""

import getpass
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import Run
from project import Project

pytestmark = pytest.mark.slow

SSHD = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/usr/bin")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def served(*command: str, port: int) -> Iterator[None]:
    """Run a server that has answered until the block has ended."""
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(300):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert server.poll() is None, f"{command[0]} has ended with {server.returncode}"
            time.sleep(0.1)
        else:
            pytest.fail(f"{command[0]} does not answer")
        yield
    finally:
        server.terminate()
        server.wait(timeout=30)


@pytest.fixture(scope="module")
def finished(ran: Run, tmp_path_factory: pytest.TempPathFactory) -> Project:
    return ran.project.copy(
        tmp_path_factory.mktemp("remotes") / "project",
        AWS_ACCESS_KEY_ID="anybody",
        AWS_SECRET_ACCESS_KEY="anything",
        AWS_DEFAULT_REGION="us-east-1",
    )


def round_trip(project: Project, folder: Path, url: str, **settings: str) -> None:
    """Push, lose everything but git's part, take it from the remote elsewhere: nothing to do."""
    project.dvc("remote", "add", "--default", "--force", "store", url)
    for name, value in settings.items():
        project.dvc("remote", "modify", "store", name, value)
    project.commit(f"keep data at {url}")
    project.dvc("push")
    weights = project.bytes_of("u2net_segmentation.pth", "u2net_segmentation_dice_loss.pth")
    project.git("clone", "--quiet", str(project.folder), str(folder))
    there = Project.at(folder, **project.extra)
    assert not (folder / "u2net_segmentation.pth").exists()
    there.dvc("pull")
    assert there.bytes_of(*weights) == weights
    # The user's own folders are never written by DVC.
    for name in ("Image", "Mask"):
        shutil.copytree(folder / "dataset" / name, folder / name, dirs_exist_ok=True)
    assert "Data and pipelines are up to date." in there.dvc("repro")
    assert there.git("status", "--porcelain") == ""


def test_s3(finished: Project, tmp_path: Path) -> None:
    port = free_port()
    endpoint = f"http://127.0.0.1:{port}"
    make_bucket = (
        "import sys, boto3\n"
        "boto3.client('s3', endpoint_url=sys.argv[1]).create_bucket(Bucket='photos')"
    )
    with served(sys.executable, "-m", "moto.server", "-p", str(port), port=port):
        finished.run(sys.executable, "-c", make_bucket, endpoint)
        round_trip(finished, tmp_path / "there", "s3://photos/carseg", endpointurl=endpoint)


@pytest.mark.skipif(SSHD is None, reason="no sshd on this machine")
def test_ssh(finished: Project, tmp_path: Path) -> None:
    assert SSHD is not None
    port = free_port()
    for name in ("host", "user"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / name], check=True
        )
    shutil.copy(tmp_path / "user.pub", tmp_path / "authorized")
    (tmp_path / "store").mkdir()
    (tmp_path / "config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {tmp_path}/host\n"
        f"AuthorizedKeysFile {tmp_path}/authorized\nStrictModes no\nUsePAM no\n"
        f"PermitRootLogin yes\nPidFile none\nSubsystem sftp internal-sftp\n"
    )
    if Path("/run").exists() and getpass.getuser() == "root":
        Path("/run/sshd").mkdir(exist_ok=True)  # sshd wants it where root starts it
    with served(SSHD, "-D", "-f", str(tmp_path / "config"), port=port):
        round_trip(
            finished,
            tmp_path / "there",
            f"ssh://{getpass.getuser()}@127.0.0.1:{port}{tmp_path}/store",
            keyfile=str(tmp_path / "user"),
        )
