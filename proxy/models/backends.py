"""The Ollama servers."""

from django.core.validators import MinValueValidator
from django.db import models
from django.db.models import Q

from proxy.backend_url import validate_backend_url
from tenants.archive import Archivable


class Backend(Archivable):
    class Transport(models.TextChoices):
        WIRE = "wire", "wire: the gateway's own, fast"
        HTTPX = "httpx", "httpx: outbound proxy, client certificate, HTTP/2"

    name = models.CharField(max_length=100, unique=True)
    url = models.CharField(max_length=300, validators=[validate_backend_url], help_text="E.g. http://10.0.0.5:11434")
    enabled = models.BooleanField(default=True, help_text="Off: takes no new calls and finishes its streams.")
    slots = models.PositiveIntegerField(
        default=1,
        validators=[MinValueValidator(1)],
        help_text="Calls at a time per model: the server's OLLAMA_NUM_PARALLEL (Ollama's default is 1).",
    )
    context_length = models.PositiveIntegerField(
        null=True, blank=True, help_text="The server's OLLAMA_CONTEXT_LENGTH. Empty: 4096 until a loaded model tells."
    )
    transport = models.CharField(max_length=5, choices=Transport, default=Transport.WIRE)
    ca_certificates = models.TextField(
        "CA certificates", blank=True, help_text="PEM, for https servers with a certificate of your own."
    )
    credential_header = models.CharField(
        max_length=100, blank=True, help_text="A header that the server wants, e.g. Authorization."
    )
    credential_encrypted = models.BinaryField(null=True, blank=True, editable=False)
    # With defaults in the database: a worker of the version before can still add a row.
    client_certificate = models.TextField(
        blank=True,
        default="",
        db_default="",
        help_text="PEM, with its chain, for servers that want one. Empty: none, and its key is forgotten.",
    )
    client_key_encrypted = models.BinaryField(null=True, blank=True, editable=False)
    proxy_url = models.CharField(
        "outbound proxy",
        max_length=300,
        blank=True,
        validators=[validate_backend_url],
        default="",
        db_default="",
        help_text="E.g. http://proxy.example:3128. It resolves the server's name. The environment's are not used.",
    )
    proxy_credential_encrypted = models.BinaryField(null=True, blank=True, editable=False)
    http2 = models.BooleanField("HTTP/2", default=False, db_default=False, help_text="Where an https server offers it.")
    set_by_environment = models.BooleanField(
        default=False, editable=False, help_text="Owned by OLLAMA_HOST and its kin; written anew at each start."
    )
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["name"]
        constraints = [
            models.CheckConstraint(condition=Q(slots__gte=1), name="backend_has_a_slot"),
            models.CheckConstraint(condition=Q(transport__in=("wire", "httpx")), name="backend_transport_known"),
            models.CheckConstraint(condition=~Q(url="") & ~Q(name=""), name="backend_has_name_and_url"),
            models.CheckConstraint(
                condition=Q(transport="httpx") | Q(proxy_url="", http2=False),
                name="backend_proxy_and_http2_by_httpx",
                violation_error_message="An outbound proxy and HTTP/2 need the transport httpx.",
            ),
        ]

    def __str__(self) -> str:
        return self.name
