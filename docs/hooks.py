"""What mkdocs does beyond its plugins: pages of public names, and links that leave the site."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
ROOM = re.compile(r"^::: (dreamjax(?:\.\w+)?)$", re.M)
OUTWARD = re.compile(r"\[([^\]]+)\]\(((?:\.\./)+)([^)#]+)(#[^)]*)?\)")


def names(room: str) -> list[str]:
    """The public names of a room, as its stub lists them."""
    stub = ROOT.joinpath(*room.split("."), "__init__.pyi")
    tree = ast.parse(stub.read_text())
    return [x.asname for node in tree.body if isinstance(node, ast.ImportFrom) for x in node.names]


def on_page_markdown(markdown, page, **_):
    """A directive for each public name; of links to files of the repository, their paths."""

    def directives(found):
        room = found[1]
        return "\n\n".join(
            f"::: {room}.{name}\n    options: {{show_root_heading: true, show_root_toc_entry: true}}"
            for name in sorted(names(room), key=str.lower)
            if (room, name) != ("dreamjax", "fidelity")  # a page of its own
        )

    def path(found):
        text, ups, target, _ = found.groups()
        depth = page.file.src_uri.count("/")
        if ups.count("..") <= depth:
            return found[0]
        return text if target in text else f"{text} (`{target}`)"

    return OUTWARD.sub(path, ROOM.sub(directives, markdown))
