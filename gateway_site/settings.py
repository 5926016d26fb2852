"""All settings, and the only reader of the environment. Runs with none set: SQLite and own secrets in DATA_DIR."""

import hashlib
import re
import socket
import sys
from pathlib import Path
from urllib.parse import urlsplit

import dj_database_url

from gateway_site import environment as env
from gateway_site.environment import WrongSetting
from proxy.config_json import reading as config_json
from proxy.configuration import Configuration
from proxy.cors import check_patterns

BASE_DIR = Path(__file__).resolve().parent.parent
DATA_DIR = Path(env.text("DATA_DIR") or env.data_home()).expanduser().resolve()

# config.json of another gateway (docs/switching.md), by default where its container has it: what it says of addresses,
# logs and metrics are our defaults, and variables go first. Its servers, keys and rules are imported by `serve`.
_MOUNTED = Path("/config.json")
CONFIG_FILE = env.text("CONFIG_FILE") or (str(_MOUNTED) if _MOUNTED.exists() else "")
try:
    CONFIG_JSON = config_json.without_keys(config_json.read(CONFIG_FILE) if CONFIG_FILE else config_json.ConfigJson())
except config_json.BadConfig as exc:
    raise WrongSetting(f"CONFIG_FILE={CONFIG_FILE!r}: {exc}") from None
_FILE = config_json.defaults_of(CONFIG_JSON)

DEBUG = env.flag("DEBUG", False)
SECRET_KEY = env.kept_secret("SECRET_KEY", DATA_DIR)
# Protects the pages; calls accept any well-formed Host, because keys protect them.
ALLOWED_HOSTS = env.items("ALLOWED_HOSTS", "localhost,127.0.0.1,[::1]")
CSRF_TRUSTED_ORIGINS = env.items("CSRF_TRUSTED_ORIGINS")
# OLLAMA_… are the names that users of other proxies know; our own go first.
PORT = env.port("PORT", env.port("OLLAMA_PROXY_PORT", _FILE.port))
# Where `serve` listens unless it is told otherwise.
HOST = _FILE.host
# Of the pages, on the address of the gateway; 0: they are on the gateway's own port. `serve --admin-port` is the same.
ADMIN_PORT = env.port("ADMIN_PORT", 0)
# Where people open the pages; and where apps call, if that is elsewhere (tenants/snippets.py).
SITE_URL = env.url("SITE_URL", f"http://localhost:{ADMIN_PORT or PORT}")
API_URL = env.url("API_URL")
HTTPS = SITE_URL.startswith("https://")
# The address that people use is ours, and so are its forms, whatever a proxy that ends TLS makes of them.
_OWN = urlsplit(SITE_URL)
ALLOWED_HOSTS.append(f"[{_OWN.hostname}]" if ":" in (_OWN.hostname or "") else _OWN.hostname or "localhost")
if HTTPS:
    CSRF_TRUSTED_ORIGINS.append(f"https://{_OWN.netloc}")
# Set by `manage.py demo`: every page says that it shows one.
DEMO = env.flag("DEMO", False)

# The HMAC key of every API key's digest. The first signs, the others are still recognised, for rotation.
KEY_PEPPER, *KEY_PEPPER_FALLBACKS = (
    pepper.encode() for pepper in env.kept_secret("KEY_PEPPER", DATA_DIR).split(",") if pepper
)

INSTALLED_APPS = [
    # First: its runserver replaces Django's. Others go without Twisted, whose import takes 0.3 s and 20 MiB; Daphne
    # itself (`serve --server daphne`, bare `daphne`) needs no app.
    *(["daphne"] if "runserver" in sys.argv[1:2] else []),
    "tenants",
    "usage",
    "proxy",
    "channels",
    "django_prometheus",
    "auditlog",
    "gateway_site.apps.GatewayAdminConfig",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django.contrib.humanize",
    "allauth",
    "allauth.account",
    "allauth.mfa",
    "allauth.socialaccount",
    "allauth.socialaccount.providers.openid_connect",
]

# Pages only. A call never passes here (design §1).
MIDDLEWARE = [
    "django_prometheus.middleware.PrometheusBeforeMiddleware",
    "gateway_site.page_headers.page_headers",
    "django.middleware.security.SecurityMiddleware",
    "servestatic.middleware.ServeStaticMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "gateway_site.page_actors.page_actors",
    "gateway_site.odd_addresses.odd_addresses",
    "django.contrib.messages.middleware.MessageMiddleware",
    "allauth.account.middleware.AccountMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "django_prometheus.middleware.PrometheusAfterMiddleware",
]

