"""Waits that endpoints ask for."""

import datetime
import email.utils

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routerjax.endpoints import retry_after


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "3"}, 3.0),
        ({"retry-after-ms": "250", "Retry-After": "3"}, 0.25),
        ({"retry-after-ms": "soon", "Retry-After": "3"}, 3.0),
        ({"Retry-After": "Sun, 06 Nov 1994 08:49:37 GMT"}, None),
        ({"Retry-After": "Sunday, 06-Nov-94 08:49:37 GMT"}, None),
        ({"Retry-After": "-1"}, None),
        ({"Retry-After": "1e9"}, None),
        ({"Retry-After": "nan"}, None),
        ({"Retry-After": "later"}, None),
        ({"Retry-After": "Fri, 31 Dec 9999 23:59:59 GMT"}, None),
        ({"Retry-After": "Mon, 01 Jan 99999999999999999999 00:00:00 GMT"}, None),
        ({}, None),
    ],
)
def test_numbers_and_dates(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers) == seconds


@pytest.mark.parametrize("zone", [datetime.UTC, datetime.timezone(datetime.timedelta(hours=-7))])
def test_a_date_is_waited_for(zone: datetime.tzinfo) -> None:
    date = datetime.datetime.now(zone) + datetime.timedelta(seconds=90)
    wait = retry_after({"Retry-After": email.utils.format_datetime(date)})
    assert wait is not None
    assert 80 < wait <= 90
    without_zone = email.utils.format_datetime(date.astimezone(datetime.UTC).replace(tzinfo=None))
    assert without_zone.endswith("-0000")
    assert 80 < (retry_after({"Retry-After": without_zone}) or 0) <= 90


@given(st.one_of(st.text(), st.text(alphabet="0123456789 :,-+JanMonGMT")))
def test_no_header_is_an_error(text: str) -> None:
    wait = retry_after({"Retry-After": text})
    assert wait is None or 0 <= wait < 1e6
