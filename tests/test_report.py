"""The page to look at: complete, right, and without anything from elsewhere."""

import base64
import io
import json
import re
import shutil
import subprocess
import weakref
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from conftest import write_manifests
from dvc_render.html import HTML
from PIL import Image

from carseg import report
from carseg.files import read_csv
from carseg.pairs import read_manifest
from carseg.params import Params
from carseg.report import (
    BOTTOM,
    HEIGHT,
    LEFT,
    LONG_SIDE,
    RIGHT,
    TOP,
    WIDTH,
    chart,
    data_uri,
    describe,
    show,
    write_report,
)
from carseg.spread import Spread

CURVE = [
    {"epoch": str(i), "train_iou": str(train), "val_iou": str(val)}
    for i, (train, val) in enumerate([(0.5, 0.6), (0.7, 0.9), (0.8, 0.8)])
]
IOU = Spread(mean=0.8768, std=0.1, low=0.812, high=0.934, worst=0.7123)
SCORES = {
    net: {view: dict.fromkeys(("iou", "dice", "boundary_iou", "hd95"), IOU) for view in views}
    for net, views in (
        ("untrained", ("upright", "d4")),
        ("bce", ("upright",)),
        ("dice", ("upright",)),
    )
}


class Page(HTMLParser):
    """Collects tags, checks that they are closed, and what is read."""

    VOID = ("meta", "input", "img", "br", "line", "circle", "polyline")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data + " "

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Page:
    monkeypatch.chdir(tmp_path)
    write_manifests(tmp_path, train=3, val=2)
    pairs = {part: read_manifest(Path(f"split/{part}.csv")) for part in ("train", "val")}
    overlay = io.BytesIO()
    Image.new("RGB", (9, 9)).save(overlay, "JPEG")
    shown = [
        show(pair, overlay.getvalue(), np.full((60, 88), 0.5, np.float32), 0.61 + i / 10, 0.5)
        for i, pair in enumerate(pairs["val"])
    ]
    write_report(
        Path("report.html"), scores=SCORES, curves={"bce": CURVE, "dice": CURVE}, shown=shown,
        pairs=pairs, params=Params(init="<b>.pth"), machine={"processor": "abacus", "gpu": None},
    )  # fmt: skip
    return Page(Path("report.html").read_text(encoding="utf-8"))


def test_the_page_holds_scores_curves_photos_data_and_origin(page: Page) -> None:
    text = " ".join(page.text.split())
    for words in (
        "3 photos trained, 2 validate", "0.877 IoU, task 2, Dice loss", "0.812 to 0.934",
        "untrained, d4", "0.7123", "kept, epoch 1 . There training is 0.200 below validation",
        "3: IoU 0.610 (untrained 0.500)",
        "4: IoU 0.710", "88×60 (3), 60×88 (2)", "3 landscape or square, 2 portrait",
        "val_size 5, fold null", "processor abacus", "<b>.pth", "learning_rate 0.0001",
    ):  # fmt: skip
        assert words in text, words
    assert "gpu" not in text
    for name in ("workers", "launcher"):
        assert name not in text, "it changes nothing, so it must not change the page"


def test_nothing_comes_from_elsewhere_and_no_code_runs(page: Page) -> None:
    sources = [tag["src"] or "" for tag in page.all("img")]
    assert len(sources) == 2 * 4
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert not page.all("script")
    assert not page.all("link")
    whole = Path("report.html").read_text()
    assert not re.search(r"https?:|url\(|@import|javascript:|\son\w+=", whole)


def test_pictures_and_choices_are_named_for_those_who_do_not_see_them(page: Page) -> None:
    assert all(tag.get("alt") for tag in page.all("img"))
    choices = page.all("input")
    assert [choice["class"] for choice in choices] == ["p", "t", "f", "q"] * 2
    assert len({choice["name"] for choice in choices}) == 2
    assert len(page.all("label")) == len(choices), "each lies in a label of its own"
    assert [choice["class"] for choice in choices if "checked" in choice] == ["f", "f"]
    titles = {tag["id"] for tag in page.all("title") if "id" in tag}
    assert titles == {tag["aria-labelledby"] for tag in page.all("svg")}
    (html,) = page.all("html")
    assert html["lang"] == "en"


CLICKED = """<script>
const seen = [];
for (const input of document.querySelectorAll("fieldset:first-child input")) {
  input.parentElement.click();
  const shown = [...document.querySelectorAll("fieldset:first-child img")]
    .filter(image => getComputedStyle(image).display != "none" && image.naturalWidth > 0);
  seen.push(input.className + ">" + shown.map(image => image.className).join("+"));
}
const wide = document.documentElement.scrollWidth > innerWidth;
document.title = seen.join(" ") + (wide ? " too wide" : "");
</script>"""
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


def fetched(log: Path) -> set[str]:
    """What a page asked for, in Chromium's log; what Chromium wants for itself has no origin."""
    asked = [event.get("params", {}) for event in json.loads(log.read_text())["events"]]
    own = "not an origin"
    return {p["url"] for p in asked if "url" in p and p.get("initiator", own) != own}


