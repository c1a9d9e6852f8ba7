"""The options that say what a node is, for ``hivefs node init``, ``hivefs node join`` and ``hivefs invite``."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from typing import Any, TypeAlias

import click

from hivefs.daemon.node_process import Labels
from hivefs.errors import BadSetting
from hivefs.model.words import showable

SAYS = {
    "country": "Country where the machine stands (two letters).",
    "operator": "Who runs it: a name that is the same on all nodes of this operator.",
    "operator_country": "Country of the operator  [default: that of the machine].",
    "parent": "The operator's parent company, if it has one.",
    "parent_country": "Country of the parent company.",
    "hoster": "Whose data centre it is.",
}
FIXES = {
    "country": "Fix the country of the nodes that join (two letters).",
    "operator": "Fix who runs them.",
    "operator_country": "Fix the country of the operator.",
    "parent": "Fix the operator's parent company.",
    "parent_country": "Fix the country of the parent company.",
    "hoster": "Fix whose data centre it is.",
}


Command: TypeAlias = Callable[..., Any]


def label_options(words: dict[str, str], required: Collection[str] = ()) -> Callable[[Command], Command]:
    """Adds an option for each label, with those words for help; the command gets them as ``labels``, a Labels. What is not
    ``required`` may be left out, and is empty then.
    """

    def add(function: Command) -> Command:
        @functools.wraps(function)
        def call(*arguments: Any, **said: Any) -> Any:
            values = {name: said.pop(name) for name in words}
            for name, value in values.items():
                if value and not showable(value):
                    raise BadSetting(name="--" + name.replace("_", "-"), reason="it has characters that cannot be shown")
            return function(*arguments, labels=Labels(**values), **said)

        made: Command = call
        for name, text in reversed(words.items()):
            option = "--" + name.replace("_", "-")
            needed = name in required
            made = click.option(option, name, required=needed, default=None if needed else "", help=text)(made)
        return made

    return add
