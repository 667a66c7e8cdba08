import pytest

from emanet.data.prepare.image_files import Images
from emanet.errors import InputError


def test_images_that_lie_elsewhere(tmp_path):
    for path in ("export/a.json", "one/x.jpg", "two/x.jpg", "two/deep/y.jpg"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    images = Images(tmp_path / "export" / "a.json", tmp_path)
    assert images.find("C:\\photos\\deep\\y.jpg") == tmp_path / "two" / "deep" / "y.jpg"
    assert images.find("/server/one/x.jpg") == tmp_path / "one" / "x.jpg"
    assert images.find("../../../two/x.jpg", tmp_path / "export") == tmp_path / "two" / "x.jpg"
    assert images.find("C:\\proj\\TWO\\X.JPG") == tmp_path / "two" / "x.jpg"
    with pytest.raises(InputError, match="2 files have this name"):
        images.find("x.jpg")
    with pytest.raises(InputError, match="2 files have this name"):
        images.find("three/x.jpg")
    with pytest.raises(InputError, match="--images names another folder"):
        images.find("x" * 5000)
    with pytest.raises(InputError, match="--images names another folder"):
        images.find("z.jpg")


def test_an_image_at_the_stated_path_is_found_before_others_of_its_name(tmp_path):
    for path in ("x.jpg", "images/x.jpg", "batch/images/x.jpg", "batch/json/x.jpg"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    images = Images(tmp_path)
    found = images.find("..\\images\\x.jpg", tmp_path / "batch" / "json")
    assert found.resolve() == (tmp_path / "batch" / "images" / "x.jpg").resolve()


def test_names_in_the_other_unicode_form(tmp_path):
    for folder in ("e\u0301", "a"):  # as a Mac writes them
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "u\u0308.jpg").touch()
    assert Images(tmp_path).find("\u00e9/\u00fc.jpg") == tmp_path / "e\u0301" / "u\u0308.jpg"
