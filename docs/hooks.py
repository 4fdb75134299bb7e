"""What mkdocs does beyond its plugins: pages of public names, and links that leave the site.

python docs/hooks.py SITE    # fails where a public name has no place in the site
"""

import ast
import re
import sys
import zlib
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
        room, how = found[1], "{show_root_heading: true, show_root_toc_entry: true}"
        return "\n\n".join(
            f"::: {room}.{name}\n    options: {how}"
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


def missing(site: Path) -> list[str]:
    """Public names that the site's inventory lacks."""
    inventory = zlib.decompress((site / "objects.inv").read_bytes().split(b"\n", 4)[4]).decode()
    have = {line.split()[0] for line in inventory.splitlines()}
    pages = (ROOT / "docs" / "api").glob("*.md")
    rooms = [room for page in pages for room in ROOM.findall(page.read_text())]
    wanted = {f"{room}.{name}" for room in rooms for name in names(room)}
    return sorted(wanted - have - {"dreamjax.fidelity"})


if __name__ == "__main__":
    lacking = missing(Path(sys.argv[1]))
    sys.exit(f"not in the site: {', '.join(lacking)}" if lacking else 0)
