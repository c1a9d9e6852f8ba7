"""docs/exit-codes.md is the error catalogue, and every code means one thing."""

from __future__ import annotations

import string
from pathlib import Path

from hivefs import errors
from hivefs.errors import HivefsError

PAGE = Path(__file__).parents[2] / "docs" / "exit-codes.md"
HEAD = r"""# Exit codes

What the `hivefs` command exits with, and the sentence that it prints on standard error. Made from `hivefs/errors.py`;
to make it again after a change: `python tests/cli/test_exit_codes.py`. "Later" means that trying again later can help.

| code | error | later | sentence |
|---|---|---|---|
| 0 | | | done |
| 2 | | | a mistake in the command line; `--help` tells what is possible |
| 141 | | | nobody reads the output any more, as with `hivefs ... \| head` |
"""


def catalogue() -> list[type[HivefsError]]:
    """All error classes by exit code."""
    found = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, HivefsError)]
    return sorted(found, key=lambda c: c.exit_code)


def page() -> str:
    """What docs/exit-codes.md must hold."""
    rows = [
        f"| {c.exit_code} | `{c.__name__}` | {'yes' if c.transient else ''} | {' '.join((c.__doc__ or '').split())} |"
        for c in catalogue()
    ]
    return HEAD + "\n".join(rows) + "\n"


def test_codes_are_unique_and_usable() -> None:
    codes = [c.exit_code for c in catalogue()]
    assert len(set(codes)) == len(codes)
    assert all(0 < code < 256 and code != 2 for code in codes)


def test_messages_are_one_sentence() -> None:
    for error in catalogue():
        text = " ".join((error.__doc__ or "").split())
        assert text[-1:] == "." or text.endswith("..."), error.__name__
        assert ". " not in text, f"{error.__name__} says more than one sentence"
        names = [name for _, name, _, _ in string.Formatter().parse(text) if name]
        assert all(f"<{n}>" not in str(error(**dict.fromkeys(names, "x"))) for n in names)


def test_page_is_current() -> None:
    assert PAGE.read_text() == page(), "run python tests/cli/test_exit_codes.py"


if __name__ == "__main__":
    PAGE.write_text(page())
