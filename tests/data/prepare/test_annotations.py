"""What is the same for all annotation tools: names of classes, splits, drawing, and what is written."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from emanet.data.prepare import annotations
from emanet.data.prepare.annotations import Annotated, Export, Region, import_annotations, split_in
from emanet.errors import InputError

SIZE = (6, 9)


@pytest.fixture
def given(tmp_path, monkeypatch):
    """given(export) is what every tool reads."""

    def set_export(export: Export) -> Export:
        class Module:
            @staticmethod
            def read(source, images):
                return export

        monkeypatch.setattr(annotations.importlib, "import_module", lambda *name: Module)
        return export

    return set_export


def export(folder, names="abcdefghij", *regions: Region, **more) -> Export:
    regions = regions or (Region("car", np.ones((1, 1), bool)),)
    items = []
    for name in names:
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", SIZE[::-1], (len(name), 9, 9)).save(path)
        items.append(Annotated(name, path, lambda size: iter(regions)))
    return Export(["car", "truck", "road"], items, **more)


def splits(out) -> dict[str, set[str]]:
    """Split -> names of its masks."""
    folders = [path for path in out.iterdir() if path.is_dir()]
    return {
        path.name: {
            mask.relative_to(path / "masks").with_suffix("").as_posix() for mask in (path / "masks").rglob("*.png")
        }
        for path in folders
    }


def one_mask(out) -> np.ndarray:
    return np.array(Image.open(next(out.rglob("masks/*.png"))))


def test_splits_are_stable_when_images_come_and_go(given, tmp_path):
    names = [f"image{i}" for i in range(200)]
    given(export(tmp_path / "in", names))
    import_annotations("coco", tmp_path, tmp_path / "all", split=(0.6, 0.3, 0.1))
    everything = splits(tmp_path / "all")
    assert all(abs(len(everything[split]) - share) < 25 for split, share in (("train", 120), ("val", 60), ("test", 20)))
    given(export(tmp_path / "in", names[50:150]))
    import_annotations("coco", tmp_path, tmp_path / "some", split=(0.6, 0.3, 0.1))
    for split, members in splits(tmp_path / "some").items():
        assert members <= everything[split]


def test_a_group_stays_in_one_split(given, tmp_path):
    names = [f"video{i}/frame{j}" for i in range(12) for j in range(5)]
    given(export(tmp_path / "in", names))
    import_annotations("coco", tmp_path, tmp_path / "out", group_by="^(video[0-9]+)/")
    found = splits(tmp_path / "out")
    groups = {split: {name.split("/")[0] for name in members} for split, members in found.items()}
    assert groups["train"].isdisjoint(groups["val"]) and len(groups["train"] | groups["val"]) == 12
    with pytest.raises(InputError, match="does not match the name 'video0/frame0'"):
        import_annotations("coco", tmp_path, tmp_path / "more", group_by="clip")
    with pytest.raises(InputError, match="finds only video: too few groups"):
        import_annotations("coco", tmp_path, tmp_path / "more", group_by="^video")
    with pytest.raises(InputError, match="not a regular expression"):
        import_annotations("coco", tmp_path, tmp_path / "more", group_by="(")


def test_with_few_images_no_split_is_empty(given, tmp_path, capsys):
    for count in (2, 3, 5):
        given(export(tmp_path / "in", [f"{i}" for i in range(count)]))
        import_annotations("coco", tmp_path, tmp_path / f"out{count}")
        assert all(splits(tmp_path / f"out{count}")[split] for split in ("train", "val"))
    given(export(tmp_path / "in", ["one", "two"]))
    with pytest.raises(InputError, match="one, two: too few images for 3 splits"):
        import_annotations("coco", tmp_path, tmp_path / "out", split=(0.5, 0.3, 0.2))
    made = given(export(tmp_path / "in", ["one"]))
    made.left_out["images"].append("two is not here")
    with pytest.raises(InputError, match=r"1 image is too few for a split .* \(images: two is not here\)"):
        import_annotations("coco", tmp_path, tmp_path / "out")


def test_the_tools_own_splits_are_kept_unless_shares_are_given(given, tmp_path, capsys):
    made = export(tmp_path / "in", "abcd")
    made.items = [
        Annotated(item.name, item.image, item.regions, split=split)
        for item, split in zip(made.items, ("Train", "valid", "", "holdout"), strict=True)
    ]
    given(made)
    import_annotations("coco", tmp_path, tmp_path / "own")
    assert splits(tmp_path / "own") == {"train": {"a", "c"}, "val": {"b"}, "holdout": {"d"}}
    import_annotations("coco", tmp_path, tmp_path / "drawn", split=(0.5, 0.5))
    assert "own splits (holdout, train, val) are not used" in capsys.readouterr().out
    made.items.pop(1)
    import_annotations("coco", tmp_path, tmp_path / "without")
    assert "none of them is val, on which training measures: --split draws one" in capsys.readouterr().out
    with pytest.raises(InputError, match="--group-by needs --split"):
        import_annotations("coco", tmp_path, tmp_path / "more", group_by="^.")


@pytest.mark.parametrize("shares", [(1,), (0.5, 0.6), (0.5, 0.2, 0.2, 0.1), (1.2, -0.2), (1, 0)])
def test_shares_that_are_none(given, tmp_path, shares):
    given(export(tmp_path / "in"))
    with pytest.raises(InputError, match=r"--split .*: give two or three shares"):
        import_annotations("coco", tmp_path, tmp_path / "out", split=shares)


def test_classes_are_merged_renamed_and_dropped(given, tmp_path, capsys):
    def column(label, left):
        return Region(label, np.ones((6, 2), bool), left)

    given(export(tmp_path / "in", "ab", column("car", 0), column("truck", 2), column("road", 4)))
    rename = ("car=vehicle", "truck=vehicle", "road=")
    import_annotations("coco", tmp_path, tmp_path / "out", rename=rename)
    assert "vehicle (from car, truck)" in (said := capsys.readouterr().out)
    assert re.search("background.* 0 .*55.56", said) and re.search("ignored.* 0 ", said)
    assert "unlabelled by --map: road" in said and one_mask(tmp_path / "out")[0].tolist() == [1, 1, 1, 1, 0, 0, 0, 0, 0]
    import_annotations("coco", tmp_path, tmp_path / "star", rename=("road=road", "*=vehicle"), unlabelled="ignore")
    assert one_mask(tmp_path / "star")[0].tolist() == [0, 0, 0, 0, 1, 1, 255, 255, 255]
    for entry, message in (
        ("lorry=a", "no class .lorry.; there are: car"),
        ("car", "is not OLD=NEW"),
        ("*=", "only one class"),
    ):
        with pytest.raises(InputError, match=message):
            import_annotations("coco", tmp_path, tmp_path / "more", rename=(entry,))


def test_regions_cover_earlier_ones_and_may_reach_beyond_the_image(given, tmp_path):
    square = np.ones((4, 4), bool)
    regions = Region("car", square, -2, -2), Region("road", square, 7, 4), Region(None, np.eye(2, dtype=bool))
    given(export(tmp_path / "in", "ab", *regions, Region("truck", square, 20, 20)))
    import_annotations("coco", tmp_path, tmp_path / "out")
    expected = np.zeros(SIZE, int)
    expected[:2, :2], expected[4:, 7:] = [[255, 1], [1, 255]], 3
    assert np.array_equal(one_mask(tmp_path / "out"), expected)


def test_a_background_of_the_tools_own_keeps_its_place_and_name(given, tmp_path):
    made = export(tmp_path / "in", "ab", Region("car", np.ones((1, 9), bool)), background="road")
    given(made)
    import_annotations("coco", tmp_path, tmp_path / "out", rename=("road=ground",))
    assert one_mask(tmp_path / "out")[:2, 0].tolist() == [0, 2]
    assert '"ground"' in (tmp_path / "out" / "dataset.json").read_text()


@pytest.mark.parametrize("name", ["Background", "_background_"])
def test_a_class_that_is_called_background_is_what_unlabelled_pixels_are(given, tmp_path, name):
    given(replace(export(tmp_path / "in", "ab", Region("car", np.ones((1, 9), bool))), classes=["car", name]))
    import_annotations("coco", tmp_path, tmp_path / "out")
    assert one_mask(tmp_path / "out")[:2, 0].tolist() == [0, 1] and len(spec_classes(tmp_path / "out")) == 2


def spec_classes(out) -> list[str]:
    return json.loads((out / "dataset.json").read_text())["classes"]


def test_images_keep_their_bytes_and_equal_names_get_their_extension(given, tmp_path):
    made = export(tmp_path / "in", "ab")
    twin = tmp_path / "in" / "a.jpg"
    Image.new("RGB", SIZE[::-1]).save(twin)
    made.items.append(Annotated("a", twin, lambda size: ()))
    made.items.append(Annotated("a", twin.read_bytes(), lambda size: (), suffix=".jpg"))
    given(made)
    import_annotations("coco", tmp_path, tmp_path / "out")
    images = {path.name: path.read_bytes() for path in (tmp_path / "out").rglob("images/*.*")}
    assert set(images) == {"a_png.png", "a_jpg.jpg", "a_jpg_2.jpg", "b.png"}
    assert images["a_jpg.jpg"] == images["a_jpg_2.jpg"] == twin.read_bytes()


def test_an_image_of_another_size_is_left_out(given, tmp_path, capsys):
    made = export(tmp_path / "in", "abc")
    made.items[-1] = Annotated("turned", tmp_path / "in" / "c.png", lambda size: (), (9, 6))
    given(made)
    import_annotations("coco", tmp_path, tmp_path / "out")
    left = "left out: 1 images: turned: it is 9x6, its annotations are for 6x9 (width x height)"
    assert left in capsys.readouterr().err and not list((tmp_path / "out").rglob("turned*"))


def test_of_two_annotations_of_one_image_those_named_like_it_count(given, tmp_path, capsys):
    made = export(tmp_path / "in", "abc")
    a, b = (tmp_path / "in" / f"{name}.png" for name in "ab")
    made.items[:2] = [Annotated("copy", b, made.items[0].regions), Annotated("in/b", b, lambda size: ())]
    made.items += [Annotated(name, a, lambda size: ()) for name in ("first", "second")]
    given(made)
    import_annotations("coco", tmp_path, tmp_path / "out")
    said = capsys.readouterr().err
    assert "left out: 2 annotations of an image for which others are used: copy, second" in said
    names = {name for names in splits(tmp_path / "out").values() for name in names}
    assert names == {"in/b", "c", "first"} and "2 images have no object" in said


def test_an_export_in_which_nothing_can_be_drawn(given, tmp_path):
    made = export(tmp_path / "in", "ab", Region(None, np.ones((3, 3), bool)))
    made.left_out["boxes without an outline"].append("a: car")
    given(made)
    with pytest.raises(InputError, match=r"none of its 2 images has an object of a class \(boxes .*: a: car\)"):
        import_annotations("coco", tmp_path, tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))


def test_splits_without_training_images_are_not_kept(given, tmp_path, capsys):
    made = export(tmp_path / "in", "abcd")
    made.items = [replace(item, split=f"job{i}") for i, item in enumerate(made.items)]
    given(made)
    import_annotations("coco", tmp_path, tmp_path / "out")
    assert set(splits(tmp_path / "out")) == {"train", "val"}
    assert "the export's own splits (job0, job1, job2" in " ".join(capsys.readouterr().out.split())


def test_a_class_without_a_name(given, tmp_path):
    given(replace(export(tmp_path / "in", "ab"), classes=["", "car"]))
    with pytest.raises(InputError, match="has a class without a name: give it one"):
        import_annotations("coco", tmp_path, tmp_path / "out")


def test_a_folder_without_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="--out .: name a new folder"):
        import_annotations("coco", tmp_path, ".")


def test_nothing_is_left_behind_or_written_over(given, tmp_path):
    def broken(size):
        raise KeyboardInterrupt

    made = export(tmp_path / "in", "ab")
    made.items[-1] = Annotated("b", tmp_path / "in" / "b.png", broken)
    given(made)
    with pytest.raises(KeyboardInterrupt):
        import_annotations("coco", tmp_path, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]
    with pytest.raises(InputError, match="in is not empty; name a new folder"):
        import_annotations("coco", tmp_path, tmp_path / "in")
    with pytest.raises(InputError, match=re.escape(f"there is no {tmp_path / 'none'}")):
        import_annotations("coco", tmp_path / "none", tmp_path / "out")
    with pytest.raises(InputError, match="no annotation tool 'cocoa'; did you mean 'coco'"):
        import_annotations("cocoa", tmp_path, tmp_path / "out")


@pytest.mark.parametrize(
    "path, split",
    [
        ("instances_val2017.json", "val"),
        ("valid/_annotations.coco.json", "val"),
        ("Training/masks/a.png", "train"),
        ("trains/a.json", ""),
        ("contest.json", ""),
    ],
)
def test_splits_in_names(tmp_path, path, split):
    assert split_in(tmp_path / path, tmp_path) == split