ROOT_URLCONF = "gateway_site.urls"
ASGI_APPLICATION = "gateway_site.asgi.application"

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
                "tenants.context.site",
            ],
        },
    },
]


def database(url: str) -> dict[str, object]:
    """Django's DATABASES entry for a URL, with the timeouts that keep a hung database from hanging us."""
    try:
        # No connection outlives its request: under ASGI each request has a thread of its own, and with it would be lost
        # to everybody, until the garbage collector closes it.
        parsed = dict(dj_database_url.parse(url, conn_max_age=0))
    except ValueError:
        # Without the value, which may hold a password.
        raise WrongSetting("DATABASE_URL: use sqlite:///… or postgres://user:password@host/name") from None
    options = parsed.setdefault("OPTIONS", {})
    if parsed["ENGINE"] == "django.db.backends.sqlite3":
        parsed["ENGINE"] = "django_prometheus.db.backends.sqlite3"
        # WAL: readers never wait for the writer. IMMEDIATE: a transaction that will write waits at its start, where
        # the timeout applies, instead of failing at its first write with "database is locked".
        options.update(
            transaction_mode="IMMEDIATE",
            timeout=10,
            init_command="PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
        )
    elif parsed["ENGINE"] == "django.db.backends.postgresql":
        parsed["ENGINE"] = "django_prometheus.db.backends.postgresql"
        options.setdefault("connect_timeout", 5)
        options.setdefault("options", "-c statement_timeout=30000 -c lock_timeout=10000")
        # Milliseconds without an acknowledgement after which a dead server's socket fails.
        options.setdefault("tcp_user_timeout", 15000)
    else:
        raise WrongSetting("DATABASE_URL: use sqlite:///… or postgres://…")
    return parsed


DATABASES = {"default": database(env.text("DATABASE_URL", f"sqlite:///{DATA_DIR / 'gateway.sqlite3'}"))}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

REDIS_URL = env.text("REDIS_URL")
CACHES = {
    "default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"},
    # The counters of django-ratelimit, apart from anything that pages cache.
    "ratelimit": (
        {
            "BACKEND": "django.core.cache.backends.redis.RedisCache",
            "LOCATION": REDIS_URL,
            # A hung Redis must not hang sign-in.
            "OPTIONS": {"socket_connect_timeout": 0.5, "socket_timeout": 0.5},
        }
        if REDIS_URL
        # Many entries: with few, an attacker could push the counters out.
        else {
            "BACKEND": "django.core.cache.backends.locmem.LocMemCache",
            "LOCATION": "ratelimit",
            "OPTIONS": {"MAX_ENTRIES": 100_000},
        }
    ),
}
RATELIMIT_USE_CACHE = "ratelimit"
# What must reach a running call or an open page from elsewhere. No call waits for it, and without it cancels and
# changes go by the database.
CHANNEL_LAYERS = {
    "default": (
        {
            "BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer",
            "CONFIG": {
                "hosts": [{"address": REDIS_URL, "socket_connect_timeout": 0.5, "socket_timeout": 0.5}],
                # One Redis may serve several installations; they must neither see nor steer each other's calls.
                "prefix": f"ogw-{hashlib.sha256(SECRET_KEY.encode()).hexdigest()[:12]}.",
                "symmetric_encryption_keys": [SECRET_KEY],
            },
        }
        if REDIS_URL
        # For the workers of one machine. Where there are no Unix sockets, there is one process (Windows).
        else {"BACKEND": "proxy.live.local_layer.LocalChannelLayer", "CONFIG": {"directory": DATA_DIR / "run"}}
        if hasattr(socket, "AF_UNIX")
        else {"BACKEND": "channels.layers.InMemoryChannelLayer"}
    )
}

AUTH_USER_MODEL = "tenants.User"
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in (
        "UserAttributeSimilarityValidator",
        "MinimumLengthValidator",
        "CommonPasswordValidator",
        "NumericPasswordValidator",
    )
]
# What is audited is said by tenants/audited.py and its like.
AUDITLOG_LOGENTRY_MODEL = "tenants.AuditEntry"
AUDITLOG_STORE_JSON_CHANGES = True
# Older entries go with prune_audit. 0: none.
AUDIT_RETENTION_DAYS = env.integer("AUDIT_RETENTION_DAYS", 400, minimum=0)

