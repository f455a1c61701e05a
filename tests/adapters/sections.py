"""A README section that needs a framework is run by that framework's tests, not by tests/test_readme.py.

There, its Python stands behind `<!-- not run: needs NAME -->`, and `<!-- begins: FILE -->`, `<!-- leaves: FILE -->` and
`<!-- says -->` stand for the `<!-- write: FILE -->`, `<!-- file: FILE -->` and `<!-- prints -->` that
tests/test_readme.py describes.
"""

from __future__ import annotations

import contextlib
import re

from test_readme import README, Story, steps

#: What stands in such a section, and what it stands for.
SAME = {
    r"<!-- not run: needs .*? -->\n": "",
    r"<!-- begins: (.*?) -->": r"<!-- write: \1 -->",
    r"<!-- leaves: (.*?) -->": r"<!-- file: \1 -->",
    r"<!-- says -->": r"<!-- prints -->",
}


class Section(Story):
    """A story whose Python is compiled as a script of its own, without the future imports of the tests."""

    def take(self, verb: str, name: str, text: str, line: int) -> None:
        if verb not in {"run", "hidden"}:
            super().take(verb, name, text, line)
            return
        with contextlib.redirect_stdout(self.printed):
            exec(compile("\n" * line + text, str(README), "exec", dont_inherit=True), self.namespace)  # noqa: S102


def run_section(heading: str) -> None:
    """Run the README's section of that heading in the present folder; fail unless it does what it says."""
    text = README.read_text(encoding="utf-8")
    found = re.search(rf"^### {re.escape(heading)}\n.*?(?=^##|\Z)", text, re.DOTALL | re.MULTILINE)
    assert found, f"README.md has no section {heading}"
    section = found[0]
    for theirs, ours in SAME.items():
        section = re.sub(theirs, ours, section)
    story = Section()
    todo = steps(section)
    with contextlib.closing(story):
        for step in todo:
            story.take(*step)
    assert {"run", "file"} <= {verb for verb, *_ in todo}
