from proxy.models.backends import Backend
from proxy.models.cancellations import CallCancellation
from proxy.models.catalogue import DefaultModels, ModelAlias, ModelPolicy
from proxy.models.imports import ConfigImport
from proxy.models.jobs import ModelJob
from proxy.models.operation import RefusalCount, WorkerReport
from proxy.models.reports import BackendReport
from proxy.models.revisions import ConfigRevision

__all__ = [
    "Backend",
    "BackendReport",
    "CallCancellation",
    "ConfigImport",
    "ConfigRevision",
    "DefaultModels",
    "ModelAlias",
    "ModelJob",
    "ModelPolicy",
    "RefusalCount",
    "WorkerReport",
]
