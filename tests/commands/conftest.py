"""What the tests of pages share: a browser."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support import browser
from support.browser import Browser


@pytest.fixture(scope="module")
def window() -> Iterator[Browser]:
    if browser.missing():
        pytest.skip(browser.missing())
    with browser.launched() as found:
        yield found
