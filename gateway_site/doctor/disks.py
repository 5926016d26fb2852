"""Where data lies: whether it can be written, read by others, and is still there after a restart."""

import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from django.conf import settings
from django.db import connection

from gateway_site.doctor.findings import Finding, note, ok, problem, warning

MOUNTS = Path("/proc/self/mountinfo")
IN_MEMORY = {"tmpfs", "ramfs"}
# The layers of a container: gone when it is made anew.
OF_A_CONTAINER = {"overlay", "aufs"}
OVER_A_NETWORK = {"nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "glusterfs", "ceph"}
SECRETS = ("secret_key", "key_pepper")
LEAST_FREE = 64 << 20


def look_at_data() -> Iterator[Finding]:
    directory: Path = settings.DATA_DIR
    if not directory.is_dir():
        yield problem(f"{directory} is not there.", f"Make it, or set DATA_DIR to another: mkdir -m 700 {directory}")
        return
    if not os.access(directory, os.W_OK | os.X_OK):
        yield problem(
            f"{directory} cannot be written by this user.",
            f"chown it to whoever runs the gateway: chown -R … {directory}",
        )
        return
    if _mode(directory) & 0o007:
        yield warning(
            f"{directory} can be entered by every user of this machine; sessions lie in it.", f"chmod 700 {directory}"
        )
    for path in (directory / name for name in SECRETS):
        if path.exists() and _mode(path) & 0o077:
            yield problem(f"{path} can be read by others.", f"chmod 600 {path}")
    if connection.vendor == "sqlite":
        yield from _kept("The database", Path(str(connection.settings_dict["NAME"])), is_database=True)
    yield ok(f"{directory}, {shutil.disk_usage(directory).free / 1e9:.1f} GB free.")


def look_at_spool() -> Iterator[Finding]:
    """Usage that the database has not taken yet: it must survive a restart, and have room."""
    directory, max_bytes = settings.GATEWAY.spool_dir, settings.GATEWAY.spool_max_bytes
    found = list(_kept("The spool", directory, is_database=False))
    if directory.is_dir() and not os.access(directory, os.W_OK | os.X_OK):
        found.append(problem(f"{directory} cannot be written by this user.", f"chown -R … {directory}"))
    free = shutil.disk_usage(_existing(directory)).free
    if free < LEAST_FREE:
        found.append(
            problem(f"{directory} has {free >> 20} MiB left: calls will be refused.", "Make room, or move SPOOL_DIR.")
        )
    elif free < max_bytes:
        found.append(
            warning(
                f"{directory} has {free >> 20} MiB left, and SPOOL_MAX_BYTES allows {max_bytes >> 20} MiB.",
                "Lower SPOOL_MAX_BYTES, or give the spool a larger disk.",
            )
        )
    quarantine = directory / "quarantine.jsonl"
    if quarantine.exists() and quarantine.stat().st_size:
        found.append(
            warning(
                f"{quarantine} holds records that the database refused.",
                "Each line says why. Mend what it names, then tell whoever bills: they are in no sum.",
            )
        )
    yield from found or [ok(f"{directory}, room for {max_bytes >> 20} MiB.")]


def _kept(what: str, path: Path, *, is_database: bool) -> Iterator[Finding]:
    kind = filesystem_of(_existing(path), MOUNTS.read_text() if MOUNTS.exists() else "")
    variable = "DATA_DIR or DATABASE_URL" if is_database else "SPOOL_DIR"
    if kind in IN_MEMORY:
        yield problem(f"{what} lies in memory ({path} is on {kind}): a restart loses it.", f"Set {variable} to a disk.")
    elif kind in OF_A_CONTAINER:
        yield problem(
            f"{what} lies in the container itself ({path}): it goes with it.",
            f"Mount a volume, and set {variable} to it.",
        )
    elif kind in OVER_A_NETWORK and is_database:
        yield problem(
            f"{what} is SQLite on a network disk ({kind}), where its locks do not hold.",
            "Use a local disk, or PostgreSQL: DATABASE_URL=postgres://…",
        )
    elif kind in OVER_A_NETWORK:
        yield warning(
            f"{what} lies on a network disk ({kind}): each call waits for it.", "Set SPOOL_DIR to a local disk."
        )
    elif not kind:
        yield note(f"{what}: on what kind of disk {path} lies cannot be seen on this system.")


def filesystem_of(path: Path, mounts: str) -> str:
    """The type of the filesystem that a path lies on, as the kernel names it; empty where it cannot be told.

    `mounts` is /proc/self/mountinfo; its lines end with "- type source options". A later mount hides an earlier one.
    """
    found, deepest = "", -1
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        point = Path(before.split()[4].encode().decode("unicode_escape"))
        if (path == point or point in path.parents) and len(point.parts) >= deepest:
            found, deepest = after.split()[0], len(point.parts)
    return found


def _existing(path: Path) -> Path:
    path = path.resolve()
    while not path.exists():
        path = path.parent
    return path


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)
