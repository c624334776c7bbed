"""Settings of the laws."""

from collections.abc import Iterator

import pytest

from harness.laws.lab import one_thread


@pytest.fixture(scope="package", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield
