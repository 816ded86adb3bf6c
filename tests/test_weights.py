"""Weights files: what is read is what was published, and nothing else is let in."""

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import Trap, noise, uneven
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from carseg import weights
from carseg.batch_norm import calibrate_batch_norm
from carseg.device import Device
from carseg.errors import CarsegError
from carseg.u2net import U2Net

State = dict[str, Tensor]
CPU = Device("float32", "cpu")


@pytest.fixture(scope="module")
def lite() -> U2Net:
    return uneven(U2Net("u2netp"))


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    folder = tmp_path / "empty"
    folder.mkdir()
    return folder


@pytest.fixture(scope="module")
def photo() -> Tensor:
    """One of the only size that the official file takes; smooth, so that outputs differ."""
    coarse = noise(1, 3, 12, 12)
    return torch.nn.functional.interpolate(coarse, size=(320, 320), mode="bicubic")


@pytest.fixture(scope="module")
def published(official: Path, photo: Tensor) -> NDArray[np.float32]:
    """What ONNX Runtime computes with the official file: the fused output, then sides 1 to 6."""
    session = onnxruntime.InferenceSession(
        official / "u2netp.onnx", providers=["CPUExecutionProvider"]
    )
    outputs = session.run(None, {session.get_inputs()[0].name: photo.numpy()})
    return np.concatenate(outputs[:7], axis=1)


def hollow(variant: str) -> State:
    """A state dict with the right keys and shapes that takes hardly a byte."""
    with torch.device("meta"):
        net = U2Net(variant)
    return {
        key: torch.zeros((), dtype=value.dtype).expand(value.shape)
        for key, value in net.state_dict().items()
    }


def without_counters(state: State) -> State:
    return {key: value for key, value in state.items() if "num_batches_tracked" not in key}


def probabilities(net: U2Net, photos: Tensor) -> NDArray[np.float32]:
    net.eval()
    with torch.inference_mode():
        return np.asarray(torch.sigmoid(net(photos)))


def assert_same(one: State, other: State) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("variant", ["u2netp", "u2net"])
def test_start_computes_what_the_official_file_does(
    variant: str, official: Path, photo: Tensor, published: NDArray[np.float32]
) -> None:
    net = weights.start(variant, official, seed=1)
    assert published.std(axis=(0, 2, 3)).min() > 1e-2, "flat outputs would prove nothing"
    np.testing.assert_allclose(probabilities(net, photo), published, rtol=0, atol=1e-4)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_in_the_authors_format_loads(
    zipped: bool, lite: U2Net, tmp_path: Path
) -> None:
    # Theirs was saved by PyTorch 0.4: another container, and no counters of batches.
    torch.save(
        without_counters(lite.state_dict()),
        tmp_path / "u2netp.pth",
        _use_new_zipfile_serialization=zipped,
    )
    assert_same(weights.start("u2netp", tmp_path, seed=0).state_dict(), lite.state_dict())
    loaded = weights.load("u2netp", tmp_path / "u2netp.pth")
    assert_same(loaded.state_dict(), lite.state_dict())


def test_without_a_file_the_seed_decides_on_all_weights(empty: Path) -> None:
    one, again, other = (weights.start("u2netp", empty, seed).state_dict() for seed in (1, 1, 2))
    assert_same(one, again)
    assert not torch.equal(one["outconv.weight"], other["outconv.weight"])
    assert not torch.equal(
        one["stage1.rebnconvin.conv_s1.weight"], other["stage1.rebnconvin.conv_s1.weight"]
    )


def test_the_seed_decides_on_the_added_channels(lite: U2Net, tmp_path: Path) -> None:
    weights.save(lite, tmp_path / "u2netp.pth")
    key, small = "stage3.rebnconv2.conv_s1.weight", 16
    one, again, other = (weights.start("u2net", tmp_path, s).state_dict()[key] for s in (1, 1, 2))
    assert torch.equal(one, again)
    assert torch.equal(one[:small], other[:small])
    assert not torch.equal(one[small:], other[small:])