LOGIN_URL = "account_login"
LOGIN_REDIRECT_URL = "home"
CSRF_FAILURE_VIEW = "gateway_site.error_pages.csrf_failure"

# Sign-in (django-allauth). Nobody signs up unasked: tenants/invitations.py.
AUTHENTICATION_BACKENDS = ["allauth.account.auth_backends.AuthenticationBackend"]
ACCOUNT_ADAPTER = "tenants.sign_in.AccountAdapter"
ACCOUNT_FORMS = {"login": "tenants.sign_in_forms.LoginForm"}
ACCOUNT_LOGIN_METHODS = {"username", "email"}
ACCOUNT_SIGNUP_FIELDS = ["email*", "username*", "password1*", "password2*"]
ACCOUNT_EMAIL_VERIFICATION = "none"
ACCOUNT_EMAIL_UNKNOWN_ACCOUNTS = False
ACCOUNT_CHANGE_EMAIL = True
ACCOUNT_LOGOUT_REDIRECT_URL = "account_login"
# Limits are tenants/rate_limits.py's, which a dead cache neither opens nor locks.
ACCOUNT_RATE_LIMITS = MFA_RATE_LIMITS = False
MFA_ADAPTER = "gateway_site.second_factors.SealingMFAAdapter"
MFA_SUPPORTED_TYPES = ["totp", "webauthn", "recovery_codes"]
MFA_PASSKEY_LOGIN_ENABLED = True
MFA_ALLOW_UNVERIFIED_EMAIL = True
MFA_TOTP_ISSUER = "Ollama Gateway"
# Browsers allow passkeys on https, and on localhost.
MFA_WEBAUTHN_ALLOW_INSECURE_ORIGIN = not HTTPS

# One OpenID Connect provider. New people from there need an invitation, or a tenant that they all join.
OIDC_ISSUER = env.url("OIDC_ISSUER")
OIDC_NAME = env.text("OIDC_NAME", "Single sign-on")
OIDC_AUTO_TENANT = env.text("OIDC_AUTO_TENANT")
SOCIALACCOUNT_ADAPTER = "tenants.oidc.SocialAccountAdapter"
SOCIALACCOUNT_PROVIDERS = {
    "openid_connect": {
        "APPS": [
            {
                "provider_id": "oidc",
                "name": OIDC_NAME,
                "client_id": env.text("OIDC_CLIENT_ID"),
                "secret": env.text("OIDC_CLIENT_SECRET"),
                "settings": {"server_url": OIDC_ISSUER, "oauth_pkce_enabled": True},
            }
        ]
        if OIDC_ISSUER
        else []
    }
}
# The button leads to the provider by a redirect, which browsers hold against form-action.
CSP_FORM_ACTIONS = [f"{urlsplit(OIDC_ISSUER).scheme}://{urlsplit(OIDC_ISSUER).netloc}"] if OIDC_ISSUER else []

# Without EMAIL_URL mail is written to the gateway's output, and the pages say so.
EMAIL_IS_SENT = bool(env.text("EMAIL_URL"))
EMAIL_BACKEND = f"django.core.mail.backends.{'smtp' if EMAIL_IS_SENT else 'console'}.EmailBackend"
if EMAIL_IS_SENT:
    _mail = env.mail_server("EMAIL_URL")
    EMAIL_HOST, EMAIL_PORT, EMAIL_HOST_USER, EMAIL_HOST_PASSWORD = _mail.host, _mail.port, _mail.user, _mail.password
    EMAIL_USE_TLS, EMAIL_USE_SSL = _mail.starttls, _mail.tls
EMAIL_TIMEOUT = 10
DEFAULT_FROM_EMAIL = SERVER_EMAIL = env.text("EMAIL_FROM", f"ollama-gateway@{urlsplit(SITE_URL).hostname}")

# Days of the daily roll-up and of calendar limits begin at midnight here.
TIME_ZONE = env.time_zone("TIME_ZONE", "UTC")
USE_TZ = True
LANGUAGE_CODE = "en-us"
USE_I18N = False
FORMAT_MODULE_PATH = ["gateway_site.formats"]

