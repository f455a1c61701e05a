"""Lay the wheel out as a package: PEP 561 lets only packages tell type checkers that they are typed.

The source tree and a vendored copy stay one file. A static ``force-include`` would also put a copy of the module into
an editable installation, where it would hide the file that is being edited; hence this hook.
"""

from __future__ import annotations

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class Wheel(BuildHookInterface):  # type: ignore[type-arg]  # generic in hatchling's own annotations only
    """Add the module to a wheel; an editable one reaches it through the path."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Name the module ``persistedstate/__init__.py``, beside ``__main__.py`` and ``py.typed``, which lie here."""
        if version != "editable":
            build_data["force_include"]["persistedstate.py"] = "persistedstate/__init__.py"
