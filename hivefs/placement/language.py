"""The policy language: policy.toml, read strictly. Pure. What the keys mean for a user is in docs/policies.md.

A mistake is answered with its line and column and one sentence, before anything is done with the text. A text of any
content gives a PolicySet or raises BadPolicy, nothing else.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from hivefs.errors import BadPolicy
from hivefs.formats import policy as policy_format
from hivefs.placement.conjunction import Contradiction, conjunction
from hivefs.placement.policy import DEFAULT, Policy
from hivefs.placement.policy_reader import Reader, limits_of
from hivefs.placement.toml_places import places, position

MAX_POLICIES = 256
MAX_PATHS = 4096
MAX_PATH_BYTES = 4096
MAX_PATH_PART = 255
MAX_DOTS = 1000
METADATA = "metadata"
"""The name of the policy of metadata when no policy was named for it: the conjunction. No policy of a user has it."""

_AT = re.compile(r" \(at line (\d+), column (\d+)\)$")


@dataclass(frozen=True, slots=True)
class PolicySet:
    """All that a policy.toml says. ``policies`` always has DEFAULT; ``paths`` are absolute, without a slash at the end
    (except the root); ``metadata_name`` is "" when the metadata must keep all policies in use.
    """

    text: str
    policies: Mapping[str, Policy]
    paths: Mapping[str, str] = field(default_factory=dict)
    metadata_name: str = ""
    blocs: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def for_path(self, path: str) -> str:
        """The name of the policy of an absolute path: that of the longest path at or above it, else DEFAULT."""
        at = path.rstrip("/") or "/"
        while at not in self.paths and at != "/":
            at = at.rpartition("/")[0] or "/"
        return self.paths.get(at, DEFAULT)

    def in_use(self) -> tuple[str, ...]:
        """Names of the policies that something is set to: DEFAULT first, then as in [paths]."""
        return tuple(dict.fromkeys([DEFAULT, *self.paths.values()]))

    def metadata(self) -> Policy:
        """The policy of metadata: it holds the keys of everything, so it keeps the rules of all policies in use at once,
        unless the text names a policy for it. ``parse`` has made sure that this is possible.
        """
        if self.metadata_name:
            return self.policies[self.metadata_name]
        return conjunction([self.policies[name] for name in self.in_use()], METADATA)


def decode(data: bytes) -> str:
    """The text in a file. Raises BadPolicy for what is not UTF-8 or too long."""
    if len(data) > policy_format.MAX_TEXT_BYTES:
        raise BadPolicy(line=1, column=1, reason=f"the text is longer than {policy_format.MAX_TEXT_BYTES >> 10} KiB")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        good = data[: error.start].decode("utf-8-sig")
        line, column = position(good, len(good))
        raise BadPolicy(line=line, column=column, reason=f"the byte 0x{data[error.start]:02x} is not UTF-8") from None


def parse(text: str, default: Policy, *, kept: bool = False) -> PolicySet:
    """Read a policy.toml. What it does not say is as in ``default``, the vault's own. Raises BadPolicy.

    ``kept``: the text is in force. What releases before this one took is taken then: names of networks and subnets that no
    node can be in.
    """
    if len(text.encode("utf-8", "surrogatepass")) > policy_format.MAX_TEXT_BYTES:
        raise BadPolicy(line=1, column=1, reason=f"the text is longer than {policy_format.MAX_TEXT_BYTES >> 10} KiB")
    for number, line in enumerate(text.split("\n"), 1):
        if line.count(".") > MAX_DOTS:  # tomllib takes the square of the parts of a key in time
            raise BadPolicy(line=number, column=1, reason=f"there are more than {MAX_DOTS} dots in a line")
    try:
        data = tomllib.loads(text)
        found = places(text)
    except tomllib.TOMLDecodeError as error:
        raise _syntax(text, str(error)) from None
    except RecursionError:
        raise BadPolicy(line=1, column=1, reason="brackets are nested too deeply") from None
    except ValueError:  # Python converts no number of more than 4300 digits
        raise BadPolicy(line=1, column=1, reason="a number in it is too long") from None
    reader = Reader(text, found, kept)
    reader.only(("policy", "paths", "blocs", "metadata"), data, ())
    blocs = reader.blocs(data)
    tables = reader.table(data, "policy", ())
    if len(tables) > MAX_POLICIES:
        raise reader.wrong(("policy",), f"there are more than {MAX_POLICIES} policies")
    policies = _policies(reader, tables, blocs, default)
    paths = _paths(reader, data, policies)
    named = ""
    if "metadata" in data:
        named = reader.text(data, "metadata", ())
        _known(reader, ("metadata",), named, policies)
    made = PolicySet(text, policies, paths, named, blocs)
    if not named:
        _agree(reader, made)
    for policy in (*policies.values(), made.metadata()):
        _can_be_kept(policy)
    return made


def _can_be_kept(policy: Policy) -> None:
    """The definition goes into the vault's records, where lengths are bounded (docs/formats/policy.md)."""
    try:
        policy_format.to_bytes(policy)
    except ValueError:
        reason = f'"{policy.name}" is longer than can be kept: 4096 names in allow and in deny, with blocs taken apart'
        raise BadPolicy(line=1, column=1, reason=reason) from None