STATIC_URL = "static/"
STATIC_ROOT = BASE_DIR / "staticfiles"
STATICFILES_DIRS = [BASE_DIR / "static"]
SERVESTATIC_USE_FINDERS = True
SERVESTATIC_AUTOREFRESH = DEBUG

SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = HTTPS
SESSION_COOKIE_HTTPONLY = True
SECURE_HSTS_SECONDS = 31_536_000 if HTTPS else 0
SECURE_HSTS_INCLUDE_SUBDOMAINS = SECURE_HSTS_PRELOAD = HTTPS
X_FRAME_OPTIONS = "DENY"
PROMETHEUS_METRICS_EXPORT_PORT = None

# The server of the environment, which owns the backend row "default" (proxy/default_backend.py). Read by `serve` alone:
# in a shell of somebody who calls, OLLAMA_HOST means something else.
UPSTREAM = env.text("OLLAMA_UPSTREAM") or env.text("OLLAMA_URL")
OLLAMA_HOST = env.text("OLLAMA_HOST")
OLLAMA_PORT = env.port("OLLAMA_PORT", 0)
# Per worker process; and how long (seconds) a client may read nothing of a stream.
MAX_CONNECTIONS = env.integer("MAX_CONNECTIONS", 8192, minimum=1)
MAX_CONNECTIONS_PER_ADDRESS = env.integer("MAX_CONNECTIONS_PER_ADDRESS", 1024, minimum=1)
STALL_SECONDS = env.seconds("STALL_SECONDS", 60)

# Networks whose X-Forwarded-For and -Proto are believed. Empty: the socket's address is the caller's.
TRUSTED_PROXIES = env.networks("TRUSTED_PROXIES", besides="unix")
# Whoever connects to a Unix socket has no address: a proxy of ours if that is said here, else nobody that a rule knows.
TRUSTS_UNIX = "unix" in env.items("TRUSTED_PROXIES")
# Of everybody else page_headers.py takes it away.
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
# Not behind a proxy that is not believed: all it brings looks like http, and would be redirected for ever.
SECURE_SSL_REDIRECT = HTTPS and bool(TRUSTED_PROXIES or TRUSTS_UNIX)
# Where `serve` speaks TLS itself there is no plain port to redirect from; gateway_site/checks.py says the rest.
SILENCED_SYSTEM_CHECKS = ["security.W008"] if HTTPS and not SECURE_SSL_REDIRECT else []
METRICS_ENABLED = env.flag("METRICS_ENABLED", _FILE.metrics_enabled)
# Who may read /metrics: these networks, and who brings one of these (`Authorization: Bearer …`).
METRICS_TOKENS = env.items("METRICS_TOKEN")
METRICS_NETWORKS = env.networks("METRICS_NETWORKS", "127.0.0.0/8,::1/128")
METRICS_PATH = env.matching(
    "METRICS_PATH", _FILE.metrics_path, r"/(?!api/|v1/|k/|admin/)[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*", "/metrics"
)
# A port of its own, on the address of the gateway; 0: on the gateway's own port.
METRICS_PORT = env.port("METRICS_PORT", env.port("OLLAMA_METRICS_PORT", 0))
METRICS_NAMESPACE = env.matching("METRICS_NAMESPACE", _FILE.metrics_namespace, r"[A-Za-z_][A-Za-z0-9_]*", "gateway")
# Machines inside ask over plain http, whatever people use.
SECURE_REDIRECT_EXEMPT = [r"^livez$", r"^readyz$", f"^{re.escape(METRICS_PATH[1:])}$"]

# Whose web pages may call the API from a browser, besides our own. None: a page anywhere could use its visitor's key.
CORS_ORIGINS = tuple(env.items("CORS_ORIGINS") + env.items("OLLAMA_ORIGINS"))
try:
    check_patterns(CORS_ORIGINS)
except ValueError as exc:
    raise WrongSetting(f"CORS_ORIGINS or OLLAMA_ORIGINS: {exc}") from None

# Several workers count limits together in Redis; without it they may run only where that is accepted.
LIMITS_PER_WORKER = env.flag("LIMITS_PER_WORKER", False)

# Tenants' owners choose where webhooks lead: to public addresses, and to these networks.
WEBHOOK_NETWORKS = env.networks("WEBHOOK_NETWORKS")

