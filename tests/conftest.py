"""What all tests share: one thread, and no folders left behind, because checkpoints fill a disk."""

import logging
import shutil
from collections.abc import Iterator

import pytest
import torch

# The files that take longest, the longest first.
LONGEST = (
    "test_study_runs",
    "test_readme",
    "test_trainer",
    "test_distributed",
    "test_fuzz",
    "test_faults",
    "test_resume",
    "test_run",
    "test_shipped_configs",
    "test_docs",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Hand the longest files out first, so that no process is alone with one at the end."""
    ranks = {name: rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path.stem, len(ranks)))


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Small models gain nothing from more, and another number of threads gives other bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", autouse=True)
def own_logging() -> Iterator[None]:
    """A command that logs to the console does so in no other module's tests."""
    yield
    logging.getLogger("med_sslal").handlers.clear()


@pytest.fixture(scope="module", autouse=True)
def module_folders(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """Remove what a module's fixtures made, unless one of its tests failed."""
    base, failed = tmp_path_factory.getbasetemp(), request.session.testsfailed
    before = set(base.iterdir())
    yield
    if request.session.testsfailed > failed:
        return
    for path in set(base.iterdir()) - before:
        if path.is_symlink():
            path.unlink()
        else:
            shutil.rmtree(path)