def browse(page: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Load a page in Chromium, which prints what its scripts have made of it."""
    command = [
        *(str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"),
        *("--disable-background-networking", "--disable-component-update"),
        *("--enable-logging=stderr", f"--user-data-dir={page.absolute().parent / 'chromium'}"),
        *(*options, page.absolute().as_uri()),
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_what_a_page_asks_for_is_noticed(tmp_path: Path) -> None:
    log = {"events": [{"params": {"url": "https://a.example/x.js", "initiator": "null"}}, {}]}
    (tmp_path / "net.json").write_text(json.dumps(log))
    assert fetched(tmp_path / "net.json") == {"https://a.example/x.js"}


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
@pytest.mark.parametrize("width", [390, 1200])
def test_in_a_browser_each_choice_shows_its_picture_and_nothing_is_fetched(
    width: int, page: Page
) -> None:
    text = Path("report.html").read_text(encoding="utf-8")
    Path("clicked.html").write_text(text.replace("</main>", f"</main>{CLICKED}"), encoding="utf-8")
    done = browse(Path("clicked.html"), "--log-net-log=net.json", f"--window-size={width},900")
    assert "<title>p&gt;p t&gt;t f&gt;f q&gt;q</title>" in done.stdout, done.stderr[-2000:]
    assert "CONSOLE" not in done.stderr
    assert fetched(Path("net.json")) == set()


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
def test_the_page_of_dvc_plots_shows_overlays_whatever_their_names(tmp_path: Path) -> None:
    (tmp_path / "static").mkdir()
    images = []
    for i, name in enumerate(["Auto #1.jpg", "50%20 off?.jpg", "ümläut & co.jpg", "plain.jpg"]):
        Image.new("RGB", (i + 1, 1)).save(tmp_path / "static" / name)
        images.append(f'<img src="{Path("static") / name}">')
    report = HTML(Path(__file__).parents[1].joinpath(".dvc/plots.html").read_text("utf-8"))
    told = "[...document.images].map(image => image.naturalWidth).join()"
    script = f"<script>addEventListener('load', () => document.title = {told})</script>"
    report.elements = [*images, script]
    (tmp_path / "index.html").write_text(report.embed(), encoding="utf-8")
    done = browse(tmp_path / "index.html")
    assert "<title>1,2,3,4</title>" in done.stdout, done.stderr[-2000:]


def test_the_same_data_have_one_digest_however_they_are_split(page: Page) -> None:
    pairs = read_manifest(Path("split/train.csv"))
    before = describe(pairs)
    assert describe(pairs[::-1]) == before
    pairs[0].mask.write_bytes(pairs[2].mask.read_bytes())
    assert describe(pairs).digest != before.digest


def test_a_chart_is_drawn_to_scale() -> None:
    found = chart("bce", CURVE, "best")
    assert (found.kept, round(found.gap, 6)) == (1, -0.2)
    assert found.kept_at == (LEFT + WIDTH - RIGHT) / 2
    assert [label for _, label in found.ticks] == ["0.50", "0.60", "0.70", "0.80", "0.90", "1.00"]
    assert found.ticks[0][0] == HEIGHT - BOTTOM
    assert found.ticks[-1][0] == TOP
    points = [point.split(",") for point in found.lines[0].points.split()]
    assert [float(x) for x, _ in points] == [LEFT, (LEFT + WIDTH - RIGHT) / 2, WIDTH - RIGHT]
    assert float(points[0][1]) == HEIGHT - BOTTOM
    assert chart("bce", CURVE, "last").kept == 2


def test_a_chart_of_the_start_alone_is_no_division_by_zero() -> None:
    assert chart("bce", CURVE[:1], "best").kept == 0


def test_pictures_are_embedded_small() -> None:
    large = Image.new("L", (2000, 1000))
    large.info["comment"] = b"where it was taken"
    content = base64.b64decode(data_uri(large).split(",")[1])
    assert b"where it was taken" not in content
    with Image.open(io.BytesIO(content)) as picture:
        assert picture.size == (LONG_SIDE, LONG_SIDE // 2)


def test_large_masks_are_not_all_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[weakref.ref[object]] = []

    def read(path: Path) -> object:
        assert sum(ref() is not None for ref in kept) <= 1, "each is as large as its photo"
        truth = np.ones((4, 5), np.bool_)
        kept.append(weakref.ref(truth))
        return truth

    monkeypatch.setattr(report, "read_truth", read)
    write_manifests(tmp_path, train=6, val=0)
    monkeypatch.chdir(tmp_path)
    pairs = read_manifest(Path("split/train.csv"))
    assert describe(pairs).sizes == [("5×4", 6)]
    assert len(kept) == 6


def test_the_shares_of_car_are_those_of_the_masks(tmp_path: Path, page: Page) -> None:
    pairs = read_manifest(Path("split/train.csv"))
    shares = sorted(np.asarray(Image.open(pair.mask)).astype(bool).mean() for pair in pairs)
    assert describe(pairs).share == pytest.approx(tuple(shares))
    assert read_csv(Path("split/train.csv"))[0]["photo"] == str(pairs[0].photo)
