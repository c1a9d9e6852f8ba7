"""policy.toml: what it means, what it refuses and where, and that no text whatever gives anything else."""

from __future__ import annotations

import re
import tomllib
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hivefs.errors import BadPolicy
from hivefs.formats.policy import from_bytes, to_bytes
from hivefs.model.node import Evidence
from hivefs.placement.arithmetic import holds_balanced, impossible, least_authorities
from hivefs.placement.blocs import BLOCS
from hivefs.placement.countries import COUNTRIES
from hivefs.placement.language import METADATA, decode, parse
from hivefs.placement.language_text import default_text, with_path
from hivefs.placement.policy import AT_ONCE, Policy
from hivefs.placement.toml_places import places, position
from hivefs.placement.verifier import Rules

OWN = Policy(4, 8)
PAGE = Path(__file__).parents[2] / "docs" / "policies.md"
DESIGN = """
[policy.default]
code = "auto"                       # or "4/8"
no_reassembly = { family = "jurisdiction", coalition = 1 }
no_hostage    = { family = "jurisdiction", lose = 1, slack = 1 }
max_per = { operator = 2, subnet = 1 }
evidence = "claimed"                # the weakest class accepted

[policy.family-photos]
inherits = "default"
allow = ["EU", "CH", "NO"]          # every authority of the node must be inside
deny = ["US"]                       # as machine, operator or parent: US ownership is enough to exclude

[paths]
"/Photos" = "family-photos"
"""


def refused(text: str) -> tuple[int, int, str]:
    """Where and why a text is refused."""
    with pytest.raises(BadPolicy) as caught:
        parse(text, OWN)
    sentence = str(caught.value)
    assert "\n" not in sentence and sentence.endswith(".") and len(sentence) < 400
    return caught.value.line, caught.value.column, caught.value.reason


def test_what_the_words_mean() -> None:
    made = parse(DESIGN, OWN)
    default, photos = made.policies["default"], made.policies["family-photos"]
    assert default == Policy(
        0, 0, (Rules("jurisdiction", 1, 1, 1),), (("operator", 2), ("subnet", 1)), Evidence.CLAIMED, auto=True
    )
    assert (photos.rules, photos.max_per, photos.auto) == (default.rules, default.max_per, True)
    assert photos.allow == tuple(sorted(BLOCS["EU"] | {"CH", "NO"})) and photos.deny == ("US",)
    found = {p: made.for_path(p) for p in ("/", "/Photos", "/Photos/", "/Photos/2024/a.jpg", "/Photoshop", "/x/Photos")}
    assert [p for p, name in found.items() if name == "family-photos"] == ["/Photos", "/Photos/", "/Photos/2024/a.jpg"]
    assert made.in_use() == ("default", "family-photos")


def test_without_a_text_all_is_as_the_vault_says() -> None:
    made = parse("", OWN)
    assert dict(made.policies) == {"default": OWN} and made.metadata() == OWN and made.for_path("/a/b") == "default"
    again = parse(default_text(OWN), Policy(2, 3))
    assert again.policies["default"] == OWN


def test_what_is_not_said_is_inherited_and_a_guarantee_ends_only_in_words() -> None:
    text = '[policy.a]\ncode = "5/9"\n[policy.b]\ninherits = "a"\nno_hostage = false\n[policy.c]\ninherits = "b"\n'
    made = parse(text + 'code = "1/2"\nno_reassembly = false\n', OWN).policies
    assert made["a"].rules == OWN.rules
    assert made["b"].rules == (Rules("jurisdiction", 1, 0, 0),) and (made["b"].needed, made["b"].total) == (5, 9)
    assert made["c"].rules == (Rules("jurisdiction", 0, 0, 0),) and made["default"] == OWN


def test_families_of_their_own_rules() -> None:
    text = '[policy.a]\nno_reassembly = [{ family = "operator", coalition = 2 }, {}]\nno_hostage = { family = "asn" }'
    rules = parse(text, OWN).policies["a"].rules
    assert rules == (Rules("jurisdiction", 1, 0, 0), Rules("operator", 2, 0, 0), Rules("asn", 0, 1, 0))


