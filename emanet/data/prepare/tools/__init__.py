"""Annotation tools, one file each, in which `read(source, images)` gives an Export.

A new tool is a file and a line here.
"""

TOOLS = {  # name on the command line -> module
    "coco": "coco",
    "cvat": "cvat",
    "label-studio": "label_studio",
    "labelme": "labelme",
    "masks": "masks",
    "roboflow": "roboflow",
    "supervisely": "supervisely",
    "voc": "voc",
    "yolo": "yolo",
}
