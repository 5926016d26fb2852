"""The gateway itself, on uvicorn behind our protocol, or on Daphne behind our drain."""

import argparse
import dataclasses
import logging
import os
from typing import Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.core.management.base import BaseCommand
from django.db import DatabaseError, connection
from django.db.migrations.executor import MigrationExecutor

from gateway_site import start
from gateway_site.server import ServerOptions, run, tls
from gateway_site.server.listeners import can_listen
from tenants import first_run
from tenants.management.administration import Refused

logger = logging.getLogger(__name__)

# The application, and what lives as long as a process of it.
GATEWAY = ("gateway_site.asgi:application", "gateway_site.asgi:gateway")
SHARED = ["gateway_site.preloaded"]  # by its workers


class Command(BaseCommand):
    help = "Runs the gateway until SIGTERM or Ctrl-C; calls in flight may finish first."
    requires_system_checks = ["security", "urls"]

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--host", default=settings.HOST, help="Address to listen on (default: %(default)s).")
        parser.add_argument("--port", type=int, default=settings.PORT, help="Port (default: %(default)s).")
        parser.add_argument(
            "--admin-port",
            type=int,
            default=settings.ADMIN_PORT,
            help="The pages are on this port, and on no other. Goes before ADMIN_PORT.",
        )
        parser.add_argument(
            "--listen",
            "-listen",
            metavar="[HOST]:PORT",
            type=_listening_address,
            help="Both at once; without a host all addresses. Goes before --host and --port.",
        )
        parser.add_argument(
            "--upstream",
            "-upstream",
            metavar="URL",
            default="",
            help="The Ollama server that the backend “default” is to be. Goes before OLLAMA_UPSTREAM and its kin.",
        )
        parser.add_argument(
            "--open", action="store_true", help="Let this machine, and no other, call without a key; stays so."
        )
        parser.add_argument(
            "--cache-ttl",
            "-cache-ttl",
            metavar="SECONDS",
            type=_seconds,
            help="How long answers are kept. Goes before CACHE_TTL_SECONDS.",
        )
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
        host, port = options["listen"] or (host, port)
        further = [each for each in (settings.METRICS_PORT, options["admin_port"]) if each]
        if port == settings.METRICS_PORT:
            raise Refused("METRICS_PORT is the gateway's own port. Leave it out, or choose another.")
        if options["admin_port"] in (port, settings.METRICS_PORT) and options["admin_port"]:
            raise Refused("The port of the pages is taken by calls or metrics. Leave it out, or choose another.")
        if workers > 1 and not settings.REDIS_URL and not settings.LIMITS_PER_WORKER:
            raise Refused(
                f"{workers} workers count limits together in Redis: set REDIS_URL. LIMITS_PER_WORKER=True accepts that "
                f"each of them allows the whole amount of every limit."
            )
        if options["server"] == "daphne":
            check_for_daphne(workers, options["tls_cert"])
        check_certificate(options["tls_cert"], options["tls_key"])
        if options["cache_ttl"]:
            keep_answers_for(options["cache_ttl"])
        prepare_database()
        prepare_rules(options["upstream"], host, port, open_to_loopback=options["open"])
        if options["open"]:
            self.stderr.write(start.OPEN_WARNING)
        lead_links_here(port, options["admin_port"])
        try:
            chosen = ServerOptions(
                host=host,
                port=port,
                further_ports=tuple(further),
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
            raise Refused(str(exc)) from None
        # Where another program has the port, the link would lead to that one.
        if can_listen(chosen) and (link := link_to_first_run()):
            self.stdout.write(
                f"Nobody has an account yet. Make the first one here (the link works once):\n\n  {link}\n"
            )
            self.stdout.flush()
        code = _serve_on_daphne(chosen) if options["server"] == "daphne" else run(*GATEWAY, chosen, SHARED)
        if code:
            raise SystemExit(code)


def check_certificate(certificate: str | None, key: str | None) -> None:
    if not certificate and not key:
        return
    if not certificate or not key:
        raise Refused("--tls-cert and --tls-key: give both, or neither.")
    try:
        warning = tls.check(certificate, key)
    except tls.BadCertificate as exc:
        raise Refused(str(exc)) from None
    if warning:
        logger.warning("%s", warning)


def _listening_address(text: str) -> tuple[str, int]:
    try:
        return start.listening_address(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from None


def _seconds(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: use a whole number of seconds, 1 or more")
    return int(text)


def keep_answers_for(seconds: int) -> None:
    """As if it were in the environment, which is where further workers look."""
    os.environ.pop("CACHE_TTL_SECONDS_FILE", None)
    os.environ["CACHE_TTL_SECONDS"] = str(seconds)
    settings.GATEWAY = dataclasses.replace(settings.GATEWAY, cache_ttl_seconds=seconds)


def prepare_rules(upstream: str, host: str, port: int, *, open_to_loopback: bool) -> None:
    """Writes what the environment, the flags and the first start ask for into the tables."""
    try:
        start.take_over_environment(upstream, host, port)
        start.seed_aliases()
        if open_to_loopback:
            start.open_to_loopback()
    except ImproperlyConfigured as exc:
        raise Refused(str(exc)) from None
    except DatabaseError as exc:
        logger.warning("What this start was to set up is not set up; start again when the database answers (%s)", exc)
    finally:
        connection.close()


def lead_links_here(port: int, admin_port: int) -> None:
    """What pages print leads to these ports, in further workers too, where no SITE_URL says otherwise."""
    for name, value in (("PORT", port), ("ADMIN_PORT", admin_port)):
        os.environ.pop(f"{name}_FILE", None)
        os.environ[name] = str(value)
    settings.PORT, settings.ADMIN_PORT = port, admin_port
    if not settings.GATEWAY.site_url:
        settings.SITE_URL = f"http://localhost:{admin_port or port}"


def link_to_first_run() -> str | None:
    try:
        return first_run.new_link()
    except DatabaseError as exc:
        logger.warning("Whether there is an account is not known; start again when the database answers (%s)", exc)
        return None
    finally:
        connection.close()


def check_for_daphne(workers: int, certificate: str | None) -> None:
    if workers > 1:
        raise Refused("Daphne runs in one process: leave out --workers, or use --server uvicorn.")
    if certificate:
        raise Refused("--server daphne does not speak TLS: put a proxy in front, or use --server uvicorn.")


def _serve_on_daphne(options: ServerOptions) -> int:
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
            raise Refused(f"The database is not up to date ({names}). Run 'manage.py migrate' first.")
        call_command("migrate", verbosity=0)
    except DatabaseError as exc:
        # It may come later; until then calls are refused with 503, and the spool is kept.
        logger.warning("The database does not answer yet: %s", exc)
    finally:
        connection.close()
