"""What a measured round-trip time says of a place: it can refute one, never prove it. Pure.

Light in fibre covers 200 km in a millisecond (a refractive index of 1.47 gives 204), so what answers within t is at most
t * 100 km/ms away: the way goes there and back. A relay in between makes t longer, a busy machine too; nothing makes it
shorter. A node that is nearer than any part of the country that is claimed can be is not in that country.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import asin, cos, radians, sin, sqrt

from hivefs.errors import BadSetting
from hivefs.placement.places import Circle, circles

KM_PER_MS = 200.0
EARTH_KM = 6371.0
UNSURE_KM = 50.0
"""How far a machine may be from the coordinates that its user gave for it."""


def place_of(text: str) -> tuple[Circle, ...]:
    """Where a machine is: "LATITUDE,LONGITUDE" in degrees, or a country of two letters. Raises BadSetting."""
    name = "--place"
    if "," not in text:
        found = circles(text.strip())
        if not found:
            raise BadSetting(name=name, reason=f"'{text[:40]}' is neither LATITUDE,LONGITUDE nor a country of two letters")
        return found
    try:
        latitude, longitude = (float(part) for part in text.split(","))
    except ValueError:
        raise BadSetting(name=name, reason=f"'{text[:40]}' is not two numbers such as 52.5,13.4") from None
    if not (-90 <= latitude <= 90 and -180 <= longitude <= 180):
        raise BadSetting(name=name, reason="a latitude is from -90 to 90, a longitude from -180 to 180 degrees")
    return ((latitude, longitude, UNSURE_KM),)


def apart_km(one: Circle, other: Circle) -> float:
    """The least distance of two circles on a sphere (haversine formula); 0 when they touch."""
    a, b, c, d = map(radians, (one[0], one[1], other[0], other[1]))
    h = sin((c - a) / 2) ** 2 + cos(a) * cos(c) * sin((d - b) / 2) ** 2
    return max(0.0, 2 * EARTH_KM * asin(min(1.0, sqrt(h))) - one[2] - other[2])


def least_km(place: Sequence[Circle], country: str) -> float:
    """How far the nearest point of a country is at least; 0 when the country or the place is not known."""
    return min((apart_km(here, there) for here in place for there in circles(country)), default=0.0)


def refutes(place: Sequence[Circle], country: str, seconds: float) -> bool:
    """Whether what answers within so many seconds cannot be in that country."""
    return least_km(place, country) > reach_km(seconds)


def reach_km(seconds: float) -> float:
    """How far away what answers within so many seconds is at most."""
    return seconds * 1000 * KM_PER_MS / 2