@pytest.mark.parametrize(
    ("text", "line", "column", "words"),
    [
        ("a = 1", 1, 1, "not known here"),
        ("x = [", 1, 6, "not TOML"),
        ('[policy.x]\ncode = "4/8"\ncode = "4/8"', 3, 13, "not TOML"),
        ('[policy.x]\nevidense = "claimed"', 2, 1, "did you mean evidence"),
        ('[policy.x]\n  evidence = "sure"', 2, 14, "class of evidence"),
        ("[policy.x]\ncode = 4", 2, 8, "a text in quotes, not a number"),
        ('[policy.x]\ncode = "8/4"', 2, 8, "not a code"),
        ('[policy.x]\ncode = "0/0"', 2, 8, "not a code"),
        ('[policy.x]\ncode = "100/256"', 2, 8, "not a code"),
        ('[policy.x]\ncode = "1/3"', 2, 8, "whole copy"),
        ('[policy.x]\ncode = "4/5"\nno_hostage = { slack = 3 }', 2, 8, "n >= 8"),
        ('[policy.x]\ncode = "3/9"\nno_reassembly = { coalition = 3 }', 2, 8, "k >= 4"),
        ("[policy.x]\nno_hostage = { lose = 0 }", 2, 23, "from 1 to"),
        ("[policy.x]\nno_hostage = { lose = true }", 2, 23, "a whole number, not a truth value"),
        ("[policy.x]\nno_hostage = true", 2, 14, "false for no such guarantee"),
        ('[policy.x]\nno_hostage = [{}, { family = "jurisdiction" }]', 2, 19, "twice"),
        ('[policy.x]\nno_hostage = { family = "state" }', 2, 25, "no family of authorities"),
        ("[policy.x]\nmax_per = { operators = 2 }", 2, 13, "did you mean operator"),
        ("[policy.x]\nmax_per = { operator = 0 }", 2, 24, "from 1 to"),
        ('[policy.x]\nallow = ["DE", "XX"]', 2, 16, "neither a country"),
        ('[policy.x]\nallow = ["DE", "UK"]', 2, 16, "say GB"),
        ('[policy.x]\ndeny = ["DE", "asn:abc"]', 2, 15, "a number from 1 to 4294967295"),
        ('[policy.x]\ndeny = [\n "asn:4294967296"]', 3, 2, '"asn:4294967296" is no network'),
        ('[policy.x]\ndeny = ["asn:0"]', 2, 9, "no network"),
        ('[policy.x]\nallow = ["subnet:10.0.0.0/33"]', 2, 10, '"subnet:10.0.0.0/33" is no subnet that a node can be in'),
        ('[policy.x]\nallow = ["subnet:10.0.0.0/16"]', 2, 10, "of /24 or an IPv6 network of /48"),
        ('[policy.x]\ndeny = ["subnet:192.0.2.1/24"]', 2, 9, "no subnet"),
        ('[policy.x]\ndeny = ["subnet:192.0.2.0"]', 2, 9, "no subnet"),
        ('[policy.x]\ndeny = ["subnet:hello"]', 2, 9, "no subnet"),
        ('[policy.x]\ndeny = ["subnet:2001:db8::/64"]', 2, 9, "no subnet"),
        ('[policy.x]\nallow = ["de"]', 2, 10, "capitals: DE"),
        ("[policy.x]\nallow = []", 2, 9, "no node"),
        ('[policy.x]\nallow = ["owner:me"]', 2, 10, "no family"),
        ('[policy.x]\nallow = ["DE", "FR"]', 2, 1, "at least 3 jurisdictions and only 2"),
        ('[policy.x]\ncode = "2/3"\nallow = ["operator:a", "operator:b"]\nmax_per = { operator = 1 }', 2, 8, "operators"),
        ('[policy.x]\nallow = ["DE"]\ndeny = ["CH", "DE"]', 3, 15, "both allowed and denied"),
        ('[policy.x]\nallow = ["DE", "FR"]\ndeny = ["EU"]', 3, 1, "every jurisdiction that is allowed is denied"),
        ('[policy.x]\nallow = ["EU"]\nno_hostage = { family = "bloc" }', 3, 1, "bloc EU"),
        ("[policy.x]\nrepair_at = 4", 2, 13, "more than 4 and less than 8"),
        ('[policy.x]\ncode = "auto"\nrepair_at = 4', 3, 13, "written out"),
        ('[policy.x]\nrepair_at = "late"', 2, 13, '"auto" or a whole number'),
        ("[policy.x]\nrepair_at = 255", 2, 13, "more than 4 and less than 8"),
        ('[policy.x]\ninherits = "y"', 2, 12, 'no policy "y"'),
        ('[policy.a]\ninherits = "b"\n[policy.b]\ninherits = "a"', 2, 1, "circle: a -> b -> a"),
        ('[policy.a]\ninherits = "a"', 2, 1, "circle: a -> a"),
        ('[policy."é"]\ncode = "auto"', 1, 1, "without accents"),
        ("[policy.metadata]", 1, 1, "is the name of what"),
        ("[policy]\nx = 1", 2, 1, "policies are tables"),
        ("policy = [1]", 1, 10, "a table, not a list"),
        ("[[policy]]", 1, 1, "a table, not a list"),
        ('[paths]\n"Photos" = "default"', 2, 1, "begin with a slash"),
        ('[paths]\n"/a/../b" = "default"', 2, 1, '".."'),
        ('[paths]\n"/a//b" = "default"', 2, 1, "empty part"),
        ('[paths]\n"/a" = "default"\n"/a/" = "default"', 3, 1, "has a policy already"),
        ('[paths]\n"/a" = "nobody"', 2, 1, 'no policy "nobody"'),
        ('metadata = "nobody"', 1, 12, 'no policy "nobody"'),
        ('[blocs]\nEU = ["DE"]', 2, 1, "bloc that there is"),
        ('[blocs]\nDE = ["DE"]', 2, 1, "country"),
        ('[blocs]\nmine = ["DE",\n  "ZZ"]', 3, 3, "neither a country"),
        ("[blocs]\nmine = []", 2, 8, "at least one country"),
    ],
)
def test_what_is_refused_and_where(text: str, line: int, column: int, words: str) -> None:
    found = refused(text)
    assert words in found[2], found
    if words != 'no policy "nobody"':
        assert found[:2] == (line, column), found
    else:
        assert found[0] == line, found


