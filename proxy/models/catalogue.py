"""Names and rules of models."""

import re

from django.core.exceptions import ValidationError
from django.core.validators import MinValueValidator
from django.db import models
from django.db.models import Q

from proxy.default_models import WORDS
from proxy.model_names import InvalidModelName, parse
from tenants.auditing import Audited

# What Go's time.ParseDuration takes, or a number of seconds.
_DURATION = re.compile(r"[-+]?((\d+(\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h))+|[-+]?\d+(\.\d*)?", re.ASCII)


def validate_keep_alive(value: str) -> None:
    if not _DURATION.fullmatch(value):
        raise ValidationError('Write a duration such as "30m" or "1h30m", a number of seconds, or -1 for ever.')


def validate_load_options(value: object) -> None:
    if not isinstance(value, dict) or not all(isinstance(option, bool | int | float) for option in value.values()):
        raise ValidationError('Write an object of numbers, true and false, e.g. {"num_gpu": 99}.')


def validate_model_name(value: str) -> None:
    try:
        parse(value)
    except InvalidModelName:
        raise ValidationError(f"“{value}” cannot be the name of a model. Write one such as qwen3:8b.") from None


def validate_alias_target(value: str) -> None:
    if value not in WORDS:
        validate_model_name(value)


class ModelAlias(Audited):
    """Serves one model under another name. An exact name beats the longest pattern."""

    pattern = models.CharField(max_length=500, unique=True, help_text='A name or a pattern, e.g. "gpt-4o" or "gpt-*".')
    model = models.CharField(
        max_length=500,
        validators=[validate_alias_target],
        help_text="The model that answers; @chat or @embedding: the default models.",
    )
    enabled = models.BooleanField(default=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        verbose_name_plural = "model aliases"
        constraints = [
            models.CheckConstraint(condition=~Q(pattern="") & ~Q(model=""), name="alias_names_both"),
        ]

    def __str__(self) -> str:
        return f"{self.pattern} → {self.stands_for}"

    @property
    def stands_for(self) -> str:
        """The target in words."""
        return WORDS.get(self.model, self.model)


class DefaultModels(Audited):
    """The one row of what @chat and @embedding lead to."""

    chat_model = models.CharField(
        max_length=500,
        blank=True,
        validators=[validate_model_name],
        help_text="Answers for gpt-*, claude-* and whatever else leads to @chat. Empty: the first installed model, by "
        "name, that can chat and that the key may use.",
    )
    embedding_model = models.CharField(
        max_length=500,
        blank=True,
        validators=[validate_model_name],
        help_text="Answers for text-embedding-* and whatever else leads to @embedding. Empty: the first that embeds.",
    )
    # Aliases that an administrator has deleted must not come back.
    aliases_seeded_at = models.DateTimeField(null=True, blank=True, editable=False)

    class Meta:
        verbose_name = verbose_name_plural = "default models"
        constraints = [models.CheckConstraint(condition=Q(id=1), name="default_models_one_row")]

    def __str__(self) -> str:
        return "default models"

    @classmethod
    def the_row(cls) -> "DefaultModels":
        return cls.objects.get_or_create(id=1)[0]


class ModelPolicy(Audited):
    """What is set for every call of a model, whatever the call asks for: Ollama reloads a model when these change."""

    pattern = models.CharField(max_length=500, unique=True, help_text='A model or a pattern; "*" for all.')
    num_ctx = models.PositiveIntegerField(
        null=True, blank=True, validators=[MinValueValidator(4)], help_text="Empty: the server decides."
    )
    load_options = models.JSONField(
        default=dict,
        blank=True,
        validators=[validate_load_options],
        help_text='Further load-time options, e.g. {"num_gpu": 99}. Empty: the server decides.',
    )
    keep_alive = models.CharField(
        max_length=20,
        blank=True,
        validators=[validate_keep_alive],
        help_text='E.g. "30m", or -1 for ever. Empty: the server decides.',
    )
    max_output_tokens = models.PositiveIntegerField(
        null=True, blank=True, validators=[MinValueValidator(1)], help_text="Empty: the gateway's maximum."
    )
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        verbose_name_plural = "model policies"
        constraints = [
            models.CheckConstraint(condition=Q(num_ctx=None) | Q(num_ctx__gte=4), name="policy_num_ctx_possible"),
            models.CheckConstraint(
                condition=Q(max_output_tokens=None) | Q(max_output_tokens__gt=0), name="policy_output_cap_positive"
            ),
        ]

    def __str__(self) -> str:
        return self.pattern

    def clean(self) -> None:
        # An emptied field of a form is None.
        self.load_options = self.load_options or {}
