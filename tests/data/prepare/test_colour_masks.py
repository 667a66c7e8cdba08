import pytest

from emanet.data.prepare.colour_masks import find_labelmap, read_labelmap
from emanet.errors import InputError

EXPECTED = {"background": (0, 0, 0), "traffic light": (250, 170, 30)}


@pytest.mark.parametrize(
    "text",
    [
        "# label:color_rgb:parts:actions\nbackground:0,0,0::\ntraffic light:250,170,30::\n",
        "name,r,g,b\nbackground,0,0,0\ntraffic light,250,170,30\n",
        "background 0 0 0\r\n\r\ntraffic light 250 170 30\r\n",
        "0 0 0 background\n250 170 30 traffic light\n",
        "\ufeffbackground\t0\t0\t0\ntraffic light;250;170;30",
        "name, red, green, blue\nbackground, 0, 0, 0\ntraffic light, 250, 170, 30",
    ],
)
def test_label_maps(tmp_path, text):
    (tmp_path / "labelmap.txt").write_text(text, "utf-8")
    assert read_labelmap(find_labelmap(tmp_path / "none", tmp_path)) == EXPECTED


@pytest.mark.parametrize(
    "text, message",
    [
        ("a,1,2,3\nb,1,2,3", "a and b have the same colour"),
        ("a,1,2,300", "a value above 255"),
        ("a,1,2,3\nfoo", "'foo' is not a name and a colour"),
        ("# nothing", "names no colour"),
    ],
)
def test_label_maps_that_are_none(tmp_path, text, message):
    (tmp_path / "labelmap.txt").write_text(text)
    with pytest.raises(InputError, match=message):
        read_labelmap(tmp_path / "labelmap.txt")
