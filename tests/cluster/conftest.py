"""The cluster that the tests of a session share."""

import pytest

from tests.cluster.cluster import Cluster, reason_for_no_slurm


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    """A running two-node Slurm; the test is skipped, with the reason, where none can be started."""
    if reason := reason_for_no_slurm():
        pytest.skip(reason)
    running = Cluster(tmp_path_factory.mktemp("slurm") / "cluster")
    yield running
    running.stop()
