"""Which photo belongs to which mask, and what is said about those without."""

from pathlib import Path

import pytest

from carseg.errors import CarsegError
from carseg.pairs import LONGEST, Pair, evenly, files_in, find_pairs


def make(folder: Path, *names: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


def faults(images: Path, masks: Path) -> list[str]:
    with pytest.raises(CarsegError) as caught:
        find_pairs(images, masks)
    return str(caught.value).splitlines()


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


IMAGE, MASK = Path("Image"), Path("Mask")


def test_pairs_are_matched_by_name_and_sorted() -> None:
    make(IMAGE, "b.jpg", "a.jpeg", "C.JPG", "d.JpEg", "two.dots.jpg", "машина.jpg")
    make(MASK, "a.png", "b.PNG", "C.png", "d.png", "two.dots.png", "машина.png")
    pairs = find_pairs(IMAGE, MASK)
    assert [pair.name for pair in pairs] == ["C", "a", "b", "d", "two.dots", "машина"]
    assert pairs[0] == Pair("Image/C.JPG", "Mask/C.png")
    assert all(pair.photo.stem == pair.mask.stem for pair in pairs)


def test_readme_and_hidden_files_are_no_pairs() -> None:
    make(IMAGE, "a.jpg", "README.md", ".DS_Store", ".gitignore", "._a.jpg")
    make(MASK, "a.png", "README.md", ".hidden.png")
    assert find_pairs(IMAGE, MASK) == [Pair("Image/a.jpg", "Mask/a.png")]


def test_what_systems_put_into_folders_is_no_pair() -> None:
    make(IMAGE, "a.jpg", "Thumbs.db", "desktop.ini")
    make(MASK, "a.png", "Thumbs.db")
    assert find_pairs(IMAGE, MASK) == [Pair("Image/a.jpg", "Mask/a.png")]


def test_accents_written_in_two_ways_are_one_name() -> None:
    make(IMAGE, "caf\u00e9.jpg")
    make(MASK, "cafe\u0301.png")
    assert find_pairs(IMAGE, MASK) == [Pair("Image/caf\u00e9.jpg", "Mask/cafe\u0301.png")]


def test_names_may_be_as_long_as_dvc_can_name_overlays_after_them() -> None:
    fits = "я" * (LONGEST // 2)
    make(IMAGE, f"{fits}.jpg")
    make(MASK, f"{fits}.png")
    assert [pair.name for pair in find_pairs(IMAGE, MASK)] == [fits]
    commit = "0" * 40  # DVC puts a revision before it
    make(Path("static"), *(f"{commit}_plots_overlays_{fits}_{net}.jpg" for net in ("bce", "dice")))
    make(IMAGE, f"{fits}1.jpeg")
    make(MASK, f"{fits}1.png")
    assert faults(IMAGE, MASK) == [
        f"{folder}/{fits}1.{end}: its name has 191 bytes, 190 are the most; rename it"
        for folder, end in (("Image", "jpeg"), ("Mask", "png"))
    ]


def test_a_photo_without_mask_says_which_file_is_missing() -> None:
    make(IMAGE, "a.jpg", "b.jpg")
    make(MASK, "a.png")
    assert faults(IMAGE, MASK) == [
        "Image/b.jpg: has no mask; add Mask/b.png or remove the photo"
    ]  # fmt: skip


def test_a_mask_without_photo_says_which_file_is_missing() -> None:
    make(IMAGE, "a.jpg")
    make(MASK, "a.png", "b.png")
    assert faults(IMAGE, MASK) == [
        "Mask/b.png: has no photo; add Image/b.jpg or remove the mask"
    ]  # fmt: skip


def test_a_mask_with_something_added_to_its_name_is_to_be_renamed() -> None:
    make(IMAGE, "1.jpg", "10.jpg", "1-2.jpg", "2.jpg")
    make(MASK, "1_mask.png", "10_mask.png", "1-2-mask.png", "3_mask.png")
    assert faults(IMAGE, MASK) == [
        "Mask/1-2-mask.png: has no photo; rename it to Mask/1-2.png, if it is that",
        "Mask/10_mask.png: has no photo; rename it to Mask/10.png, if it is that",
        "Mask/1_mask.png: has no photo; rename it to Mask/1.png, if it is that",
        "Mask/3_mask.png: has no photo; add Image/3_mask.jpg or remove the mask",
        "Image/2.jpg: has no mask; add Mask/2.png or remove the photo",
    ]


def test_a_mask_in_other_case_is_to_be_renamed() -> None:
    make(IMAGE, "IMG_1.JPG", "IMG_2.JPG")
    make(MASK, "img_1.PNG", "img_2_Mask.png")
    assert faults(IMAGE, MASK) == [
        "Mask/img_1.PNG: has no photo; rename it to Mask/IMG_1.png, if it is that",
        "Mask/img_2_Mask.png: has no photo; rename it to Mask/IMG_2.png, if it is that",
    ]


def test_of_two_names_that_differ_in_case_each_mask_gets_its_own() -> None:
    make(IMAGE, "Car.jpg", "car.jpg")
    make(MASK, "Car_mask.png", "car_mask.png")
    assert faults(IMAGE, MASK) == [
        f"Mask/{name}_mask.png: has no photo; rename it to Mask/{name}.png, if it is that"
        for name in ("Car", "car")
    ]


def test_names_that_punctuation_sorts_otherwise_are_paired() -> None:
    make(IMAGE, "car.jpg", "car-1.jpg", "a.jpg", "a b.JPG", "①.jpg", "1.jpg")
    make(MASK, "car.png", "car-1.png", "a.png", "a b.PNG", "①.png", "1.png")
    names = [pair.name for pair in find_pairs(IMAGE, MASK)]
    assert names == ["1", "a", "a b", "car", "car-1", "①"]


@pytest.mark.parametrize("other", ["a.jpeg", "a.JPEG"])
def test_two_photos_of_one_name_are_refused(other: str) -> None:
    make(IMAGE, "a.jpg", other)
    make(MASK, "a.png")
    (line,) = faults(IMAGE, MASK)
    assert "shares its name with" in line
    assert all(f"Image/{name}" in line for name in ("a.jpg", other))


@pytest.mark.parametrize(
    ("folder", "name", "ending"),
    [(IMAGE, "notes.txt", ".jpg"), (IMAGE, "a.png", ".jpg"), (IMAGE, "a", ".jpg"),
     (MASK, "a.jpg", ".png"), (MASK, "a.tiff", ".png")],
)  # fmt: skip
def test_a_file_of_another_kind_is_named(folder: Path, name: str, ending: str) -> None:
    make(IMAGE, "a.jpg")
    make(MASK, "a.png")
    make(folder, name)
    assert faults(IMAGE, MASK) == [
        f"{folder / name}: is not a {ending} file; convert it (docs/photos.md) or move it away"
    ]


def test_a_folder_among_the_photos_is_named() -> None:
    make(IMAGE, "a.jpg")
    make(MASK, "a.png")
    (IMAGE / "more.jpg").mkdir()
    (line,) = faults(IMAGE, MASK)
    assert line.startswith("Image/more.jpg: is a folder; move what belongs to it into Image")


def test_all_faults_are_told_at_once() -> None:
    make(IMAGE, "a.jpg", "a.jpeg", "b.jpg", "x.gif")
    make(MASK, "a.png", "c.png", "y.bmp")
    assert sorted(line.split(": ")[0] for line in faults(IMAGE, MASK)) == [
        "Image/a.jpg", "Image/b.jpg", "Image/x.gif", "Mask/c.png", "Mask/y.bmp",
    ]  # fmt: skip


@pytest.mark.parametrize("made", [True, False])
def test_without_any_file_the_remedy_is_told(made: bool) -> None:
    if made:
        make(IMAGE, "README.md")
        make(MASK)
    assert faults(IMAGE, MASK) == [
        "Image: has no photos; put .jpg files there and their masks in Mask"
    ]


@pytest.mark.parametrize(
    ("count", "most", "expected"),
    [(3, 5, [0, 1, 2]), (3, 3, [0, 1, 2]), (6, 3, [0, 2, 4]), (7, 3, [0, 2, 4]), (70, 2, [0, 35])],
)
def test_some_are_picked_from_everywhere(count: int, most: int, expected: list[int]) -> None:
    assert evenly(range(count), most) == expected


def test_files_are_listed_in_one_order() -> None:
    make(IMAGE, "b", "a", "C", "1", "README.md", ".x")
    assert [path.name for path in files_in(IMAGE)] == ["1", "C", "a", "b"]
