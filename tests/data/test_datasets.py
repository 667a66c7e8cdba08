import json
import os

import numpy as np
import pytest
from PIL import Image

from emanet.config import DataConfig, DatasetSpec
from emanet.data.check.pairs import check_pair
from emanet.data.check.quick import check, check_labels, one_class
from emanet.data.datasets import SPECS, list_split, open_dataset, open_folders, resolve
from emanet.errors import InputError
from emanet.predict.inputs import find_images

SPEC = DatasetSpec(classes=("a", "b"))


def pair(folder, name, size=(4, 6), value=0, image=".jpg", mask=".png"):
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / "masks").mkdir(exist_ok=True)
    path = folder / "images" / f"{name}{image}"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size[::-1], (10, 20, 30)).save(path)
    target = folder / "masks" / f"{name}{mask}"
    target.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(size, value, np.uint8)).save(target)


def folders(root, spec=SPEC):
    return open_folders(root / "images", root / "masks", spec)


def test_folder_data_set_reads_what_was_drawn(scenes):
    config = DataConfig(dataset=str(scenes))
    train, val = (open_dataset(config, split) for split in ("train", "val"))
    assert (len(train), len(val)) == (6, 3)
    image, labels = val.read(1)
    drawn_image, drawn_labels = open_dataset(DataConfig(dataset="drawn"), "val").read(1)
    assert np.array_equal(labels, drawn_labels) and np.abs(image.astype(int) - drawn_image).mean() < 8
    assert val.name(1).endswith("val/images/0001.jpg")
    assert train.spec.classes == SPECS["drawn"].classes


def test_a_resolved_config_finds_the_files_again(scenes):
    config = resolve(DataConfig(dataset=str(scenes / "dataset.json")))
    assert config.spec.classes == SPECS["drawn"].classes and config.root == str(scenes)
    (scenes / "dataset.json").unlink()
    assert len(open_dataset(config, "train")) == 6


def test_a_description_that_has_changed_since_a_run_began_is_noted(tmp_path):
    pair(tmp_path / "train", "x")
    for classes, changed in ((["a", "b"], ["b", "a"]), (["a"], ["c"])):
        (tmp_path / "dataset.json").write_text(json.dumps({"classes": classes}))
        config = resolve(DataConfig(dataset=str(tmp_path)))
        assert not open_dataset(config, "train").notes
        (tmp_path / "dataset.json").write_text(json.dumps({"classes": changed, "palette": []}))
        (note,) = open_dataset(config, "train").notes
        assert note == f"{tmp_path / 'dataset.json'} now has other classes; the run's own are used"


def test_subfolders_and_suffixes_are_matched_by_stem(tmp_path):
    for city in ("x", "y"):
        pair(tmp_path, f"{city}/one", image="_left.png", mask="_ids.png")
    spec = DatasetSpec(classes=("a",), image_suffix="_left.png", mask_suffix="_ids.png")
    assert [p[0].parent.name for p in folders(tmp_path, spec).pairs] == ["x", "y"]


def test_voc_layout_with_its_list(tmp_path):
    for i in range(3):
        pair(tmp_path, f"2007_{i}", value=i)
    (tmp_path / "images").rename(tmp_path / "JPEGImages")
    (tmp_path / "masks").rename(tmp_path / "SegmentationClass")
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "val.txt").write_text("2007_2\n2007_0\n")
    config = DataConfig(dataset="voc", root=str(tmp_path))
    val = open_dataset(config, "val")
    assert [val.read(i)[1][0, 0] for i in range(2)] == [2, 0]
    with pytest.raises(InputError, match=r"no split 'train': there is no .*train.txt"):
        open_dataset(config, "train")
    (lists / "train.txt").write_text("\n")
    with pytest.raises(InputError, match=r"train.txt is empty"):
        open_dataset(config, "train")
    (lists / "train.txt").write_text("2007_9\n")
    with pytest.raises(InputError, match=r"names '2007_9', but .* has no image of that name"):
        open_dataset(config, "train")
    (lists / "train.txt").write_text("/JPEGImages/2007_1.jpg /SegmentationClass/2007_1.png\n")
    assert open_dataset(config, "train").read(0)[1][0, 0] == 1
    (tmp_path / "SegmentationClass" / "2007_1.png").unlink()
    with pytest.raises(InputError, match=r"1 of 1 masks of .* are missing: .*2007_1.png"):
        open_dataset(config, "train")