def test_networks_are_taken_as_nodes_have_them() -> None:
    words = ["asn:AS64500", "asn:064501", "subnet:192.0.2.0/24", "subnet:2001:DB8:0::/48", "operator:AS1"]
    made = parse(f"[policy.default]\ndeny = {words}".replace("'", '"'), OWN).policies["default"]
    assert made.deny == ("asn:64500", "asn:64501", "operator:AS1", "subnet:192.0.2.0/24", "subnet:2001:db8::/48")


def test_a_text_that_was_put_into_force_before_networks_were_looked_at_stays_readable() -> None:
    text = '[policy.default]\ndeny = ["asn:abc", "subnet:10.0.0.0/16", "asn:AS7"]'
    assert parse(text, OWN, kept=True).policies["default"].deny == ("asn:7", "asn:abc", "subnet:10.0.0.0/16")
    assert refused(text)[:2] == (2, 9)
    with pytest.raises(BadPolicy):  # nothing else is let through
        parse('[policy.default]\ndeny = ["asn:"]', OWN, kept=True)


def test_bytes_that_are_no_text() -> None:
    with pytest.raises(BadPolicy) as caught:
        decode('[paths]\n"/é'.encode() + b"\xff")
    assert (caught.value.line, caught.value.column) == (2, 4) and "0xff" in str(caught.value)
    with pytest.raises(BadPolicy):
        decode(b"#" * (300 << 10))
    assert decode("\ufeff# x".encode()) == "# x"
    for text in ("x = " + "[" * 5000, "x = " + "9" * 5000, "#" * (300 << 10), "a." * 120_000 + "b = 1"):
        refused(text)


