"""Passwords are in no text that is shown."""

from __future__ import annotations

import pytest

from cornerstone.data.storage import Location
from cornerstone.errors import CornerstoneError
from cornerstone.secrets import redacted, redacted_values

HOME, SHOWN = "s3://KEY:correct-horse@bucket/home", "s3://KEY:***@bucket/home"


def test_every_text_of_a_value_is_redacted():
    assert redacted(f"{HOME} and {HOME}") == f"{SHOWN} and {SHOWN}"
    value = {"a": [HOME, 1, None], "b": {"c": (HOME,)}, "d": 0.5}
    assert redacted_values(value) == {"a": [SHOWN, 1, None], "b": {"c": [SHOWN]}, "d": 0.5}


def test_an_errors_message_is_redacted():
    with pytest.raises(CornerstoneError) as caught:
        Location("unknown://KEY:correct-horse@bucket/home").resolve()
    assert "unknown://KEY:***@bucket/home" in str(caught.value)
    assert "correct-horse" not in str(caught.value)
