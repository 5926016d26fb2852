"""The helper that other tests lean on: a cluster that can hang, go and come back."""

import psycopg
import pytest

from tests.postgres import Cluster

pytestmark = pytest.mark.postgres


@pytest.fixture
def cluster():
    cluster = Cluster()
    yield cluster
    cluster.remove()


def test_a_cluster_hangs_goes_and_comes_back_with_its_data(cluster):
    cluster.start()
    url = cluster.create_database("one")
    with psycopg.connect(url, autocommit=True) as connection:
        assert connection.info.server_version // 10000 == 15
        connection.execute("CREATE TABLE kept (number int)")
        cluster.pause()
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(url, connect_timeout=2)
        cluster.resume()
        assert connection.execute("SELECT count(*) FROM kept").fetchone() == (0,)
    cluster.stop()
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(url, connect_timeout=2)
    cluster.start()
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT count(*) FROM kept").fetchone() == (0,)
    cluster.drop_database("one")


def test_a_paused_cluster_can_be_removed(cluster):
    cluster.start()
    cluster.pause()
    cluster.remove()
    assert not cluster.directory.exists()