def test_names_for_countries_of_ones_own() -> None:
    text = '[blocs]\nhome = ["DE", "AT", "CH", "EFTA"]\n[policy.x]\nallow = ["home", "jurisdiction:FR", "bloc:EAEU"]\n'
    assert parse(text, OWN).policies["x"].allow == tuple(sorted({"DE", "AT", "FR"} | BLOCS["EFTA"] | BLOCS["EAEU"]))
    assert not set(BLOCS) & COUNTRIES and all(members <= COUNTRIES for members in BLOCS.values())
    assert len(BLOCS["EU"]) == 27 and len(COUNTRIES) == 250


def test_the_page_names_the_blocs_that_are_known() -> None:
    said = re.search(r"Blocs that are known: ([A-Z, -]+)\.", PAGE.read_text())
    assert said is not None and said[1].split(", ") == list(BLOCS)


# ---- metadata --------------------------------------------------------------------------------------------------------


def test_metadata_keeps_all_policies_in_use() -> None:
    text = """
    [policy.default]
    code = "4/8"
    max_per = { operator = 2 }
    [policy.a]
    code = "10/20"
    no_reassembly = { coalition = 2 }
    no_hostage = { slack = 3 }
    allow = ["EU", "CH"]
    deny = ["operator:acme"]
    evidence = "registry"
    max_per = { operator = 3, asn = 1 }
    [policy.b]
    inherits = "a"
    allow = ["DE", "FR", "CH", "NO", "PL", "IT"]
    deny = ["HU"]
    no_hostage = { family = "operator" }
    [policy.unused]
    allow = ["BR", "AR", "CL"]
    [paths]
    "/a" = "a"
    "/b" = "b"
    """
    made = parse(text, OWN).metadata()
    assert made.name == METADATA
    assert made.rules == (Rules("jurisdiction", 2, 1, 3), Rules("operator", 0, 1, 0))
    assert made.max_per == (("asn", 1), ("operator", 2)) and made.evidence == Evidence.REGISTRY
    assert made.allow == ("CH", "DE", "FR", "IT", "PL") and made.deny == ("HU", "operator:acme")
    assert (made.needed, made.total, made.auto) == (10, 20, False)
    assert parse('metadata = "unused"\n' + text, OWN).metadata().allow == ("AR", "BR", "CL")


def test_metadata_that_no_place_suits() -> None:
    apart = """
[policy.x]
allow = ["EU"]
[policy.y]
allow = ["CH", "NO", "US"]
[paths]
"/a" = "x"
"/b/" = "y"
"""
    line, column, reason = refused(apart)
    assert (line, column) == (8, 1) and '"x" and "y"' in reason and 'metadata = "x"' in reason
    assert parse('metadata = "x"\n' + apart, OWN).metadata().name == "x"
    two = (
        '[policy.x]\nallow = ["DE", "FR", "CH"]\n[policy.y]\nallow = ["DE", "FR", "US"]\n[paths]\n"/a" = "x"\n"/b" = "y"\n'
    )
    assert "at least 3 jurisdictions and only 2" in refused(two)[2]


# ---- the arithmetic -----------------------------------------------------------------------------------------------------


def spread(shares: int, authorities: int, most: int) -> list[tuple[int, ...]]:
    """All ways to put shares under authorities, fullest first."""
    if authorities == 0:
        return [()] if shares == 0 else []
    return [(x, *rest) for x in range(min(shares, most), -1, -1) for rest in spread(shares - x, authorities - 1, x)]


def test_the_arithmetic_is_that_of_all_distributions() -> None:
    """Every small case against every distribution of the shares over disjoint authorities."""
    for total, authorities in product(range(1, 9), range(1, 7)):
        every = spread(total, authorities, total)
        for needed, c, a, slack, cap in product(range(1, total + 1), range(3), range(3), range(2), (0, 1, 2)):
            any_holds = any(
                (not cap or x[0] <= cap)
                and (not c or sum(x[:c]) < needed)
                and (not a or total - sum(x[:a]) >= needed + slack)
                for x in every
            )
            assert holds_balanced(needed, total, Rules("jurisdiction", c, a, slack), cap, authorities) == any_holds


