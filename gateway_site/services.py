"""What starts the gateway with the machine: a unit of systemd, a property list of launchd, a task of Windows. Texts
only; the command install_service prints them, or puts them where the system looks."""

import plistlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

NAME = "ollama-gateway"
LABEL = "ollama-gateway.serve"
# Beyond DRAIN_SECONDS (30), which is how long calls in flight may go on.
STOP_SECONDS = 45
# Read by systemd if it is there; the other systems have no such thing, so there they stand in the text itself.
ENVIRONMENT_FILE = Path("/etc/ollama-gateway.env")
# Where services of the machine keep what is theirs; systemd makes the directory.
STATE = Path("/var/lib")


@dataclass(frozen=True, slots=True)
class Service:
    """`program`: the words that start this program. `user`: whom it runs as; empty: whoever starts it."""

    program: Sequence[str]
    data: Path
    user: str = ""
    arguments: Sequence[str] = ()

    @property
    def words(self) -> list[str]:
        return [*self.program, "serve", *self.arguments]


def own_program(source: Path) -> list[str]:
    """How this very program is started: the console script beside its Python, or manage.py in its source."""
    script = Path(sys.executable).with_name(NAME)
    if script.exists():
        return [str(script)]
    return [sys.executable, str(source / "manage.py")]


def systemd(service: Service) -> str:
    """A unit of the machine; without a user one for `systemctl --user`."""
    ours = bool(service.user)
    lines = [
        "[Unit]",
        "Description=Ollama Gateway",
        *(["After=network-online.target postgresql.service redis-server.service"] if ours else []),
        *(["Wants=network-online.target"] if ours else []),
        "",
        "[Service]",
        *([f"User={service.user}"] if ours else []),
        f"Environment={_quoted(f'DATA_DIR={service.data}')}",
        *([f"EnvironmentFile=-{ENVIRONMENT_FILE}"] if ours else []),
        # An upgrade may bring new tables. Where there are none to make this takes a second.
        f"ExecStartPre={_command([*service.program, 'migrate', '--verbosity', '0'])}",
        f"ExecStart={_command(service.words)}",
        "Restart=on-failure",
        "RestartSec=2",
        f"TimeoutStopSec={STOP_SECONDS}",
        # The workers are the gateway's to stop: it drains them.
        "KillMode=mixed",
        "LimitNOFILE=65536",
        *(_confined(service.data) if ours else []),
        "",
        "[Install]",
        f"WantedBy={'multi-user' if ours else 'default'}.target",
    ]
    return "\n".join(lines) + "\n"


def _confined(data: Path) -> list[str]:
    """It reads its program, writes its data, and talks TCP; the rest is taken away."""
    in_place = data.parent == STATE
    return [
        *([f"StateDirectory={data.name}", "StateDirectoryMode=0700"] if in_place else []),
        *([] if in_place else [f"ReadWritePaths={_quoted(str(data))}"]),
        "NoNewPrivileges=yes",
        "ProtectSystem=strict",
        "ProtectHome=read-only",
        "PrivateTmp=yes",
        "ProtectKernelTunables=yes",
        "ProtectKernelModules=yes",
        "ProtectControlGroups=yes",
        "RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX",
        "RestrictSUIDSGID=yes",
        "LockPersonality=yes",
        # For ports below 1024, as of --tls-cert.
        "CapabilityBoundingSet=CAP_NET_BIND_SERVICE",
        "AmbientCapabilities=CAP_NET_BIND_SERVICE",
        "UMask=0077",
    ]


def _command(words: Sequence[str]) -> str:
    # In commands $ begins a variable.
    return " ".join(_quoted(word.replace("$", "$$")) for word in words)


def _quoted(word: str) -> str:
    """As systemd reads words: % begins a specifier, and blanks part them."""
    word = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{word}"' if any(char.isspace() for char in word) else word


def launchd(service: Service) -> str:
    """An agent of the person who loads it, or with a user a daemon of the machine."""
    entry = {
        "Label": LABEL,
        "ProgramArguments": service.words,
        "EnvironmentVariables": {"DATA_DIR": str(service.data)},
        "RunAtLoad": True,
        "KeepAlive": {"SuccessfulExit": False},
        "ExitTimeOut": STOP_SECONDS,
        "SoftResourceLimits": {"NumberOfFiles": 65536},
        "StandardOutPath": str(service.data / "gateway.log"),
        "StandardErrorPath": str(service.data / "gateway.log"),
        **({"UserName": service.user} if service.user else {}),
    }
    return plistlib.dumps(entry).decode()


def windows(service: Service) -> str:
    """PowerShell that has Windows start the gateway, which lives in WSL, with the machine. There is none for Windows
    itself: the spool needs locks and sockets of Unix."""
    inner = " ".join(_for_sh(word) for word in ("env", f"DATA_DIR={service.data}", *service.words))
    user = f"--user {service.user} " if service.user else ""
    return (
        "# Run in PowerShell as administrator. The gateway runs in the default distribution of WSL.\n"
        f"$action = New-ScheduledTaskAction -Execute 'wsl.exe' -Argument {_for_powershell(f'{user}--exec {inner}')}\n"
        "$trigger = New-ScheduledTaskTrigger -AtStartup\n"
        "$settings = New-ScheduledTaskSettingsSet -RestartCount 10 -RestartInterval (New-TimeSpan -Minutes 1) `\n"
        "  -ExecutionTimeLimit ([TimeSpan]::Zero) -AllowStartIfOnBatteries -DontStopIfGoingOnBatteries\n"
        "$who = New-ScheduledTaskPrincipal -UserId $env:USERNAME -LogonType S4U\n"
        f"Register-ScheduledTask -TaskName '{NAME}' -Action $action -Trigger $trigger -Settings $settings `\n"
        "  -Principal $who -Force\n"
        f"Start-ScheduledTask -TaskName '{NAME}'\n"
    )


def _for_sh(word: str) -> str:
    # wsl.exe parts words at blanks, and knows double quotes only.
    return f'"{word}"' if any(char.isspace() for char in word) else word


def _for_powershell(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
