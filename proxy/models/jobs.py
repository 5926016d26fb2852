"""Work on the models of a backend that takes longer than a page may."""

from datetime import timedelta
from typing import Self

from django.db import models
from django.db.models import Q
from django.db.models.functions import Now

from proxy.models.backends import Backend
from tenants.models import User

# A job's process writes every second. One that did not for so long has ended.
LOST_AFTER = timedelta(seconds=20)
KEEP_JOBS = timedelta(days=30)


class ModelJobQuerySet(models.QuerySet["ModelJob"]):
    def running(self) -> Self:
        return self.filter(state=ModelJob.State.RUNNING)

    def give_up_lost(self) -> int:
        """Marks the jobs whose process has ended as failed; returns how many."""
        return (
            self.running()
            .filter(seen_at__lt=Now() - LOST_AFTER)
            .update(
                state=ModelJob.State.FAILED,
                problem="The gateway's process ended meanwhile. Start it again: Ollama keeps what it has.",
                finished_at=Now(),
            )
        )


class ModelJob(models.Model):
    class Action(models.TextChoices):
        PULL = "pull"
        LOAD = "load"
        UNLOAD = "unload"
        DELETE = "delete"

    class State(models.TextChoices):
        RUNNING = "running"
        DONE = "done"
        FAILED = "failed"
        CANCELLED = "cancelled"

    backend = models.ForeignKey(Backend, on_delete=models.CASCADE, related_name="jobs")
    model = models.CharField(max_length=500)
    action = models.CharField(max_length=10, choices=Action)
    state = models.CharField(max_length=10, choices=State, default=State.RUNNING)
    status = models.CharField(max_length=200, blank=True, help_text="What the backend does now.")
    completed = models.PositiveBigIntegerField(default=0, help_text="Bytes.")
    total = models.PositiveBigIntegerField(default=0, help_text="Bytes. 0: not known yet.")
    problem = models.CharField(max_length=300, blank=True)
    wants_cancel = models.BooleanField(default=False)
    started_by = models.ForeignKey(User, on_delete=models.SET_NULL, null=True, related_name="+")
    started_at = models.DateTimeField(db_default=Now())
    seen_at = models.DateTimeField(db_default=Now(), help_text="When its process last wrote.")
    finished_at = models.DateTimeField(null=True)

    objects = ModelJobQuerySet.as_manager()

    class Meta:
        verbose_name = "model job"
        ordering = ["-started_at", "-id"]
        constraints = [
            models.UniqueConstraint(
                fields=["backend", "model"], condition=Q(state="running"), name="job_one_per_model"
            ),
            models.CheckConstraint(
                condition=Q(action__in=("pull", "load", "unload", "delete")), name="job_action_known"
            ),
            models.CheckConstraint(
                condition=Q(state__in=("running", "done", "failed", "cancelled")), name="job_state_known"
            ),
        ]
        # The jobs on a backend's page, newest first.
        indexes = [models.Index(fields=["backend", "-started_at"], name="job_backend_recent")]

    def __str__(self) -> str:
        return f"{self.action} {self.model} on {self.backend}"

    @property
    def percent(self) -> int | None:
        """None while the size is not known."""
        return min(100, self.completed * 100 // self.total) if self.total else None