def test_the_table_of_the_design() -> None:
    assert least_authorities(2, 3, Rules()) == 3 and least_authorities(3, 5, Rules("jurisdiction", 2, 2)) == 5
    assert [least_authorities(k, n, Rules()) for k, n in ((16, 30), (20, 32), (29, 80), (10, 30), (20, 60), (3, 10))] == [
        3,
        3,
        3,
        4,
        4,
        5,
    ]
    assert impossible(Policy(2, 3), {"jurisdiction": 2}) and not impossible(Policy(2, 3), {"jurisdiction": 3})
    assert impossible(Policy(0, 0, (Rules("jurisdiction", 2, 2),), auto=True), {"jurisdiction": 5}) == ""
    assert impossible(Policy(0, 0, (Rules("jurisdiction", 2, 2, 254),), auto=True), {}) != ""
    assert impossible(Policy(0, 0, (Rules("jurisdiction", 2, 2, 250),), auto=True), {}) == ""
    assert impossible(Policy(0, 0, (Rules("jurisdiction", 2, 2, 251),), auto=True), {}) != ""


# ---- any text -----------------------------------------------------------------------------------------------------------

PIECES = st.sampled_from(
    [
        *re.findall(r'"[^"\n]*"|[\w-]+|[^\w\s]|\s', DESIGN),
        '"""',
        "'''",
        "[[",
        "]]",
        "{",
        "}",
        "\\",
        "\r\n",
        "é",
        "\0",
        "1e9",
    ]
)


@st.composite
def mutants(draw: st.DrawFn) -> str:
    """The design's example with some pieces cut, moved or put in."""
    text = DESIGN
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(text)))
        text = text[:at] + draw(PIECES | st.text(max_size=3)) + text[at + draw(st.integers(0, 12)) :]
    return text


def never_anything_else(text: str) -> None:
    """It is read or refused at a place that is in the text."""
    try:
        made = parse(text, OWN)
    except BadPolicy as error:
        lines = text.split("\n")
        assert 1 <= error.line <= len(lines) + 1 and error.column >= 1
        assert error.line > len(lines) or error.column <= len(lines[error.line - 1]) + 2
        return
    assert made.metadata() and all(from_bytes(to_bytes(policy)) == policy for policy in made.policies.values())


@settings(max_examples=300, deadline=None)
@given(mutants())
def test_mutated_texts(text: str) -> None:
    never_anything_else(text)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    try:
        text = decode(data)
    except BadPolicy:
        return
    never_anything_else(text)


@pytest.mark.slow
@settings(max_examples=30_000, deadline=None)
@given(mutants())
def test_many_mutated_texts(text: str) -> None:
    never_anything_else(text)


def test_places_of_all_kinds_of_values() -> None:
    text = (
        "a.b = 'x' # c\n\"q\\u0041\" = [1, [2, 3], {k = \"}\"}, # ]\n 4,\n]\n[t . 'u']\nd = 1979-05-27 07:32:00\n"
        'm = """a\n"] """\n[[l]]\nx = 1\n[[l]]\nx.y = {}\n[l.s]\nz = true\n'
    )
    tomllib.loads(text)
    found = places(text)

    def at(*path: str | int) -> str:
        return text[found[path].value : found[path].end]

    assert at("a", "b") == "'x'" and at("qA", 1, 1) == "3" and at("qA", 2, "k") == '"}"' and at("qA", 3) == "4"
    assert at("t", "u", "d") == "1979-05-27 07:32:00" and at("t", "u", "m") == '"""a\n"] """'
    assert at("l", 0, "x") == "1" and at("l", 1, "x", "y") == "{}" and at("l", 1, "s", "z") == "true"
    assert position(text, found["l", 1, "s", "z"].key) == (14, 1)