def test_saved_weights_are_the_same_bytes_under_every_name(lite: U2Net, tmp_path: Path) -> None:
    weights.save(lite, tmp_path / "one.pth")
    weights.save(lite, tmp_path / "a longer name.pth")
    last = U2Net("u2netp").to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    last.load_state_dict(lite.state_dict())
    weights.save(last, tmp_path / "last.pth")
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


def test_saved_weights_are_a_plain_state_dict(lite: U2Net, tmp_path: Path) -> None:
    weights.save(lite, tmp_path / "net.pth")
    state = torch.load(tmp_path / "net.pth", weights_only=True)
    assert_same(state, dict(lite.state_dict()))
    assert_same(weights.load("u2netp", tmp_path / "net.pth").state_dict(), state)


def test_code_in_a_checkpoint_is_refused_and_not_run(lite: U2Net, tmp_path: Path) -> None:
    path, marker = tmp_path / "trap.pth", tmp_path / "marker"
    torch.save({**lite.state_dict(), "trap": Trap(marker)}, path)
    with pytest.raises(CarsegError, match=r"trap\.pth: is not a whole PyTorch checkpoint"):
        weights.start("u2netp", tmp_path, seed=0)
    with pytest.raises(CarsegError, match=r"trap\.pth"):
        weights.load("u2netp", path)
    assert not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.exists(), "the trap is none, so it proved nothing"


def truncated(path: Path, state: State) -> None:
    torch.save(state, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def text(path: Path, _: State) -> None:
    path.write_text("<!DOCTYPE html><title>404</title>")


def words(path: Path, _: State) -> None:
    # Its first letter is an opcode of pickle, which then takes something from an empty stack.
    path.write_text("Quota exceeded")


def truncated_in_the_old_format(path: Path, state: State) -> None:
    torch.save(state, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:300])


def nothing(path: Path, _: State) -> None:
    path.touch()


def folder(path: Path, _: State) -> None:
    path.mkdir()


def other_network(path: Path, _: State) -> None:
    torch.save(nn.Linear(3, 2).state_dict(), path)


def one_key_less(path: Path, state: State) -> None:
    torch.save({key: value for key, value in state.items() if key != "side3.bias"}, path)


def one_more_key(path: Path, state: State) -> None:
    torch.save({**state, "head.weight": torch.zeros(3)}, path)


def other_shape(path: Path, state: State) -> None:
    torch.save({**state, "outconv.weight": torch.zeros(2, 6, 1, 1)}, path)


def wrapped(path: Path, state: State) -> None:
    torch.save({"state_dict": state, "epoch": 3}, path)


def a_list(path: Path, state: State) -> None:
    torch.save(list(state.values()), path)


def numbered(path: Path, state: State) -> None:
    torch.save(dict(enumerate(state.values())), path)


BROKEN = [
    truncated, truncated_in_the_old_format, text, words, nothing, folder, other_network,
    one_key_less, one_more_key, other_shape, wrapped, a_list, numbered,
]  # fmt: skip


@pytest.mark.parametrize("write", BROKEN)
def test_what_is_no_checkpoint_of_the_net_is_refused_by_name(
    write: Callable[[Path, State], None], lite: U2Net, tmp_path: Path
) -> None:
    path = tmp_path / "given.pth"
    write(path, dict(lite.state_dict()))
    with pytest.raises(CarsegError, match=r"given\.pth: ") as caught:
        weights.load("u2netp", path)
    assert len(str(caught.value).splitlines()) == 1


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(CarsegError, match=r"gone\.pth: there is no such file"):
        weights.load("u2netp", tmp_path / "gone.pth")


def test_loading_gives_the_weights_saved_and_draws_none(lite: U2Net, tmp_path: Path) -> None:
    weights.save(lite, tmp_path / "net.pth")
    before = torch.get_rng_state()
    loaded = weights.load("u2netp", tmp_path / "net.pth")
    assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    for key, value in loaded.state_dict().items():
        assert torch.equal(value, lite.state_dict()[key]), key


@pytest.mark.parametrize(("wanted", "given"), [("u2net", "u2netp"), ("u2netp", "u2net")])
def test_weights_of_an_earlier_run_must_fit_the_model(
    wanted: str, given: str, tmp_path: Path
) -> None:
    torch.save(hollow(given), tmp_path / "net.pth")
    with pytest.raises(CarsegError, match=rf"net\.pth: holds another .* model: {wanted};"):
        weights.load(wanted, tmp_path / "net.pth")


