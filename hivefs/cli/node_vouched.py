"""``hivefs node vouched DIRECTORY``"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from hivefs.cli.attest import attestations_in, whole_key
from hivefs.cli.output import json_option, show_json
from hivefs.errors import BadAttestation, BadSetting
from hivefs.model.attestation import Attestation


@click.command("vouched")
@click.argument("directory", type=click.Path(path_type=Path))
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
@click.option("--drop", multiple=True, help="Pass those of this attester's key on no more.")
@json_option
def command(directory: Path, files: tuple[Path, ...], drop: tuple[str, ...], as_json: bool) -> None:
    """Give the node in DIRECTORY attestations about itself (FILES from 'hivefs attest'), which it passes on to all.

    They count for those who trust the attester. The newest of each attester is kept; a running node takes it at once.
    Without FILES those that it has are shown.
    """
    from hivefs.crypto.keys import public_key
    from hivefs.daemon.node_control import change
    from hivefs.formats import attestation
    from hivefs.node.config import NodeConfig, load_node

    _, seed = load_node(directory.absolute())
    own = public_key(seed)
    brought = [made for path in files for made in attestation.attestations_from_text(attestations_in(path))]
    for made in brought:
        reason = attestation.problem(made, time.time_ns())
        if not reason and made.subject != own:
            reason = f"it is about another node ({made.subject.hex()[:12]}, this is {own.hex()[:12]})"
        if reason:
            raise BadAttestation(reason=f"the one of attester {made.attester.hex()[:12]}: {reason}")
    dropped = {whole_key(text, "--drop") for text in drop}

    def changed(config: NodeConfig) -> NodeConfig:
        newest: dict[bytes, Attestation] = {}
        for made in [*map(attestation.attestation_from_bytes, config.attestations), *brought]:
            before = newest.get(made.attester)
            if made.attester not in dropped and (before is None or before.issued_ns <= made.issued_ns):
                newest[made.attester] = made
        if len(newest) > attestation.MAX_ATTESTATIONS:
            raise BadSetting(
                name="FILES", reason=f"a node passes on those of {attestation.MAX_ATTESTATIONS} attesters at most"
            )
        return replace(config, attestations=tuple(attestation.attestation_to_bytes(newest[key]) for key in sorted(newest)))

    config, running = change(directory.absolute(), changed)
    rows = [_row(attestation.attestation_from_bytes(blob)) for blob in config.attestations]
    if as_json:
        show_json({"attestations": rows, "running": running})
        return
    for row in rows:
        said = ", ".join(f"{name} {value}" for name, value in row["says"].items())
        until = "for ever"
        if row["expires_ns"]:
            until = "until " + time.strftime("%Y-%m-%d", time.localtime(row["expires_ns"] / 1e9))
        click.echo(f"{row['attester'].hex()}  {said}  ({until})")
    if not rows:
        click.echo("Nobody vouches for this node.")
    if files or drop:
        click.echo("The running node has taken it." if running else "The node does not run; it takes this when it starts.")


def _row(made: Attestation) -> dict[str, Any]:
    return {
        "attester": made.attester,
        "says": dict(made.said),
        "issued_ns": made.issued_ns,
        "expires_ns": made.expires_ns,
    }
