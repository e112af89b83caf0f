"""What messages take from other libraries' errors."""

from __future__ import annotations

import pytest

from cornerstone.errors import first_line


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("no such file.\nTraceback ..."), "no such file"),
        (TimeoutError(), "TimeoutError"),
        (OSError("  \n"), "OSError"),
        (ConnectionError("s3://KEY:SECRET@bucket is closed"), "s3://KEY:***@bucket is closed"),
    ],
)
def test_the_first_line_of_an_error(error, said):
    assert first_line(error) == said