def test_full_weights_do_not_start_the_lite_net(tmp_path: Path) -> None:
    torch.save(hollow("u2net"), tmp_path / "full.pth")
    with pytest.raises(CarsegError, match=r"full\.pth: holds u2net, .* u2netp; set model: u2net$"):
        weights.start("u2netp", tmp_path, seed=0)


def small_onnx(path: Path, _: bytes) -> None:
    """A whole and valid ONNX file of one convolution."""
    kernel = numpy_helper.from_array(np.ones((1, 3, 3, 3), np.float32), "kernel")
    bias = numpy_helper.from_array(np.zeros(1, np.float32), "bias")
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, channels, None, None])
        for name, channels in (("x", 3), ("y", 1))
    ]
    node = helper.make_node("Conv", ["x", "kernel", "bias"], ["y"])
    onnx.save(
        helper.make_model(helper.make_graph([node], "g", ends[:1], ends[1:], [kernel, bias])), path
    )


def shuffled_onnx(path: Path, content: bytes) -> None:
    """The official net with its first and last but one convolutions swapped."""
    model = onnx.load_from_string(content)
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    one, other = convolutions[0].input[1:3], convolutions[-2].input[1:3]
    convolutions[0].input[1:3], convolutions[-2].input[1:3] = other, one
    onnx.save(model, path)


def without_weights(path: Path, content: bytes) -> None:
    model = onnx.load_from_string(content)
    del model.graph.initializer[5:]
    onnx.save(model, path)


