"""Routes for what a newer Ollama adds."""

from django.core.exceptions import ValidationError
from django.db import models
from django.db.models import Q

from proxy import pass_through


class PassThroughRoute(models.Model):
    """One exact path and method that is passed on to a backend. Everything that stands in no table is 404 (P1)."""

    class Right(models.TextChoices):
        INFER = "infer", "keys that may generate"
        LIST = "list", "keys that may list models"
        MANAGE = "manage", "keys that may manage models"

    path = models.CharField(
        max_length=200, help_text="E.g. /api/rerank. Exactly this path; its query is not passed on."
    )
    method = models.CharField(max_length=10, choices=[(name, name) for name in pass_through.METHODS], default="POST")
    right = models.CharField("for", max_length=10, choices=Right, default=Right.MANAGE)
    names_model = models.BooleanField(
        "names a model",
        default=True,
        help_text="The body has a field “model”: rules, aliases and limits of models hold, and a server that has it "
        "answers. Off: such a body is refused.",
    )
    enabled = models.BooleanField(default=True)
    note = models.CharField(max_length=200, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        verbose_name = "pass-through route"
        ordering = ["path", "method"]
        constraints = [
            models.UniqueConstraint(fields=["path", "method"], name="pass_through_once"),
            models.CheckConstraint(condition=Q(method__in=pass_through.METHODS), name="pass_through_method_known"),
            models.CheckConstraint(condition=Q(right__in=("infer", "list", "manage")), name="pass_through_right_known"),
            models.CheckConstraint(
                condition=Q(method="POST") | Q(names_model=False),
                name="pass_through_model_in_body",
                violation_error_message="Only the body of a POST can name a model.",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.method} {self.path}"

    def clean(self) -> None:
        try:
            pass_through.refuse(self.path, self.method, self.right)
        except ValueError as exc:
            raise ValidationError({"path": str(exc)}) from None
