"""Triggers with which the database itself says that the rules changed, whoever changed them: form, update() or SQL."""

from django.db import connections

# table → columns whose change matters; None = all. A sign-in changes last_login, which is no rule.
WATCHED: dict[str, tuple[str, ...] | None] = {
    "tenants_tenant": None,
    "tenants_user": ("is_active", "username"),
    "tenants_apikey": None,
    "tenants_iprule": None,
    "tenants_limit": None,
    "proxy_backend": None,
    "proxy_cachepurge": None,
    "proxy_cachesettings": None,
    "proxy_callcancellation": None,
    "proxy_modelalias": None,
    "proxy_defaultmodels": ("chat_model", "embedding_model"),
    "proxy_modelpolicy": None,
    "proxy_passthroughroute": None,
    "usage_price": None,
}

CHANNEL = "ollama_gateway_config"


def install_after_migrate(using: str, **_: object) -> None:
    install(using)


def install(using: str = "default") -> None:
    """Makes all triggers anew. Tables that do not exist yet are left for the migrate that makes them."""
    connection = connections[using]
    with connection.cursor() as cursor:
        tables = set(connection.introspection.table_names(cursor))
        if "proxy_configrevision" not in tables:
            return
        if connection.vendor == "postgresql":
            cursor.execute(_POSTGRESQL_FUNCTION)
        for table, columns in WATCHED.items():
            if table in tables:
                for statement in _STATEMENTS[connection.vendor](table, columns):
                    cursor.execute(statement)
                # What changed while its triggers were missing was not heard.
                cursor.execute(_RAISING[connection.vendor](f"'{table}'"))


def missing(using: str = "default") -> list[str]:
    """Names of triggers that should be there and are not."""
    connection = connections[using]
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute("SELECT tgname FROM pg_trigger WHERE NOT tgisinternal AND tgenabled <> 'D'")
        else:
            cursor.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'")
        present = {name for (name,) in cursor.fetchall()}
        events = ("change", "truncate") if connection.vendor == "postgresql" else ("insert", "update", "delete")
    return [name for table in WATCHED for event in events if (name := f"ogw_{table}_{event}") not in present]


def _raising(table: str, now: str, greatest: str) -> str:
    """The statement that raises the revision of a table: to the clock's milliseconds, so that none is ever used again
    after its row was lost, and upwards in any case."""
    higher = f"{greatest}(proxy_configrevision.revision + 1, excluded.revision)"
    return (
        f'INSERT INTO proxy_configrevision ("table", revision) VALUES ({table}, {now}) '  # noqa: S608 - constants
        f'ON CONFLICT ("table") DO UPDATE SET revision = {higher}'
    )


def _raising_postgresql(table: str) -> str:
    return _raising(table, "(extract(epoch FROM clock_timestamp()) * 1000)::bigint", "greatest")


def _raising_sqlite(table: str) -> str:
    return _raising(table, "CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)", "max")


# Deferred to the commit, so that transactions that change rules do not wait for each other while they are open. The
# row trigger fires for each row; the note in the transaction makes all but the first of a bulk update cost nothing.
_POSTGRESQL_FUNCTION = f"""
CREATE OR REPLACE FUNCTION ogw_raise_revision() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    note text := 'ogw.' || TG_TABLE_NAME;
    this_transaction text := txid_current()::text;
BEGIN
    IF coalesce(current_setting(note, true), '') = this_transaction THEN
        RETURN NULL;
    END IF;
    PERFORM set_config(note, this_transaction, true);
    {_raising_postgresql("TG_TABLE_NAME")};
    PERFORM pg_notify('{CHANNEL}', TG_TABLE_NAME);
    RETURN NULL;
END $$
"""


def _postgresql(table: str, columns: tuple[str, ...] | None) -> list[str]:
    update = f"UPDATE OF {', '.join(columns)}" if columns else "UPDATE"
    return [
        f"DROP TRIGGER IF EXISTS ogw_{table}_change ON {table}",
        f"CREATE CONSTRAINT TRIGGER ogw_{table}_change AFTER INSERT OR DELETE OR {update} ON {table} "
        "DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION ogw_raise_revision()",
        f"DROP TRIGGER IF EXISTS ogw_{table}_truncate ON {table}",
        f"CREATE TRIGGER ogw_{table}_truncate AFTER TRUNCATE ON {table} "
        "FOR EACH STATEMENT EXECUTE FUNCTION ogw_raise_revision()",
    ]


def _sqlite(table: str, columns: tuple[str, ...] | None) -> list[str]:
    statements = []
    for event in ("insert", "update", "delete"):
        of = f" OF {', '.join(columns)}" if columns and event == "update" else ""
        statements += [
            f"DROP TRIGGER IF EXISTS ogw_{table}_{event}",
            f"CREATE TRIGGER ogw_{table}_{event} AFTER {event.upper()}{of} ON {table} BEGIN "
            f"""{_raising_sqlite(f"'{table}'")}; END""",
        ]
    return statements


_STATEMENTS = {"postgresql": _postgresql, "sqlite": _sqlite}
_RAISING = {"postgresql": _raising_postgresql, "sqlite": _raising_sqlite}
