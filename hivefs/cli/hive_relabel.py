"""``hivefs hive relabel``"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import click

from hivefs.cli.hive_source import hive_options, load_hive, some_node
from hivefs.cli.node_labels import label_options
from hivefs.cli.output import json_option, plain, show_json
from hivefs.daemon.node_process import Labels
from hivefs.errors import BadSetting
from hivefs.model.node import Evidence, RosterEntry

NEW = {
    "country": "Country where the machine stands now (two letters).",
    "operator": "Who runs it now.",
    "operator_country": "Country of the operator now.",
    "parent": "The operator's parent company now.",
    "parent_country": "Country of the parent company now.",
    "hoster": "Whose data centre it is now.",
}


@click.command("relabel")
@click.argument("node")
@hive_options
@label_options(NEW)
@click.option("--drop", multiple=True, type=click.Choice(sorted(NEW)), help="This does not hold any more.")
@click.option(
    "--evidence",
    type=click.Choice([e.name.lower() for e in Evidence]),
    default="attested",
    show_default=True,
    help="How well you know what you say.",
)
@json_option
def command(
    node: str,
    hive_file: Path | None,
    nodes: tuple[str, ...],
    labels: Labels,
    drop: tuple[str, ...],
    evidence: str,
    as_json: bool,
) -> None:
    """Say something else of NODE (its id, or the beginning of it) than before: it moved, or was sold.

    The owner signs its membership anew and gives it to every node that can be reached; the others and all clients hear of
    it from them within seconds, and move what their policies do not allow on it any more.
    """
    import trio

    from hivefs.daemon import owner

    said = [replace(a, evidence=Evidence[evidence.upper()]) for a in labels.attributes()]
    both = {a.name for a in said} & set(drop)
    if both:
        raise BadSetting(name="--drop", reason=f"{min(both)} is said and dropped")
    _, key, addresses = load_hive(hive_file, nodes)
    some_node(addresses)
    known = owner.Known()
    trio.run(owner.ask, key, addresses, known)
    if not known.answered:
        raise next(iter(known.failed.values()))
    text = node.strip().lower()
    found = [entry for subject, entry in known.entries.items() if len(text) >= 8 and subject.hex().startswith(text)]
    if len(found) != 1:
        many = "is the beginning of more than one id" if found else "is no node that those who answered know"
        raise BadSetting(name="NODE", reason=f"'{node[:80]}' {many}")
    made = owner.relabelled(key, found[0].membership, said, drop, time.time_ns())
    told = trio.run(owner.give_entry, key, addresses, RosterEntry(made, found[0].address), known)
    if not told:
        raise next(iter(known.failed.values()))
    attributes = [{"name": a.name, "value": a.value, "evidence": a.evidence.name.lower()} for a in made.attributes]
    if as_json:
        show_json({"id": made.subject, "epoch": made.epoch, "attributes": attributes, "told": told})
        return
    words = ", ".join(f"{a['name']} {a['value']} ({a['evidence']})" for a in attributes)
    click.echo(f"Node {made.subject.hex()[:16]} is now: {plain(words)}")
    click.echo(f"{told} nodes were told; they pass it on.")
