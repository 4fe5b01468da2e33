"""The mark of tests that take a minute or more each: they run where SMA_SLOW=1 is set."""

import os

import pytest

slow = pytest.mark.skipif(
    os.environ.get("SMA_SLOW") != "1", reason="takes a minute or more: set SMA_SLOW=1"
)
