"""Data sets that several files of tests train on."""

import pytest
from tests.core.tasks import marker_dataset, sine_dataset

from sma_core.dataset import PreparedDataset


@pytest.fixture(scope="session")
def sines(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return sine_dataset(tmp_path_factory.mktemp("sines") / "data")


@pytest.fixture(scope="session")
def markers(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return marker_dataset(tmp_path_factory.mktemp("markers") / "data")