GATEWAY = Configuration(
    spool_dir=Path(env.text("SPOOL_DIR", str(DATA_DIR / "spool"))),
    spool_max_bytes=env.integer("SPOOL_MAX_BYTES", 1 << 30, minimum=1 << 20),
    key_pepper=KEY_PEPPER,
    key_pepper_fallbacks=tuple(KEY_PEPPER_FALLBACKS),
    auth_header=env.matching("AUTH_HEADER", _FILE.auth_header, r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", "X-API-Key")
    .lower()
    .encode("ascii"),
    trusted_proxies=TRUSTED_PROXIES,
    trusts_unix=TRUSTS_UNIX,
    time_zone=TIME_ZONE,
    redis_url=REDIS_URL,
    # How long the reservations of a worker that died are held for it.
    limit_lease_seconds=env.seconds("LIMIT_LEASE_SECONDS", 30),
    redis_patience_seconds=env.seconds("REDIS_PATIENCE_SECONDS", 0.05),
    currency=env.matching("CURRENCY", "EUR", r"[A-Z]{3}", "EUR"),
    max_body_bytes=env.integer("MAX_BODY_BYTES", 20 << 20, minimum=1024),
    default_output_tokens=env.integer("DEFAULT_OUTPUT_TOKENS", 4096, minimum=1),
    max_output_tokens=env.integer("MAX_OUTPUT_TOKENS", 32768, minimum=1),
    # Seconds. A large model loads from a slow disk within ten minutes.
    connect_seconds=env.seconds("BACKEND_CONNECT_SECONDS", 5, minimum=0.1),
    first_byte_seconds=env.seconds("BACKEND_FIRST_BYTE_SECONDS", 600),
    gap_seconds=env.seconds("BACKEND_GAP_SECONDS", 300),
    total_seconds=env.seconds("CALL_TOTAL_SECONDS", 3600),
    line_length=env.integer("LINE_LENGTH", 1000, minimum=1),
    line_seconds=env.seconds("LINE_SECONDS", 60),
    probe_seconds=env.seconds("PROBE_SECONDS", 2),
    db_grace_seconds=env.seconds("DB_GRACE_SECONDS", 600),
    drain_seconds=env.seconds("DRAIN_SECONDS", 30),
    failed_credentials_per_minute=env.integer("FAILED_CREDENTIALS_PER_MINUTE", 30, minimum=1),
    access_log=env.flag("ACCESS_LOG", _FILE.access_log),
    metrics_enabled=METRICS_ENABLED,
    metrics_dir=DATA_DIR / "metrics",
    metrics_namespace=METRICS_NAMESPACE,
    otel_endpoint=env.matching("OTEL_EXPORTER_OTLP_ENDPOINT", "", r"(https?://\S+)?", "http://collector:4318"),
    otel_headers=tuple(env.pairs("OTEL_EXPORTER_OTLP_HEADERS")),
    otel_service=env.text("OTEL_SERVICE_NAME", "ollama-gateway"),
    otel_ratio=env.share("OTEL_TRACES_SAMPLER_ARG", 1.0),
    site_url=env.url("SITE_URL"),
    cors_origins=CORS_ORIGINS,
    host_names=tuple(ALLOWED_HOSTS),
    cache_policy=env.choice("CACHE_POLICY", "off", ("off", "deterministic", "all")),
    cache_ttl_seconds=env.integer("CACHE_TTL_SECONDS", 3600, minimum=1),
    cache_max_bytes=env.integer("CACHE_MAX_BYTES", 64 << 20, minimum=1 << 20),
    cache_in_redis=env.flag("CACHE_IN_REDIS", True),
)

LOG_LEVEL = env.choice("LOG_LEVEL", _FILE.log_level, ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"))
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"()": "gateway_site.logs.OneLineFormatter"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["stderr"], "level": LOG_LEVEL},
    "loggers": {
        # One line for each probe would drown everything else.
        "httpx": {"level": "WARNING"},
        "httpcore": {"level": "WARNING"},
        # A line for each try while a collector is away; what was given up is an error.
        "opentelemetry": {"level": "ERROR"},
        # A stranger's host names, a traceback each; who asked by a wrong name is told on the page.
        "django.security.DisallowedHost": {"level": "CRITICAL"},
        # A traceback a second while Redis is away; proxy.live says so once.
        "channels_redis": {"level": "CRITICAL"},
    },
}
