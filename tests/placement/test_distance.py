"""Distances, the circles of countries, and what a round-trip time refutes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hivefs.errors import BadSetting
from hivefs.placement.distance import apart_km, least_km, place_of, reach_km, refutes
from hivefs.placement.places import circles

BERLIN, SINGAPORE, NEW_YORK = place_of("52.5,13.4"), place_of("1.35,103.8"), place_of("40.7,-74.0")
CITIES = {
    "DE": (52.5, 13.4), "FR": (48.9, 2.35), "CH": (46.9, 7.4), "IS": (64.1, -21.9), "US": (47.6, -122.3),
    "RU": (55.8, 37.6),
    "CL": (-53.2, -70.9), "NZ": (-36.8, 174.8), "ZA": (-33.9, 18.4), "JP": (43.1, 141.4), "ES": (28.1, -15.4),
    "PT": (37.7, -25.7), "IT": (38.1, 13.4), "NO": (69.6, 18.9), "CA": (62.5, -114.4), "AU": (-31.9, 115.9),
    "BR": (-8.1, -34.9), "IN": (8.5, 77.0), "CN": (43.8, 87.6), "SG": (1.35, 103.8), "MT": (35.9, 14.5), "LI": (47.1, 9.5),
    "LU": (49.6, 6.1), "GB": (57.1, -2.1), "FI": (66.5, 25.7), "GR": (35.3, 25.1), "KZ": (43.2, 76.9), "MX": (32.5, -117.0),
}  # fmt: skip


@pytest.mark.parametrize("country", CITIES)
def test_cities_lie_in_the_circles_of_their_countries(country: str) -> None:
    assert least_km([(*CITIES[country], 0.0)], country) == 0.0


def test_overseas_parts_may_say_either_code() -> None:
    reunion = [(-20.9, 55.5, 0.0)]
    assert least_km(reunion, "FR") == least_km(reunion, "RE") == 0.0 < least_km(reunion, "DE")


def test_distances_are_those_of_a_globe() -> None:
    assert apart_km((52.52, 13.405, 0), (40.713, -74.006, 0)) == pytest.approx(6385, abs=15)
    assert apart_km((0, 179, 0), (0, -179, 0)) == pytest.approx(222.4, abs=1)
    assert apart_km((90, 0, 0), (-90, 0, 0)) == pytest.approx(20015, abs=1)
    assert reach_km(0.001) == 100.0


@pytest.mark.parametrize(
    ("place", "country", "ms", "refuted"),
    [
        (BERLIN, "US", 10, True),  # within 1000 km of Berlin, and the nearest of the USA is some 5000 away
        (BERLIN, "US", 90, False),
        (BERLIN, "DE", 0.1, False),
        (BERLIN, "PL", 1, False),
        (BERLIN, "SG", 20, True),
        (BERLIN, "IS", 3, True),
        (SINGAPORE, "DE", 30, True),
        (SINGAPORE, "MY", 1, False),
        (NEW_YORK, "CH", 10, True),
        (BERLIN, "XX", 0.01, False),  # of a country that is not known nothing is said
        ((), "US", 0.01, False),  # nor by a machine of which it is not known where it is
    ],
)
def test_what_a_round_trip_refutes(
    place: tuple[tuple[float, float, float], ...], country: str, ms: float, refuted: bool
) -> None:
    assert refutes(place, country, ms / 1000) is refuted


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(CITIES)), st.floats(-90, 90), st.floats(-180, 180), st.floats(1.0, 3.0), st.floats(0, 0.2))
def test_an_honest_node_is_never_refuted(
    country: str, latitude: float, longitude: float, detour: float, busy: float
) -> None:
    """Wherever the client is: light on the way there and back, detours and a busy machine only add to it."""
    here, there = (latitude, longitude, 0.0), (*CITIES[country], 0.0)
    seconds = 2 * apart_km(here, there) / 200_000 * detour + busy
    assert not refutes([here], country, seconds + 1e-9)


def test_places_are_coordinates_or_countries() -> None:
    assert place_of("de") == circles("DE") and place_of(" 1.5 , -2 ") == ((1.5, -2.0, 50.0),)
    for wrong in ("", "Berlin", "XX", "91,0", "0,181", "1,2,3", "nan,0", "a,b", "inf,0"):
        with pytest.raises(BadSetting):
            place_of(wrong)


def test_there_are_nearly_all_countries_and_their_circles_are_no_larger_than_they_must_be() -> None:
    from hivefs.placement.places import _all

    table = _all()
    assert len(table) > 240 and all(150 < radius <= 1060 for found in table.values() for *_, radius in found)
