"""What all tests share: a data directory that is nobody's, the cast, and both databases."""

import dataclasses
import os
import shutil
import signal
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
from django.conf import settings
from django.contrib.contenttypes.models import ContentType
from django.core.cache import caches
from django.core.management import call_command
from django.db import connections
from django.db.utils import ConnectionHandler

from gateway_site.settings import database as database_settings
from tenants import rate_limits
from tenants.models import Role
from tests.factories import make_admin, make_tenant, make_user
from tests.postgres import Cluster

# One per process, so that workers of xdist share none. pytest-django has loaded the settings by now, so both they and
# the environment, for processes that tests start, are pointed there.
DATA_DIR = Path(tempfile.mkdtemp(prefix="ogw-tests-"))
SQLITE_TEMPLATE = DATA_DIR / "template.sqlite3"
os.environ["DATA_DIR"] = str(DATA_DIR)
settings.DATA_DIR = DATA_DIR
settings.CHANNEL_LAYERS["default"]["CONFIG"]["directory"] = DATA_DIR / "run"
settings.GATEWAY = dataclasses.replace(settings.GATEWAY, spool_dir=DATA_DIR / "spool")
# Each test client loads the middleware anew, and this part of it looks at every static file first, and takes five
# threads a request: more than half of a test's time. Static files are asked of real servers (test_entry_points).
STATIC_FILES = "servestatic.middleware.ServeStaticMiddleware"
settings.MIDDLEWARE.remove(STATIC_FILES)
if "sqlite" in settings.DATABASES["default"]["ENGINE"]:
    # Where a test that pytest-django does not know to use the database would look.
    settings.DATABASES["default"]["NAME"] = str(DATA_DIR / "gateway.sqlite3")
    # Said, because pytest-django takes django_prometheus' engine for one that needs a file per worker of xdist.
    settings.DATABASES["default"].setdefault("TEST", {})["NAME"] = ":memory:"


# A shell ignores Ctrl-C for what it starts in the background, and servers that tests start would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def one_window(monkeypatch):
    """Windows of rate limits end at some second of the clock; here none does: counts do not depend on the moment."""
    monkeypatch.setattr("time.time", lambda: 1_800_000_000.0)


def pytest_unconfigure():
    shutil.rmtree(DATA_DIR, ignore_errors=True)


@pytest.fixture(autouse=True)
def fast_passwords(settings):
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]


@pytest.fixture(autouse=True)
def no_attempts_yet():
    """Sign-ins of one test do not count in the next."""
    caches["ratelimit"].clear()
    rate_limits._local.clear()


# The cast: Alice owns acme, Bob is on her team, Charlie is of another tenant and must not see a thing.


@pytest.fixture
def acme(db):
    return make_tenant("acme")


@pytest.fixture
def other(db):
    return make_tenant("other")


@pytest.fixture
def alice(acme):
    return make_user("alice", tenant=acme, role=Role.OWNER)


@pytest.fixture
def bob(acme):
    return make_user("bob", tenant=acme)


@pytest.fixture
def charlie(other):
    return make_user("charlie", tenant=other, role=Role.OWNER)


@pytest.fixture
def root(db):
    """A superuser."""
    return make_admin("root")


# Both databases.


@pytest.fixture(scope="session")
def django_db_setup(django_db_setup, django_db_blocker):
    """Keeps a copy of the test database as it is after its migrations, which take seconds."""
    with django_db_blocker.unblock(), connections["default"].cursor() as cursor:
        # pytest-django makes none where all tests that were chosen have databases of their own.
        if connections["default"].vendor == "sqlite" and connections["default"].introspection.table_names(cursor):
            cursor.execute("VACUUM INTO %s", [str(SQLITE_TEMPLATE)])
            return
    with django_db_blocker.unblock(), default_connection(f"sqlite:///{SQLITE_TEMPLATE}"):
        call_command("migrate", verbosity=0)


@pytest.fixture(scope="session")
def sqlite_template(django_db_setup):
    """A file with all tables, to copy. Django has made its test databases by then: it would make one for each alias
    that a gateway adds."""
    return SQLITE_TEMPLATE


@pytest.fixture(scope="session")
def postgres():
    """A running cluster. Tests that pause or stop it leave it running."""
    cluster = Cluster()
    try:
        yield cluster.start()
    finally:
        cluster.remove()


@contextmanager
def default_connection(url):
    """Has Django work on another database, in this thread, as if it were the one in the settings."""
    handler = ConnectionHandler({"default": database_settings(url)})
    before, connections["default"] = connections["default"], handler["default"]
    ContentType.objects.clear_cache()
    try:
        yield connections["default"]
    finally:
        connections["default"].close()
        connections["default"] = before
        ContentType.objects.clear_cache()


@pytest.fixture(scope="session")
def migrated_template(postgres, django_db_blocker):
    """The name of a migrated PostgreSQL database to copy."""
    url = postgres.create_database("migrated")
    with django_db_blocker.unblock(), default_connection(url):
        call_command("migrate", verbosity=0)
    return "migrated"


@pytest.fixture
def postgres_url(postgres, migrated_template):
    """A migrated, empty database for one test."""
    name = f"test_{os.urandom(6).hex()}"
    yield postgres.create_database(name, migrated_template)
    postgres.drop_database(name)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def database(request, transactional_db):
    """Runs the test on both databases, with real commits. Ask for it first, before what makes rows."""
    if request.param == "sqlite":
        yield request.param
        return
    url = request.getfixturevalue("postgres_url")
    blocker = request.getfixturevalue("django_db_blocker")
    with blocker.unblock(), default_connection(url):
        yield request.param
