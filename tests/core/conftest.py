"""What several files of tests share: data sets to train on, and signatures as users have them."""

from collections.abc import Iterator

import pytest
from tests.core.shapes import unchecked_shapes
from tests.core.tasks import marker_dataset, sine_dataset

from sma_core.dataset import PreparedDataset


@pytest.fixture(scope="session")
def sines(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return sine_dataset(tmp_path_factory.mktemp("sines") / "data")


@pytest.fixture(scope="session")
def markers(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return marker_dataset(tmp_path_factory.mktemp("markers") / "data")


@pytest.fixture
def unchecked_signatures() -> Iterator[None]:
    """For tests that make the same calls hundreds of times, or calls that a check would refuse."""
    with unchecked_shapes():
        yield