def test_a_split_may_have_another_name_in_its_paths(tmp_path):
    for split in ("validation", "extra"):
        pair(tmp_path / split, split)
    document = {"classes": ["a"], "split_names": {"val": "validation"}}
    (tmp_path / "dataset.json").write_text(json.dumps(document))
    names = {}
    for split in ("val", "validation", "extra"):
        names[split] = open_dataset(DataConfig(dataset=str(tmp_path)), split).name(0)
    assert names["val"] == names["validation"] == str(tmp_path / "validation" / "images" / "validation.jpg")
    assert names["extra"].endswith("extra/images/extra.jpg")
    with pytest.raises(InputError, match="no folder .*train/images"):
        open_dataset(DataConfig(dataset=str(tmp_path)), "train")


def test_a_list_may_belong_to_a_split_of_another_name(tmp_path):
    pair(tmp_path, "one", value=1)
    (tmp_path / "test.txt").write_text("one\n")
    spec = DatasetSpec(
        classes=("a", "b"), images="images", masks="masks", split_list="{split}.txt", split_names={"val": "test"}
    )
    assert len(open_dataset(DataConfig(spec=spec, root=str(tmp_path)), "val")) == 1


def test_what_cannot_be_opened_is_named(tmp_path):
    with pytest.raises(InputError, match="no data set or dataset.json 'camvit'; did you mean 'camvid'"):
        open_dataset(DataConfig(dataset="camvit"), "train")
    with pytest.raises(InputError, match="no folder .*nowhere for data set 'camvid'"):
        open_dataset(DataConfig(dataset="camvid", root=str(tmp_path / "nowhere")), "train")
    with pytest.raises(InputError, match="no folder .*train/images"):
        open_dataset(DataConfig(dataset="camvid", root=str(tmp_path)), "train")
    with pytest.raises(InputError, match="no split 'test'"):
        open_dataset(DataConfig(dataset="drawn"), "test")
    (tmp_path / "dataset.json").write_text(json.dumps({"classes": ["a"], "pallete": []}))
    with pytest.raises(InputError, match=r"dataset.json: unknown field 'pallete'; did you mean 'palette'"):
        open_dataset(DataConfig(dataset=str(tmp_path)), "train")


def test_image_without_mask_and_empty_folder(tmp_path):
    pair(tmp_path, "one")
    pair(tmp_path, "two")
    (tmp_path / "masks" / "two.png").unlink()
    with pytest.raises(InputError, match=r"1 of 2 images have no mask in .*masks: .*two.jpg"):
        folders(tmp_path)
    for path in (tmp_path / "images").iterdir():
        path.unlink()
    with pytest.raises(InputError, match="images holds no image"):
        folders(tmp_path)


def test_two_images_of_one_stem_are_refused(tmp_path):
    pair(tmp_path, "one")
    pair(tmp_path, "one", image=".png")
    with pytest.raises(InputError, match="one.jpg and .*one.png have the same stem"):
        folders(tmp_path)


def test_a_listing_goes_on_past_what_opening_refuses(tmp_path):
    for name in ("one", "two", "three"):
        pair(tmp_path / "train", name)
    pair(tmp_path / "train", "one", image=".png")
    (tmp_path / "train" / "masks" / "two.png").unlink()
    (tmp_path / "train" / "images" / "three.jpg").unlink()
    config = DataConfig(spec=SPEC, root=str(tmp_path))
    listing = list_split(config, "train")
    assert [image.name for image, _ in listing.pairs] == ["one.jpg"]
    assert [(fault.kind, [path.name for path in fault.files], bool(fault.sentence)) for fault in listing.faults] == [
        ("same-stem", ["one.jpg", "one.png"], True),
        ("image-without-mask", ["two.jpg"], True),
        ("mask-without-image", ["three.png"], False),
    ]
    (tmp_path / "train" / "images" / "one.png").unlink()
    with pytest.raises(InputError, match="1 of 2 images have no mask"):
        open_dataset(config, "train")
    (tmp_path / "train" / "images" / "two.jpg").unlink()
    assert len(open_dataset(config, "train")) == 1, "a mask without an image is no obstacle"


def test_a_sound_pair_has_labels(tmp_path):
    pair(tmp_path, "one", value=1)
    files = tmp_path / "images" / "one.jpg", tmp_path / "masks" / "one.png"
    labels = check_pair(*files, SPEC)
    assert labels.shape == (4, 6) and labels.dtype == np.uint8 and (labels == 1).all()
    Image.new("L", (9, 9)).save(files[1])
    with pytest.raises(InputError, match=r"one.jpg is 6x4, but its mask .*one.png is 9x9 \(width x height\)"):
        check_pair(*files, SPEC)


