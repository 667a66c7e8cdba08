"""Annotation tools, one file each: `read(source)` gives an annotations.Export. A new one is a file and a line here."""

TOOLS = {"labelme": "labelme"}  # name on the command line -> module
