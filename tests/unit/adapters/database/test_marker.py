"""What says on which server a home's database is."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapters.database.backend import DatabaseFault
from adapters.database.marker import Location, Marker
from adapters.database.urls import is_same_place, place_of


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("postgresql://user:secret@db.example/hatrack", "postgresql://db.example:5432/hatrack"),
        ("postgres://u@DB.example:5433/hatrack?sslmode=verify-full", "postgresql://db.example:5433/hatrack"),
        ("postgresql://u:secret@[::1]/h", "postgresql://[::1]:5432/h"),
        ("postgresql:///h?host=/run/PG", "postgresql:///run/PG:5432/h"),
        ("postgresql://u@%2Frun%2Fpg/h?password=secret", "postgresql:///run/pg:5432/h"),
        ("postgresql://u@/h?host=a:1&host=b", "postgresql://a:1,b:5432/h"),
        ("postgresql:///h?host=a,b&port=6000", "postgresql://a:6000,b:6000/h"),
        ("postgresql:///h", "postgresql://localhost:5432/h"),
    ],
)
def test_a_place_is_told_without_user_and_password(url: str, place: str) -> None:
    assert place_of(url) == place
    assert is_same_place(place, place_of(url))


def test_a_place_is_the_same_while_a_host_and_the_database_are() -> None:
    place = "postgresql://a:5432,b:5432/h"
    assert is_same_place(place, "postgresql://b:5432,c:5432/h")
    assert not is_same_place(place, "postgresql://c:5432/h")
    assert not is_same_place(place, "postgresql://a:5433/h")
    assert not is_same_place(place, "postgresql://a:5432/other")


def test_this_machine_has_many_names() -> None:
    urls = ("postgresql:///h", "postgresql://127.0.0.1/h", "postgresql://[::1]:5432/h", "postgresql://localhost./h")
    places = [place_of(url) for url in (*urls, "postgresql:///h?host=/var/run/postgresql")]
    assert all(is_same_place(places[0], place) for place in places)
    assert not is_same_place(places[0], place_of("postgresql://localhost:5433/h"))
    assert not is_same_place(places[0], place_of("postgresql://elsewhere/h"))


def test_a_marker_that_cannot_be_read_is_a_reason_to_stop(tmp_path: Path) -> None:
    marker = Marker(tmp_path / "hatrack.db", "hatrack")
    assert marker.disagreement(None) is None
    location = Location("postgresql://db:5432/h", "abc")
    marker.write(location)
    assert marker.read() == location
    assert [path.name for path in tmp_path.iterdir()] == ["database.json"]
    for damaged in (
        "",
        "[]",
        '{"place": "x"}',
        '{"place": "x", "installation": "\'; DROP"}',
        '{"place": 1, "installation": 2}',
    ):
        marker.path.write_text(damaged)
        with pytest.raises(DatabaseFault, match="cannot be read"):
            marker.read()
        assert "cannot be read" in str(marker.disagreement(None))