def cut_onnx(path: Path, content: bytes) -> None:
    path.write_bytes(content[: len(content) // 2])


def unfolded_onnx(path: Path, content: bytes) -> None:
    """All convolutions of the net, and a batch norm behind one."""
    model = onnx.load_from_string(content)
    inputs = [model.graph.node[0].output[0], *("scale", "shift", "mean", "variance")]
    model.graph.node.append(helper.make_node("BatchNormalization", inputs, ["normalised"]))
    onnx.save(model, path)


def external_onnx(path: Path, content: bytes) -> None:
    model = onnx.load_from_string(content)
    onnx.save(model, path, save_as_external_data=True, location="beside.data", size_threshold=0)
    Path("beside.data").write_bytes(path.with_name("beside.data").read_bytes())  # here, too


def text_onnx(path: Path, _: bytes) -> None:
    path.write_text("not a model")


def empty_onnx(path: Path, _: bytes) -> None:
    path.touch()


@pytest.mark.parametrize(
    "write",
    [
        *(small_onnx, shuffled_onnx, without_weights, cut_onnx, unfolded_onnx, external_onnx),
        *(text_onnx, empty_onnx),
    ],
)
def test_what_is_no_onnx_file_of_the_net_is_refused_by_name(
    write: Callable[[Path, bytes], None],
    official: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    write(tmp_path / "given.onnx", (official / "u2netp.onnx").read_bytes())
    with pytest.raises(CarsegError, match=r"given\.onnx: ") as caught:
        weights.start("u2netp", tmp_path, seed=0)
    assert len(str(caught.value).splitlines()) == 1


def test_weights_that_several_gpus_trained_are_taken(lite: U2Net, tmp_path: Path) -> None:
    torch.save(torch.nn.DataParallel(lite).state_dict(), tmp_path / "net.pth")
    found = weights.load("u2netp", tmp_path / "net.pth").state_dict()
    assert all(torch.equal(value, found[key]) for key, value in lite.state_dict().items())


@pytest.mark.parametrize("name", ["a.pth", "a.onnx"])
def test_a_disk_that_fails_is_not_blamed_on_the_file(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error", name)

    monkeypatch.setattr(torch, "load", fail)
    monkeypatch.setattr(Path, "read_bytes", fail)
    (tmp_path / name).touch()
    with pytest.raises(OSError, match="Input/output error"):
        weights.start("u2netp", tmp_path, seed=0)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_a_net_approaches_another_in_every_weight_and_statistic(share: float) -> None:
    net, end = uneven(U2Net("u2netp"), seed=0), uneven(U2Net("u2netp"), seed=1)
    end.stage1.rebnconvin.bn_s1.num_batches_tracked += 7  # type: ignore[operator, union-attr]
    before, wanted = copy.deepcopy(net.state_dict()), copy.deepcopy(end.state_dict())
    weights.interpolate(net, end, share)
    for key, value in net.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, (1 - share) * before[key] + share * wanted[key])
        else:
            assert torch.equal(value, wanted[key]), key
    if share in (0, 1):
        counted = {key: x for key, x in wanted.items() if not x.is_floating_point()}
        assert_same(net.state_dict(), {**(before if share == 0 else wanted), **counted})
    assert_same(end.state_dict(), wanted)


def test_nets_on_two_devices_approach_each_other() -> None:
    """torch's meta device, which computes shapes alone, stands in for a GPU."""
    net = U2Net("u2netp").to("meta")
    weights.interpolate(net, U2Net("u2netp"), 0.5)
    assert {value.device.type for value in net.state_dict().values()} == {"meta"}


def test_identity_batch_norms_change_nothing() -> None:
    net = uneven(U2Net("u2netp"))
    net.load_state_dict(weights.identity_batch_norm(net), strict=False)
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            x = noise(2, layer.num_features, 3, 3)
            torch.testing.assert_close(layer(x), x, rtol=0, atol=1e-6)


def test_settling_changes_no_prediction_but_brings_training_close_to_it() -> None:
    net = uneven(U2Net("u2netp"), seed=5)
    photos = 0.7 * noise(4, 3, 64, 64) + 0.5

    def logits(training: bool) -> Tensor:
        state = {key: value.clone() for key, value in net.state_dict().items()}
        with torch.no_grad():
            result: Tensor = net.train(training)(photos)
        net.load_state_dict(state)  # training moves the statistics
        return result

    evaluated, trained = logits(False), logits(True)
    calibrate_batch_norm(net, list(photos.split(1)), CPU)
    evaluated_after, trained_after = logits(False), logits(True)
    torch.testing.assert_close(evaluated_after, evaluated, rtol=1e-3, atol=1e-4)
    distance = (trained_after - evaluated_after).abs().mean()
    assert distance < 0.02 * (trained - evaluated).abs().mean()


@pytest.mark.parametrize("variant", ["u2netp", "u2net"])
def test_three_published_layers_need_float32_settled_saved_and_loaded_too(
    variant: str, official: Path, tmp_path: Path
) -> None:
    def exact(net: U2Net) -> list[str]:
        return [name for name, module in net.named_modules() if getattr(module, "exact", False)]

    # The second reads what the first gives.
    three = ["stage2d.rebnconv2d", "stage2d.rebnconv1d", "stage1d.rebnconv2d"]
    net = weights.start(variant, official, seed=0)
    assert exact(net) == three
    assert [net.get_submodule(name).exact_output for name in three] == [True, False, False]
    calibrate_batch_norm(net, [noise(1, 3, 64, 64)], Device("float32"))
    weights.save(net, tmp_path / "net.pth")
    loaded = weights.load(variant, tmp_path / "net.pth")
    assert exact(loaded) == three
    assert [loaded.get_submodule(name).exact_output for name in three] == [True, False, False]


def test_settled_batch_norms_hold_the_moments_of_their_inputs() -> None:
    net = uneven(U2Net("u2netp"))
    # Of different spread each, so that averages over photos and over pixels part.
    photos = noise(3, 3, 32, 32) * torch.tensor([0.2, 1, 3]).view(3, 1, 1, 1)
    calibrate_batch_norm(net, list(photos.split(1)), CPU)
    first = net.get_submodule("stage1.rebnconvin")
    with torch.inference_mode():
        seen = first.get_submodule("conv_s1")(photos)
    layer = first.get_submodule("bn_s1")
    torch.testing.assert_close(layer.running_mean, seen.mean(dim=(0, 2, 3)))
    torch.testing.assert_close(layer.running_var, seen.var(dim=(0, 2, 3), correction=0))
