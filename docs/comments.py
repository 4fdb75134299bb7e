"""Comments beside fields, as their documentation in the reference."""

import re

import griffe

FIELD = re.compile(r"^\s*(\w+)\s*:.*?  # (.*)$")


class Comments(griffe.Extension):
    """Gives each field of a class the comment beside it, or the lines of comments above it."""

    def on_attribute_instance(self, *, attr, agent, **_):
        """A field without a docstring takes its comment."""
        if attr.docstring or attr.lineno is None or not isinstance(attr.parent, griffe.Class):
            return
        lines = attr.lines_collection[attr.filepath]
        beside = FIELD.match(lines[attr.lineno - 1])
        above, row = [], attr.lineno - 2
        while lines[row].strip().startswith("#"):
            above.insert(0, lines[row].strip("# "))
            row -= 1
        told = beside[2] if beside else " ".join(above)
        if told:
            attr.docstring = griffe.Docstring(told[:1].upper() + told[1:] + ".", parent=attr)