# ---- editing ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "path", "name", "after"),
    [
        ("", "/a", "default", '[paths]\n"/a" = "default"\n'),
        ("# mine", "/a", "default", '# mine\n\n[paths]\n"/a" = "default"\n'),
        (
            '[paths] # p\n"/b" = "x" # b\n\n[policy.x]\n',
            "/a",
            "x",
            '[paths] # p\n"/b" = "x" # b\n"/a" = "x"\n\n[policy.x]\n',
        ),
        ('[paths]\n"/a/" = "x" # b\n[policy.x]\n', "/a", "default", '[paths]\n"/a/" = "default" # b\n[policy.x]\n'),
        ('paths = { "/b" = "x" }\n[policy.x]\n', "/a", "x", 'paths = { "/a" = "x", "/b" = "x" }\n[policy.x]\n'),
        ("paths = {}\n[policy.x]\n", "/a", "x", 'paths = { "/a" = "x" }\n[policy.x]\n'),
        ('paths."/b" = "x"\n[policy.x]\n', "/a", "x", 'paths."/b" = "x"\npaths."/a" = "x"\n[policy.x]\n'),
        ("[paths]\r\n[policy.x]\r\n", '/q"\n', "x", '[paths]\r\n"/q\\"\\n" = "x"\r\n[policy.x]\r\n'),
        ('[paths]\n"/a" = "x" # b\n"/b" = "x"\n[policy.x]\n', "/a", None, '[paths]\n"/b" = "x"\n[policy.x]\n'),
    ],
)
def test_a_path_is_set_and_all_else_stays(before: str, path: str, name: str | None, after: str) -> None:
    assert with_path(before, path, name) == after
    assert parse(after, OWN).paths.get(path, None) == name


def test_what_cannot_be_edited_says_so() -> None:
    with pytest.raises(BadPolicy, match="by hand"):
        with_path('paths = { "/a" = "x", "/b" = "x" }\n[policy.x]\n', "/a", None)


# ---- the page for users ---------------------------------------------------------------------------------------------


def examples() -> list[str]:
    """All TOML on docs/policies.md."""
    return re.findall(r"```toml\n(.*?)```", PAGE.read_text(), re.DOTALL)


def test_every_example_of_the_page_is_read() -> None:
    texts = examples()
    assert len(texts) >= 6
    for text in texts:
        made = parse(text, OWN)
        assert made.metadata()
        assert set(made.in_use()) >= set(made.policies) - {"default"}, "an example has a policy that it does not use"


def test_what_could_not_be_kept_is_refused_before_it_is() -> None:
    """Blocs are taken apart, and the metadata has the words of all: each definition must be readable again."""
    many = ", ".join(f'"operator:o{number}"' for number in range(4090))
    for text in (
        f'[policy.default]\ndeny = ["EU", {many}]\n',
        f'[policy.default]\ndeny = [{many}]\n[policy.b]\ndeny = ["EU"]\n[paths]\n"/b" = "b"\n',
    ):
        with pytest.raises(BadPolicy, match="longer than can be kept"):
            parse(text, OWN)


def test_when_repair_begins_is_inherited_while_it_fits() -> None:
    text = """
    [policy.default]
    code = "4/8"
    repair_at = 6
    [policy.same]
    deny = ["US"]
    inherits = "default"
    [policy.other]
    inherits = "default"
    code = "16/30"
    [policy.never]
    inherits = "default"
    repair_at = 0
    [policy.still]
    inherits = "never"
    code = "auto"
    [policy.formula]
    inherits = "never"
    repair_at = "auto"
    """
    made = parse(text, Policy(4, 6)).policies
    assert {name: policy.repair_at for name, policy in made.items()} == {
        "default": 6, "same": 6, "other": 0, "never": AT_ONCE, "still": AT_ONCE, "formula": 0,
    }  # fmt: skip
    for policy in (made["default"], replace(made["never"], name="default"), replace(made["formula"], name="default")):
        assert parse(default_text(policy), Policy(4, 6)).policies["default"] == policy
