"""What `manage.py demo` puts into its database. The same keys at each start: they are derived, not stored."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from django.conf import settings
from django.db import transaction
from django.utils import timezone

from proxy import demo_usage
from proxy.demo_usage import Habit
from proxy.models import Backend, ModelAlias
from tenants import money
from tenants.keys import derived_key, digest
from tenants.models import ApiKey, Limit, Membership, Role, Tenant, User
from usage.models import Price
from usage.rollups import reporting_zone

ADMIN = "admin"
MODELS = "llama3.2,llama3.2:1b,llama3.1:8b,qwen3,nomic-embed-text"
TENANTS = ("demo", "research")

# name → first name, last name, (tenant, role)
PEOPLE: dict[str, tuple[str, str, tuple[tuple[str, str], ...]]] = {
    ADMIN: ("Ada", "Min", (("demo", Role.OWNER), ("research", Role.OWNER))),
    "olivia": ("Olivia", "Owen", (("research", Role.OWNER),)),
    "ben": ("Ben", "Berg", (("demo", Role.MEMBER),)),
    "clara": ("Clara", "Costa", (("research", Role.MEMBER),)),
    "victor": ("Victor", "Voss", (("demo", Role.VIEWER),)),
}

# Per million tokens, in and out. llama3.2:1b has none, to show what that looks like.
PRICES = {
    "llama3.2:latest": ("0.30", "0.60"),
    "llama3.1:8b": ("0.50", "1.00"),
    "qwen3:*": ("1.00", "3.00"),
    "nomic-embed-text:*": ("0.05", "0"),
}


@dataclass(frozen=True)
class DemoKey:
    tenant: str
    user: str = ""
    models: tuple[str, ...] = ()
    expires_in_days: int | None = None
    revoked: bool = False
    enabled: bool = True
    cache_policy: str = ""
    habit: Habit | None = None


KEYS = {
    "app": DemoKey("demo", habit=Habit(
        90, (("llama3.2:latest", 0.7, 95), ("qwen3:latest", 0.2, 45), ("nomic-embed-text:latest", 0.1, 900)),
        420, 260, "ollama", "/api/chat", "ollama-python/0.6.0", "10.20.0", failing=0.02,
    )),
    "notebook": DemoKey("demo", "ben", habit=Habit(
        25, (("llama3.1:8b", 0.6, 60), ("llama3.2:1b", 0.4, 160)),
        900, 480, "openai", "/v1/chat/completions", "OpenAI/Python 2.8.1", "10.20.4", failing=0.04,
    )),
    "ci": DemoKey("demo", models=("llama3.2*",), expires_in_days=60, habit=Habit(
        40, (("llama3.2:1b", 1.0, 160),), 1500, 120, "ollama", "/api/generate", "curl/8.14.1", "10.20.9", nightly=True,
    )),
    "assistant": DemoKey("research", "clara", habit=Habit(
        35, (("qwen3:latest", 0.8, 45), ("llama3.2:latest", 0.2, 95)),
        2600, 700, "anthropic", "/v1/messages", "claude-cli/2.0.50", "10.30.1", failing=0.02,
    )),
    "evaluation": DemoKey("research", models=("qwen3:*", "llama3.1:8b"), enabled=False, habit=Habit(
        30, (("qwen3:latest", 0.5, 45), ("llama3.1:8b", 0.5, 60)),
        700, 300, "openai", "/v1/chat/completions", "AsyncOpenAI/Python 2.8.1", "10.30.7", nightly=True,
    )),
    "cached": DemoKey("demo", cache_policy="all"),
    "old laptop": DemoKey("demo", "ben", revoked=True),
}  # fmt: skip


@dataclass(frozen=True)
class Demo:
    password: str
    keys: dict[str, str]


class NotADemo(Exception):
    """The database holds something else."""


def make(backends: list[str]) -> Demo:
    """Creates or updates the demo's rows, and 30 days of usage. Raises NotADemo rather than touch an installation."""
    with transaction.atomic():
        if Tenant.objects.exclude(name__in=TENANTS).exists():
            raise NotADemo
        tenants = {name: Tenant.objects.get_or_create(name=name)[0] for name in TENANTS}
        password = _people(tenants)
        for number, url in enumerate(backends, 1):
            Backend.objects.update_or_create(name=f"fake-{number}", defaults={"url": url, "slots": 4, "enabled": True})
        _rules(tenants)
        keys = {name: _key(name, wanted, tenants[wanted.tenant]) for name, wanted in KEYS.items()}
    rows = {row.name: row for row in ApiKey.objects.filter(name__in=KEYS).select_related("tenant", "user")}
    habits = [(rows[name], wanted.habit) for name, wanted in KEYS.items() if wanted.habit]
    spare = settings.DATA_DIR / "demo-quarantine.jsonl"
    # Not inside: the ledger's code makes its own transactions.
    demo_usage.store(habits, timezone.now(), reporting_zone(), settings.GATEWAY.currency, spare)
    return Demo(password, {name: text for name, text in keys.items() if KEYS[name].enabled and not KEYS[name].revoked})


