"""What things cost. Money is an integer number of nano-units (10⁻⁹) of the installation's one currency."""

from django.db import models
from django.db.models import Q
from django.utils import timezone

from tenants.auditing import Audited
from tenants.moments import validate_moment


class Price(Audited):
    """Of the prices whose pattern fits, the exact name beats the longest pattern, and the newest valid row counts."""

    model = models.CharField(max_length=500, help_text='A model or a pattern, e.g. "llama3.2:latest" or "qwen3:*".')
    backend = models.CharField(max_length=100, blank=True, help_text="Only on this backend. Empty: on all.")
    input_nano = models.PositiveBigIntegerField("input, nano-units per 1 M tokens", default=0)
    output_nano = models.PositiveBigIntegerField("output, nano-units per 1 M tokens", default=0)
    gpu_second_nano = models.PositiveBigIntegerField("nano-units per GPU-second", default=0)
    kwh_nano = models.PositiveBigIntegerField("nano-units per kWh", default=0)
    watts = models.PositiveIntegerField("watts while generating", default=0)
    valid_from = models.DateTimeField(default=timezone.now, validators=[validate_moment])
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["model", "backend", "valid_from"], name="price_once_per_moment"),
            models.CheckConstraint(condition=~Q(model=""), name="price_names_a_model"),
        ]

    def __str__(self) -> str:
        return f"{self.model} from {self.valid_from:%Y-%m-%d}"

    @property
    def is_in_force(self) -> bool:
        """Or was, until a newer one replaced it: calls point at it."""
        return self.valid_from <= timezone.now()
