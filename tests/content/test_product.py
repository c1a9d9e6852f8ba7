"""The vector library and zfec make the same bytes, and nothing but zfec is believed about the code."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import zfec
from hypothesis import given, settings
from hypothesis import strategies as st

from hivefs.content import coding, product

pytestmark = pytest.mark.skipif(not product.available(), reason=f"{product.LIBRARY} is missing (package libisal2)")


@pytest.fixture(name="forgotten", autouse=True)
def _forgotten() -> Iterator[None]:
    coding._matrix.cache_clear()
    yield
    coding._matrix.cache_clear()


def by_zfec(needed: int, total: int, data: list[bytes]) -> list[bytes]:
    return [bytes(block) for block in zfec.Encoder(needed, total).encode(data, list(range(needed, total)))]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_parity_is_that_of_zfec_to_the_byte(data: st.DataObject) -> None:
    total = data.draw(st.integers(1, 60))
    needed = data.draw(st.integers(1, total))
    size = data.draw(st.integers(1, 700))
    blocks = [data.draw(st.binary(min_size=size, max_size=size)) for _ in range(needed)]
    assert coding.encode(needed, total, blocks) == by_zfec(needed, total, blocks)


@pytest.mark.parametrize(("needed", "total"), [(1, 256), (128, 256), (255, 256), (10, 16), (20, 40)])
def test_the_largest_codes_and_sizes(needed: int, total: int) -> None:
    data = [bytes([number]) * 4097 for number in range(needed)]
    assert coding.encode(needed, total, data) == by_zfec(needed, total, data)
    assert coding._matrix(needed, total, tuple(range(needed)), tuple(range(needed, total))) is not None


def test_without_the_library_zfec_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    data = [bytes([number]) * 1000 for number in range(4)]
    expected = coding.encode(4, 7, data)
    lost = {0: data[0], 4: expected[0], 5: expected[1], 6: expected[2]}
    monkeypatch.setattr(product, "_library", None)
    coding._matrix.cache_clear()
    monkeypatch.setattr(product.Matrix, "times", lambda *_: pytest.fail("the library was used"))
    assert coding.encode(4, 7, data) == expected
    assert coding.decode(4, 7, lost) == data
    with pytest.raises(RuntimeError):
        product.Matrix([b"x"])


def test_a_library_that_multiplies_wrongly_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    times = product.Matrix.times

    def wrong(self: product.Matrix, blocks: list[bytes]) -> list[bytes]:
        made = times(self, blocks)
        return [*made[:-1], made[-1][:-1] + bytes([made[-1][-1] ^ 1])]

    data = [bytes([number]) * 1000 for number in range(4)]
    monkeypatch.setattr(product.Matrix, "times", wrong)
    assert coding.encode(4, 7, data) == by_zfec(4, 7, data)
    assert coding._matrix(4, 7, (0, 1, 2, 3), (4, 5, 6)) is None


@pytest.mark.parametrize("name", ["libisal-is-not-there.so.2", "libc.so.6"])
def test_a_library_that_is_missing_or_another_is_no_library(name: str) -> None:
    assert product._load(name) is None


@pytest.mark.parametrize("blocks", [[b"abc"], [b"abc", b"ab"], [b"", b""], [b"abc", b"abc", b"abc"]])
def test_blocks_that_do_not_fit_are_refused(blocks: list[bytes]) -> None:
    with pytest.raises(ValueError, match="one length"):
        product.Matrix([b"\x01\x02"]).times(blocks)


def test_inputs_may_be_views_and_stay_as_they_were() -> None:
    first, second = bytearray(b"x" * 100), memoryview(b"y" * 100)
    made = product.Matrix([b"\x01\x01", b"\x01\x00"]).times([first, second])
    assert made == [bytes(120 ^ 121 for _ in range(100)), b"x" * 100] and first == b"x" * 100
    assert made[1] is not first and all(type(block) is bytes for block in made)