def _people(tenants: dict[str, Tenant]) -> str:
    """All have the one password that the demo prints."""
    password = derived_key("demo password").rpartition("_")[2][:16]
    for name, (first, last, roles) in PEOPLE.items():
        boss = name == ADMIN
        user, created = User.objects.get_or_create(
            username=name,
            defaults={
                "first_name": first,
                "last_name": last,
                "email": f"{name}@demo.example",
                "is_staff": boss,
                "is_superuser": boss,
            },
        )
        if created:
            user.set_password(password)
            user.save()
        for tenant, role in roles:
            Membership.objects.get_or_create(tenant=tenants[tenant], user=user, defaults={"role": role})
    return password


def _rules(tenants: dict[str, Tenant]) -> None:
    for pattern, (entering, leaving) in PRICES.items():
        Price.objects.get_or_create(
            model=pattern,
            backend="",
            valid_from=datetime(2020, 1, 1, tzinfo=UTC),
            defaults={"input_nano": money.to_nano(entering), "output_nano": money.to_nano(leaving)},
        )
    ModelAlias.objects.get_or_create(pattern="small", defaults={"model": "llama3.2:1b"})
    # Wide enough for whoever tries the demo.
    limits = (
        (tenants["demo"], Limit.Metric.REQUESTS, Limit.Window.MINUTE, 600, Limit.Mode.ENFORCE),
        (tenants["demo"], Limit.Metric.COST, Limit.Window.MONTH, money.to_nano("25"), Limit.Mode.ENFORCE),
        (tenants["research"], Limit.Metric.TOKENS, Limit.Window.DAY, 5_000_000, Limit.Mode.SHADOW),
    )
    for tenant, metric, window, amount, mode in limits:
        Limit.objects.get_or_create(
            scope=Limit.Scope.TENANT,
            tenant=tenant,
            metric=metric,
            window=window,
            defaults={"amount": amount, "mode": mode, "alert": window != Limit.Window.MINUTE},
        )
    # What an owner set for one of their people.
    Limit.objects.get_or_create(
        scope=Limit.Scope.USER,
        user=User.objects.get(username="ben"),
        managed_by=tenants["demo"],
        metric=Limit.Metric.TOKENS,
        window=Limit.Window.DAY,
        defaults={"amount": 500_000, "alert": True},
    )


def _key(name: str, wanted: DemoKey, tenant: Tenant) -> str:
    clear_text = derived_key(f"demo key {name}")
    now = timezone.now()
    ApiKey.objects.get_or_create(
        prefix=clear_text.split("_")[1],
        defaults={
            "tenant": tenant,
            "user": User.objects.get(username=wanted.user) if wanted.user else None,
            "name": name,
            "digest": digest(clear_text.encode(), settings.KEY_PEPPER),
            "models_allowed": list(wanted.models),
            "expires_at": now + timedelta(days=wanted.expires_in_days) if wanted.expires_in_days else None,
            "revoked_at": now if wanted.revoked else None,
            "enabled": wanted.enabled,
            "cache_policy": wanted.cache_policy,
        },
    )
    return clear_text
