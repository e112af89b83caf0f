"""Passwords are in no text that is shown."""

from __future__ import annotations

import pytest

from cornerstone.data.storage import Location
from cornerstone.errors import CornerstoneError
from cornerstone.secrets import redacted, redacted_values

HOME, SHOWN = "s3://KEY:correct-horse@bucket/home", "s3://KEY:***@bucket/home"


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("postgresql://u:p@h/db?password=abc", "postgresql://u:***@h/db?password=***"),
        (
            "postgresql://h/db?user=u&sslpassword=abc&sslmode=require",
            "postgresql://h/db?user=u&sslpassword=***&sslmode=require",
        ),
        ("mysql://h/db?passwd=a%26b#x: refused", "mysql://h/db?passwd=***#x: refused"),
        ("mssql+pyodbc:///?odbc_connect=UID%3Du%3BPWD%3Dabc", "mssql+pyodbc:///?odbc_connect=***"),
        ("s3://b/home?Secret_Key=abc&region=eu", "s3://b/home?Secret_Key=***&region=eu"),
        (
            "https://a.blob/x?sv=1&sig=ab%2Bc 'https://h/?X-Amz-Signature=abc'",
            "https://a.blob/x?sv=1&sig=*** 'https://h/?X-Amz-Signature=***'",
        ),
        ("s3://b/home?endpoint_override=h:9000&scheme=http", "s3://b/home?endpoint_override=h:9000&scheme=http"),
        ("sqlite:////m.db?timeout=5&design=a&token_limit=64", "sqlite:////m.db?timeout=5&design=a&token_limit=64"),
    ],
)
def test_passwords_of_a_query_are_redacted_and_other_options_are_not(given, shown):
    assert redacted(given) == shown
    assert redacted(shown) == shown


def test_every_text_of_a_value_is_redacted():
    assert redacted(f"{HOME} and {HOME}") == f"{SHOWN} and {SHOWN}"
    value = {"a": [HOME, 1, None], "b": {"c": (HOME,)}, "d": 0.5}
    assert redacted_values(value) == {"a": [SHOWN, 1, None], "b": {"c": [SHOWN]}, "d": 0.5}


def test_an_errors_message_is_redacted():
    with pytest.raises(CornerstoneError) as caught:
        Location("unknown://KEY:correct-horse@bucket/home").resolve()
    assert "unknown://KEY:***@bucket/home" in str(caught.value)
    assert "correct-horse" not in str(caught.value)
