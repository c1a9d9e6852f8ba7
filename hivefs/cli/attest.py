"""``hivefs attest``"""

from __future__ import annotations

import time
from pathlib import Path

import click

from hivefs.cli.invite import seconds
from hivefs.cli.node_labels import label_options
from hivefs.cli.output import json_option, show_json
from hivefs.daemon.node_process import Labels
from hivefs.errors import BadAttestation, BadSetting
from hivefs.placement.networks import network_number

VOUCHES = {
    "country": "Country where the machine stands (two letters).",
    "operator": "Who runs it.",
    "operator_country": "Country of the operator.",
    "parent": "The operator's parent company, if it has one.",
    "parent_country": "Country of the parent company.",
    "hoster": "Whose data centre it is.",
}


@click.command("attest")
@click.argument("node", default="")
@click.option("--key", "key_file", required=True, type=click.Path(path_type=Path), help="The attester's key file.")
@click.option("--new-key", is_flag=True, help="Make the key file; without NODE, that is all.")
@label_options(VOUCHES)
@click.option("--asn", default="", help="Number of the network it is in.")
@click.option("--expires", default="365d", show_default=True, help="How long it counts: 36h, 7d, 52w; or never.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Append it to this file, not here.")
@json_option
def command(
    node: str,
    key_file: Path,
    new_key: bool,
    labels: Labels,
    asn: str,
    expires: str,
    out: Path | None,
    as_json: bool,
) -> None:
    """Vouch for what NODE (its whole id) is, to all who trust your key: one line of text, signed.

    Give the line to the node's operator ('hivefs node vouched', the node passes it on) or to users ('hivefs trust --take').
    Say of the operator and its country only what you have looked at whole: a parent that you leave out does not exist. A
    later one for the same node takes the place of an earlier one. Without NODE the public half of the key is shown.
    """
    from hivefs.daemon import attester

    said = {a.name: a.value for a in labels.attributes()}
    if not node and not said and not asn:
        key = attester.create(key_file) if new_key else attester.load(key_file)
        if as_json:
            show_json({"key": key.public, "file": key_file})
        else:
            click.echo(f"Key {key.public.hex()} in {key_file}\nUsers trust it: hivefs trust {key.public.hex()}")
        return
    if asn:
        number = network_number(asn)
        if not number:
            raise BadSetting(name="--asn", reason=f"'{asn}' is not the number of a network, such as AS64500")
        said["asn"] = number
    if not said:
        raise BadSetting(name="NODE", reason="say what you vouch for, such as --country DE")
    from hivefs.formats import attestation
    from hivefs.model.attestation import Attestation

    now = time.time_ns()
    until = 0 if expires.strip().lower() == "never" else now + seconds(expires, "--expires") * 10**9
    subject = whole_key(node, "NODE")
    key = attester.create(key_file) if new_key else attester.load(key_file)
    if subject == key.public:
        raise BadSetting(name="NODE", reason="that is the attester's own key")
    made = attestation.sign_attestation(key.seed, Attestation(b"", subject, tuple(said.items()), now, until))
    text = attestation.attestation_to_text(made)
    if out is not None:
        try:
            with out.open("a") as file:
                file.write(text + "\n")
        except OSError as error:
            raise BadSetting(name="--out", reason=f"{out} cannot be written: {error.strerror}") from error
    if as_json:
        value = {"attester": key.public, "node": subject, "says": said, "issued_ns": now, "expires_ns": until}
        show_json({**value, "out": out} if out is not None else {**value, "attestation": text})
    elif out is None:
        click.echo(text)
    else:
        click.echo(f"Node {subject.hex()[:12]}: {', '.join(f'{n} {v}' for n, v in said.items())}; added to {out}")


def attestations_in(path: Path) -> str:
    """The text of a file with lines of this command. Raises BadAttestation when it cannot be read."""
    from hivefs.formats.attestation import MAX_TEXT

    try:
        with path.open("rb") as file:
            return file.read(MAX_TEXT + 1).decode("ascii", errors="replace")
    except OSError as error:
        raise BadAttestation(reason=f"{path} cannot be read: {error.strerror}") from error


def whole_key(text: str, name: str) -> bytes:
    """32 bytes from 64 hexadecimal digits; raises BadSetting."""
    try:
        key = bytes.fromhex(text.strip())
    except ValueError:
        key = b""
    if len(key) != 32:
        raise BadSetting(name=name, reason=f"'{text[:80]}' is not a whole key: 64 hexadecimal digits")
    return key