def test_check_counts_pixels_and_remembers(tmp_path):
    pair(tmp_path, "one", value=0)
    pair(tmp_path, "two", value=1, size=(2, 3))
    seen = []
    first = check(folders(tmp_path), seen.append)
    assert first.pixels[:3].tolist() == [24, 6, 0] and seen == [1, 2]
    assert (first.smallest, first.largest) == ((2, 3), (4, 6))
    again = check(folders(tmp_path), seen.append)
    assert again.pixels.tolist() == first.pixels.tolist() and seen == [1, 2], "remembered"
    assert [*map(tuple, again[1:3])] == [*first[1:3]] and again.notes == first.notes
    pair(tmp_path, "two", value=0, size=(2, 3))
    pair(tmp_path, "three", value=255)
    changed = check(folders(tmp_path))
    assert changed.pixels[[0, 1, 255]].tolist() == [30, 0, 24], "a changed listing is checked anew"
    assert changed.notes == [f"every pixel is ignored in {tmp_path / 'masks' / 'three.png'}"]


def test_a_check_needs_no_place_to_remember(tmp_path, monkeypatch):
    pair(tmp_path, "one")
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "damaged"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(place))
        assert check(folders(tmp_path)).pixels[0] == 24
    for stamp in place.glob("emanet/checked/*"):
        stamp.write_text("{}")
    assert check(folders(tmp_path)).pixels[0] == 24


def test_interpolated_borders_are_noted_though_few_masks_are_looked_at(tmp_path):
    ramp = np.tile(np.array([0, 0, 1, 2, 2, 1, 0, 0], np.uint8), (32, 4))
    for i in range(9):
        pair(tmp_path, str(i), size=(32, 32))
        Image.fromarray(ramp).save(tmp_path / "masks" / f"{i}.png")
    (sentence,) = check(folders(tmp_path, DatasetSpec(classes=("a", "b", "c")))).notes
    assert "masks/0.png: " in sentence and "of its borders have a class between" in sentence
    assert sentence.endswith("and 1 more; `data check` lists all such files"), "the first and the ninth"


def test_an_orientation_that_swaps_the_sides_is_named(tmp_path):
    pair(tmp_path, "one")
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (6, 4)).save(tmp_path / "images" / "one.jpg", exif=exif)
    with pytest.raises(InputError, match="one.jpg is 4x6, but its mask .* EXIF turns only one of them"):
        check(folders(tmp_path))


def test_colour_masks_among_index_masks_are_noted(tmp_path):
    for name in ("one", "two", "three"):
        pair(tmp_path, name)
    Image.new("RGB", (6, 4)).save(tmp_path / "masks" / "two.png")
    (sentence,) = check(folders(tmp_path)).notes
    assert sentence == f"1 of 3 masks hold colours, unlike the others: {tmp_path / 'masks' / 'two.png'}"


def test_what_the_headers_tell_is_noted_every_time(tmp_path):
    """A palette in another order, and an orientation of the image alone."""
    pair(tmp_path, "one", value=1)
    spec = DatasetSpec(classes=("a", "b"), palette=((0, 0, 0), (0, 0, 200)))
    mask = Image.fromarray(np.full((4, 6), 1, np.uint8))
    mask.putpalette([0, 0, 200, 0, 0, 0])
    mask.save(tmp_path / "masks" / "one.png")
    exif = Image.Exif()
    exif[274] = 3
    Image.new("RGB", (6, 4)).save(tmp_path / "images" / "one.jpg", exif=exif)
    for _ in range(2):
        palette, turn = check(folders(tmp_path, spec)).notes
        assert "masks/one.png: value 1 is 'b', but has the colour of 'a'; `data check` lists" in palette
        assert "masks/one.png: orientation 3 of the image keeps its size" in turn


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda root: pair(root, "bad", value=7), r"bad.png has values? 7 .*2 classes"),
        (
            lambda root: Image.new("L", (9, 9)).save(root / "masks" / "one.png"),
            r"one.jpg is 6x4, but its mask .*one.png is 9x9",
        ),
        (lambda root: (root / "masks" / "one.png").write_bytes(b"x"), r"one.png"),
        (lambda root: (root / "images" / "one.jpg").write_bytes(b""), r"one.jpg"),
        (lambda root: pair(root, "one", value=255), "every pixel of the 1 masks is ignored"),
    ],
    ids=["values", "size", "mask", "image", "ignored"],
)
def test_check_names_the_faulty_file(tmp_path, fault, message):
    pair(tmp_path, "one")
    fault(tmp_path)
    with pytest.raises(InputError, match=message):
        check(folders(tmp_path))


def test_masks_of_one_class(tmp_path):
    pixels = np.zeros(256, np.int64)
    pixels[[0, 255]] = 30, 10
    said = "every labelled pixel is a, 25.0% of all pixels are ignored"
    assert one_class(pixels, SPEC) == said + '; if 255 is b, write "label_map": {"0": 0, "255": 1} into dataset.json'
    assert one_class(pixels, DatasetSpec(classes=("a", "b", "c"))) == said, "255 could be either"
    other = DatasetSpec(classes=("a", "b"), ignore_label=9)
    assert one_class(pixels, other) == said, "255 is not what was ignored"
    assert one_class(pixels, DatasetSpec(classes=("a",))) == said
    pixels[255] = 0
    assert one_class(pixels, SPEC) == "every labelled pixel is a, 0.0% of all pixels are ignored"
    pixels[1] = 1
    assert not one_class(pixels, SPEC) and not one_class(np.zeros(256, np.int64), SPEC)