def _syntax(text: str, message: str) -> BadPolicy:
    match = _AT.search(message)
    line, column = (int(match[1]), int(match[2])) if match else position(text, len(text))
    reason = _AT.sub("", message).removesuffix(" (at end of document)")
    return BadPolicy(line=line, column=column, reason=f"this is not TOML: {reason[:1].lower()}{reason[1:]}")


def _policies(
    reader: Reader, tables: Mapping[str, object], blocs: Mapping[str, frozenset[str]], default: Policy
) -> dict[str, Policy]:
    """Each policy after the one that it inherits from, then in the order of the text."""
    made: dict[str, Policy] = {}
    parents: dict[str, str] = {}
    for name, table in tables.items():
        reader.name(("policy", name), name, "a policy")
        if name == METADATA:
            raise reader.wrong(("policy", name), f'"{name}" is the name of what all policies in use ask for together')
        parents[name] = reader.parent(name, table)
    if DEFAULT not in tables:
        made[DEFAULT] = replace(default, name=DEFAULT)
    for name, parent in parents.items():
        if parent and parent not in parents:
            _known(reader, ("policy", name, "inherits"), parent, {**parents, **made})
    for name in parents:
        line: list[str] = []
        at = name
        while at and at not in made:
            if at in line:
                cycle = " -> ".join([*line[line.index(at) :], at])
                raise reader.wrong(("policy", at, "inherits"), f"policies inherit from each other in a circle: {cycle}")
            line.append(at)
            at = parents[at]
        for step in reversed(line):
            base = made[parents[step]] if parents[step] else default
            made[step] = reader.policy(step, tables[step], base, blocs)
    return {name: made[name] for name in ([DEFAULT] if DEFAULT not in tables else []) + list(tables)}


def _known(reader: Reader, at: tuple[str | int, ...], name: str, policies: Mapping[str, object]) -> None:
    if name not in policies:
        raise reader.wrong(at, f'there is no policy "{reader.short(name)}"{reader.meant(name, policies)}', value=True)


def _paths(reader: Reader, data: Mapping[str, object], policies: Mapping[str, Policy]) -> dict[str, str]:
    table = reader.table(data, "paths", ())
    if len(table) > MAX_PATHS:
        raise reader.wrong(("paths",), f"there are more than {MAX_PATHS} paths")
    paths: dict[str, str] = {}
    for path in table:
        at = ("paths", path)
        reason = bad_path(path)
        if reason:
            raise reader.wrong(at, f'the path "{reader.short(path)}" {reason}')
        name = reader.text(table, path, ("paths",))
        _known(reader, at, name, policies)
        plain = path.rstrip("/") or "/"
        if plain in paths:
            raise reader.wrong(at, f'the path "{reader.short(plain)}" has a policy already')
        paths[plain] = name
    return paths


def bad_path(path: str) -> str:
    """What is wrong with a path inside of the drive, as the end of a sentence; "" when nothing is."""
    if not path.startswith("/"):
        return "does not begin with a slash: paths are those inside of the drive, /Photos for instance"
    if any("\ud800" <= c <= "\udfff" for c in path):
        return "is not UTF-8"
    if len(path.encode()) > MAX_PATH_BYTES:
        return f"is longer than {MAX_PATH_BYTES} bytes"
    parts = path[1:].removesuffix("/").split("/") if path != "/" else []
    for part in parts:
        if part in ("", ".", ".."):
            return 'has an empty part, a "." or a ".." in it'
        if "\0" in part:
            return "has a NUL in it"
        if len(part.encode()) > MAX_PATH_PART:
            return f"has a name of more than {MAX_PATH_PART} bytes"
    return ""


def _agree(reader: Reader, made: PolicySet) -> None:
    """The metadata must be able to keep all policies in use."""
    names = made.in_use()
    try:
        made.metadata()
    except Contradiction as error:
        first, second = error.names
        path = next((p for p, name in made.paths.items() if name == second), None)
        at = reader.written(("paths",), path) if path is not None else ("policy", second)
        others = " and those before it" if len(names) > 2 and error.more else ""
        raise reader.wrong(
            at,
            f'the metadata holds the keys of everything, and no place suits "{first}"{others} and "{second}" at once '
            f'({error.reason}); metadata = "{first}" at the top would decide for one of them',
        ) from None


__all__ = ["METADATA", "PolicySet", "bad_path", "decode", "limits_of", "parse"]
