"""The hook of mkdocs: README.md is the first page, links to files outside docs/ lead to the source.

A link to a file that does not exist is a warning, which `mkdocs build --strict` counts as an error.
"""

import logging
import re
import tomllib
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
SOURCE = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["urls"]["Source"]
LINK = re.compile(r'((?:\]\(|src=")(?!\w+:|#))([^)\s"#]+)')  # Markdown's, and those of images
LOG = logging.getLogger("mkdocs.hooks")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds README.md, whose links are relative to the root, as the first page."""
    readme = LINK.sub(_from_root, (ROOT / "README.md").read_text("utf-8"))
    files.append(File.generated(config, "index.md", content=readme))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Rewrites links that leave docs/."""
    return LINK.sub(
        lambda found: (
            _to_source(found[1], found[2][3:]) if found[2].startswith("../") else found[0]
        ),
        markdown,
    )


def _from_root(found: re.Match[str]) -> str:
    if found[2].startswith("docs/"):
        return found[1] + found[2].removeprefix("docs/")
    return _to_source(found[1], found[2])


def _to_source(begin: str, path: str) -> str:
    if not (ROOT / path).exists():
        LOG.warning("a link to %s, which does not exist", path)
    return f"{begin}{SOURCE}/blob/main/{path}"
