"""The gateway itself, on uvicorn behind our protocol, or on Daphne behind our drain."""

import argparse
import logging
from typing import Any

from django.conf import settings
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError
from django.db import DatabaseError, connection
from django.db.migrations.executor import MigrationExecutor

from gateway_site.server import ServerOptions, run

logger = logging.getLogger(__name__)

# The application, and what lives as long as a process of it.
GATEWAY = ("gateway_site.asgi:application", "gateway_site.asgi:gateway")


class Command(BaseCommand):
    help = "Runs the gateway until SIGTERM or Ctrl-C; calls in flight may finish first."
    requires_system_checks = ["security", "urls"]

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--host", default="127.0.0.1", help="Address to listen on (default: %(default)s).")
        parser.add_argument("--port", type=int, default=settings.PORT, help="Port (default: %(default)s).")
        parser.add_argument("--workers", type=int, default=1, help="Processes (default: %(default)s).")
        parser.add_argument(
            "--server",
            choices=["uvicorn", "daphne"],
            default="uvicorn",
            help="Daphne costs several times more per call, and protects less (docs/deployment.md).",
        )
        parser.add_argument("--tls-cert", help="PEM file of the certificate and its chain.")
        parser.add_argument("--tls-key", help="PEM file of its key.")

    def handle(self, *, host: str, port: int, workers: int, **options: Any) -> None:
        prepare_database()
        try:
            chosen = ServerOptions(
                host=host,
                port=port,
                workers=workers,
                tls_certificate=options["tls_cert"],
                tls_key=options["tls_key"],
                trusted_proxies=settings.TRUSTED_PROXIES,
                drain_seconds=settings.GATEWAY.drain_seconds,
                max_connections=settings.MAX_CONNECTIONS,
                max_connections_per_address=settings.MAX_CONNECTIONS_PER_ADDRESS,
                stall_seconds=settings.STALL_SECONDS,
            )
        except ValueError as exc:
            raise CommandError(str(exc)) from None
        code = _serve_on_daphne(chosen) if options["server"] == "daphne" else run(*GATEWAY, chosen)
        if code:
            raise SystemExit(code)


def _serve_on_daphne(options: ServerOptions) -> int:
    if options.workers > 1:
        raise CommandError("Daphne runs in one process: leave out --workers, or use --server uvicorn.")
    if options.tls_certificate:
        raise CommandError("--server daphne does not speak TLS: put a proxy in front, or use --server uvicorn.")
    from gateway_site.daphne_server.server import run as run_daphne  # Twisted takes over the loop

    return run_daphne(*GATEWAY, options, settings.GATEWAY.max_body_bytes)


def prepare_database() -> None:
    """Makes the tables of an empty database; refuses one whose tables are older than this program."""
    try:
        executor = MigrationExecutor(connection)
        pending = executor.migration_plan(executor.loader.graph.leaf_nodes())
        if not pending:
            return
        if executor.loader.applied_migrations:
            names = ", ".join(f"{migration.app_label}.{migration.name}" for migration, _ in pending[:3])
            raise CommandError(f"The database is not up to date ({names}). Run 'manage.py migrate' first.")
        call_command("migrate", verbosity=0)
    except DatabaseError as exc:
        # It may come later; until then calls are refused with 503, and the spool is kept.
        logger.warning("The database does not answer yet: %s", exc)
    finally:
        connection.close()
