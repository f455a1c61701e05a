"""Describe the project where there is no tree around README.md, and lay the wheel out as a package.

PEP 561 lets only packages tell type checkers that they are typed. The source tree and a vendored copy stay one file. A
static ``force-include`` would also put a copy of the module into an editable installation, where it would hide the file
that is being edited; hence this hook.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.metadata.plugin.interface import MetadataHookInterface

#: An image or a link to a file of the tree, and what is to be read in its place.
IMAGE = re.compile(r"^!\[[^\]]*\]\((?!\w+:|#)[^)]*\)\n\n?", re.MULTILINE)
LINK = re.compile(r"\[([^\]]*)\]\((?!\w+:|#)[^)]*\)")


class Readme(MetadataHookInterface):
    """Describe the project by README.md, which is read far from the files that it links to."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Leave out its images, and of its links the text."""
        text = (Path(self.root) / "README.md").read_text("utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": LINK.sub(r"\1", IMAGE.sub("", text))}


class Wheel(BuildHookInterface):  # type: ignore[type-arg]  # generic in hatchling's own annotations only
    """Add the module to a wheel; an editable one reaches it through the path."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Name the module ``persistedstate/__init__.py``, beside ``__main__.py`` and ``py.typed``, which lie here."""
        if version != "editable":
            build_data["force_include"]["persistedstate.py"] = "persistedstate/__init__.py"