def test_a_training_notes_classes_without_pixels(tmp_path):
    def note():
        said = []
        check_labels(folders(tmp_path, DatasetSpec(classes=("a", "b", "c"))), said.append)
        return "".join(said)

    pair(tmp_path, "one", size=(3, 6))
    pair(tmp_path, "two", size=(3, 6), value=255)
    alone = "every labelled pixel is a, 50.0% of all pixels are ignored"
    assert f"note: nothing can be learned from the masks under {tmp_path / 'masks'}: {alone}" in note()
    pair(tmp_path, "two", size=(3, 9), value=1)
    said = f"note: under {tmp_path / 'masks'} no pixel is labelled c"
    assert note() == said and note() == said, "every time, although the masks are not read again"


def test_hidden_files_and_folders_are_none_of_it(tmp_path):
    pair(tmp_path, "one")
    for name in (".ipynb_checkpoints/0", "sub/.git/1", "._one"):
        pair(tmp_path, name)
    assert [image.name for image, _ in folders(tmp_path).pairs] == ["one.jpg"]


def test_a_folder_is_no_image(tmp_path):
    pair(tmp_path, "one")
    (tmp_path / "images" / "x.png").mkdir()
    (tmp_path / "images" / "y.png").symlink_to(tmp_path / "images" / "x.png", target_is_directory=True)
    assert [image.name for image, _ in folders(tmp_path).pairs] == ["one.jpg"]


def linked(root):
    """images/a and masks/a are links to folders elsewhere; images/again and images/circle lead to what is listed."""
    pair(root / "elsewhere", "one", value=1)
    for kind in ("images", "masks"):
        (root / kind).mkdir()
        (root / kind / "a").symlink_to(root / "elsewhere" / kind, target_is_directory=True)
    (root / "images" / "again").symlink_to("a", target_is_directory=True)
    (root / "images" / "circle").symlink_to(".", target_is_directory=True)
    pair(root, "b/two")


def test_linked_folders_are_searched_as_predict_does(tmp_path):
    linked(tmp_path)
    pairs = folders(tmp_path).pairs
    assert [tuple(path.relative_to(tmp_path).as_posix() for path in files) for files in pairs] == [
        ("images/a/one.jpg", "masks/a/one.png"),
        ("images/b/two.jpg", "masks/b/two.png"),
    ]
    assert [path for path, _ in find_images([str(tmp_path / "images")])] == [image for image, _ in pairs]


def test_a_list_names_images_in_linked_folders(tmp_path):
    linked(tmp_path)
    (tmp_path / "val.txt").write_text("a/one\nb/two\n")
    spec = DatasetSpec(classes=("a", "b"), images="images", masks="masks", split_list="{split}.txt")
    val = open_dataset(DataConfig(spec=spec, root=str(tmp_path)), "val")
    assert [int(val.read(i)[1][0, 0]) for i in range(len(val))] == [1, 0]


def test_a_list_from_windows(tmp_path):
    pair(tmp_path, "one")
    (tmp_path / "val.txt").write_bytes(b"\xef\xbb\xbfone\r\n")
    spec = DatasetSpec(classes=("a", "b"), images="images", masks="masks", split_list="{split}.txt")
    assert len(open_dataset(DataConfig(spec=spec, root=str(tmp_path)), "val")) == 1


def test_a_listing_of_names_that_are_not_utf8(tmp_path):
    pair(tmp_path, "one")
    for kind, suffix in (("images", ".jpg"), ("masks", ".png")):
        (tmp_path / kind / f"one{suffix}").rename(tmp_path / kind / os.fsdecode(b"\xff" + suffix.encode()))
    assert len(folders(tmp_path).listing) == 64


def test_a_broken_description_is_named_once(tmp_path):
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(InputError, match="dataset.json is not JSON") as caught:
        resolve(DataConfig(dataset=str(tmp_path)))
    assert str(caught.value).count("dataset.json") == 1


def test_camvid_is_clean(camvid):
    val = open_dataset(DataConfig(dataset="camvid", root=str(camvid)), "val")
    assert len(val) == 101
    counts = check(val).pixels
    assert counts[:11].all() and not counts[11:255].any()
    assert len(open_dataset(DataConfig(dataset="camvid", root=str(camvid)), "train")) == 367
