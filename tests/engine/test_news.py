"""What the engine fetches of a node's roster and statements when something of it has changed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pytest
import trio
import trio.testing

from hivefs.daemon import engine_news
from hivefs.daemon.engine_news import News
from hivefs.errors import ConnectionLost
from hivefs.formats.attestation import sign_statement
from hivefs.model.attestation import Statement
from hivefs.model.node import RosterEntry
from hivefs.testing.memory_hive import MemoryClient, MemoryHive


class Heard:
    """Stands for the engine's book and its evidence."""

    def __init__(self) -> None:
        self.entries: list[RosterEntry] = []
        self.statements: list[Statement] = []

    async def learn(self, entries: Iterable[RosterEntry]) -> int:
        self.entries += entries
        return 0

    async def hear(self, statements: Iterable[Statement]) -> int:
        self.statements += statements
        return 0


class Client(MemoryClient):
    """Counts questions for everything; ``old`` ends the conversation at the question for ranges, as old nodes do."""

    def __init__(self, hive: MemoryHive) -> None:
        super().__init__(hive, hive.nodes[0])
        self.old = False
        self.whole = 0

    async def get_statements(self, take: Any, *, timeout: float = 30) -> None:
        self.whole += 1
        await super().get_statements(take, timeout=timeout)

    async def ranges(self, statements: bool, *, timeout: float = 30) -> list[bytes]:
        if self.old:
            raise ConnectionLost(peer="old", reason="bad request")
        return await super().ranges(statements, timeout=timeout)


def said(hive: MemoryHive, number: int, sequence: int) -> Statement:
    node = hive.nodes[number]
    return sign_statement(node.seed, Statement(node.node_id, sequence, (("parent", f"P{sequence}"),), ()))


def play(body: Any) -> None:
    async def bounded() -> None:
        hive, heard = MemoryHive(per_country=10), Heard()
        hive.statements = [said(hive, number, 1) for number in range(40)]
        news = News(heard.learn, heard)  # type: ignore[arg-type]
        with trio.fail_after(10_000):
            await body(hive, heard, news, Client(hive))

    trio.run(bounded, clock=trio.testing.MockClock(autojump_threshold=0))


def ids(found: Sequence[Statement]) -> list[bytes]:
    return [one.node_id for one in found]


def test_only_the_ranges_in_which_something_changed_are_fetched() -> None:
    async def body(hive: MemoryHive, heard: Heard, news: News, client: Client) -> None:
        await news.greeted(client)  # type: ignore[arg-type]
        assert len(heard.entries) == 40 and len(heard.statements) == 40 and client.whole == 1
        await news.compare(client)  # type: ignore[arg-type]
        assert len(heard.statements) == 40 and hive.ranges_given == []
        hive.statements[7] = said(hive, 7, 2)
        await news.compare(client)  # type: ignore[arg-type]
        first = hive.nodes[7].node_id[0]
        assert hive.ranges_given == [(True, first)] and hive.statements[7] in heard.statements[40:]
        assert all(node_id[0] == first for node_id in ids(heard.statements[40:])) and client.whole == 1
        del hive.statements[7]
        await news.compare(client)  # type: ignore[arg-type]
        await news.compare(client)  # type: ignore[arg-type]
        assert hive.ranges_given == [(True, first)] * 2, "what is gone is a change too, and is looked at once"
        assert len(heard.entries) == 40

    play(body)


def test_a_new_conversation_fetches_what_changed_meanwhile_and_after_an_hour_everything() -> None:
    async def body(hive: MemoryHive, heard: Heard, news: News, client: Client) -> None:
        await news.greeted(client)  # type: ignore[arg-type]
        hive.statements[3] = said(hive, 3, 2)
        again = Client(hive)
        await news.greeted(again)  # type: ignore[arg-type]
        assert again.whole == 0 and hive.ranges_given == [(True, hive.nodes[3].node_id[0])]
        await trio.sleep(engine_news.WHOLE_SECONDS + 1)
        await news.greeted(again)  # type: ignore[arg-type]
        assert again.whole == 1 and len(heard.entries) == 80

    play(body)


def test_much_that_changed_at_once_comes_in_parts_and_all_of_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(hive: MemoryHive, heard: Heard, news: News, client: Client) -> None:
        await news.greeted(client)  # type: ignore[arg-type]
        hive.statements = [said(hive, number, 2) for number in range(40)]
        monkeypatch.setattr(engine_news, "MOST_BYTES", 1)
        ranges = {node.node_id[0] for node in hive.nodes}
        for number in range(1, len(ranges) + 1):
            await news.compare(client)  # type: ignore[arg-type]
            assert len(hive.ranges_given) == number
        assert set(ids(heard.statements[40:])) == {node.node_id for node in hive.nodes}
        await news.compare(client)  # type: ignore[arg-type]
        assert len(hive.ranges_given) == len(ranges) and client.whole == 1

    play(body)


def test_a_node_that_knows_no_ranges_gives_everything_and_is_seldom_asked() -> None:
    async def body(hive: MemoryHive, heard: Heard, news: News, client: Client) -> None:
        client.old = True
        await news.greeted(client)  # type: ignore[arg-type]
        hive.statements[7] = said(hive, 7, 2)
        with pytest.raises(ConnectionLost):
            await news.compare(client)  # type: ignore[arg-type]
        await news.greeted(client)  # type: ignore[arg-type]
        assert hive.statements[7] in heard.statements[40:] and client.whole == 2
        hive.statements[8] = said(hive, 8, 2)
        await news.compare(client)  # type: ignore[arg-type]
        assert hive.statements[8] in heard.statements[80:] and client.whole == 3
        await trio.sleep(engine_news.FIRST_SECONDS + 1)
        hive.statements[9] = said(hive, 9, 2)
        client.old = False
        await news.compare(client)  # type: ignore[arg-type]
        assert client.whole == 3 and len(hive.ranges_given) == 1

    play(body)


def test_of_many_nodes_those_heard_of_last_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(hive: MemoryHive, heard: Heard, news: News, client: Client) -> None:
        monkeypatch.setattr(engine_news, "MOST_REMEMBERED", 2)
        for number in range(4):
            other = Client(hive)
            other._node = hive.nodes[number]
            other.node_id = hive.nodes[number].node_id
            await news.greeted(other)  # type: ignore[arg-type]
        assert list(news._heard) == [hive.nodes[number].node_id for number in (2, 3)]

    play(body)
