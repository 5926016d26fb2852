"""What calls would meet: in a process that serves them, or as far as the tables tell."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from proxy.admission import Admission
from proxy.configuration import Configuration
from proxy.credential_failures import CredentialFailures
from proxy.errors import Refusal, Unavailable
from proxy.fleet import Fleet
from proxy.fleet.state import BackendState, InstalledModel, WarmModel
from proxy.limits import Limits
from proxy.models import BackendReport, WorkerReport
from proxy.rules_watch import tables_now
from proxy.snapshot import Backend, Snapshot
from proxy.upstream.wire import Pool

if TYPE_CHECKING:
    from proxy.runtime import Runtime


@dataclass(frozen=True, slots=True)
class World:
    """`serves`: whether `fleet`, `limits` and `failures` are those that calls meet, and not what reports say."""

    snapshot: Snapshot
    admission: Admission
    configuration: Configuration
    fleet: Fleet
    limits: Limits
    failures: CredentialFailures
    now: Callable[[], float]
    serves: bool
    obstacle: Refusal | None = None  # what no call passes now
    is_recording: bool = True
    notes: Sequence[str] = ()

    def with_limits(self, limits: Limits) -> "World":
        return replace(self, limits=limits)


def world_in(runtime: "Runtime") -> World | None:
    """That of a process that serves calls; None before it has rules. To be used in its loop."""
    if runtime.snapshot is None:
        return None
    return World(
        snapshot=runtime.snapshot,
        admission=runtime.admission,
        configuration=runtime.configuration,
        fleet=runtime.fleet,
        limits=runtime.limits,
        failures=runtime.credential_failures,
        now=runtime.now,
        serves=True,
        obstacle=_obstacle(runtime),
        is_recording=runtime.ledger.is_writable,
    )


def _obstacle(runtime: "Runtime") -> Refusal | None:
    try:
        runtime.check_open()
        runtime.rules()
    except Unavailable as refusal:
        return refusal
    return None


def world_of_tables(configuration: Configuration, now: Callable[[], float]) -> World:
    """That of a process which serves no calls. Asks the database."""
    tables = tables_now(configuration.time_zone)
    snapshot = Snapshot(tables, now())
    limits = Limits(configuration.time_zone, now)
    limits.know(tables.recorded)
    workers = WorkerReport.objects.running().count()
    notes = [
        "Asked of the tables, not of a running gateway: what limits count in memory, which slots are free, who waits "
        "in line and which addresses are throttled for wrong keys is not known here."
    ]
    if not workers:
        notes.append("No worker of the gateway has reported lately. Start one with: manage.py serve")
    return World(
        snapshot=snapshot,
        admission=Admission(configuration.auth_header, configuration.key_pepper, configuration.key_pepper_fallbacks),
        configuration=configuration,
        fleet=_reported_fleet(configuration, tables.backends),
        limits=limits,
        failures=CredentialFailures(configuration.failed_credentials_per_minute),
        now=now,
        serves=False,
        notes=notes,
    )


def _reported_fleet(configuration: Configuration, backends: Sequence[Backend]) -> Fleet:
    """What the probes of the workers told last; what is too old counts as not answering."""
    fleet = Fleet(configuration)
    reports = {report.backend_id: report for report in BackendReport.objects.all()}
    for backend in backends:
        # Nothing is sent.
        state = BackendState(backend, cast("Pool", None))
        fleet.states[backend.id] = state
        if (report := reports.get(backend.id)) is not None:
            _believe(state, report)
    fleet.look_around()
    return fleet


def _believe(state: BackendState, report: BackendReport) -> None:
    state.version, state.problem, state.probed = report.version, report.problem, True
    state.answered = report.is_current and report.state == BackendReport.State.UP
    state.models = {item["name"]: _installed(item) for item in report.models}
    state.warm = {item["name"]: WarmModel(item.get("context", 0), {}) for item in report.warm}


def _installed(item: dict[str, Any]) -> InstalledModel:
    is_remote = bool(item.get("remote"))
    told = {"capabilities": item.get("capabilities", []), "remote_model": item["name"] if is_remote else ""}
    return InstalledModel(item.get("digest", ""), item.get("context", 0), told, is_remote)
