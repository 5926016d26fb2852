from proxy.models.alerts import Delivery, Duty, LimitAlert, Webhook
from proxy.models.backends import Backend
from proxy.models.caching import CachePurge, CacheSettings, CacheUse
from proxy.models.cancellations import CallCancellation
from proxy.models.catalogue import DefaultModels, ModelAlias, ModelPolicy
from proxy.models.imports import ConfigImport
from proxy.models.jobs import ModelJob
from proxy.models.operation import IPRuleUse, RefusalCount, WorkerReport
from proxy.models.pass_through import PassThroughRoute
from proxy.models.reports import BackendReport
from proxy.models.revisions import ConfigRevision

__all__ = [
    "Backend",
    "BackendReport",
    "CachePurge",
    "CacheSettings",
    "CacheUse",
    "CallCancellation",
    "ConfigImport",
    "ConfigRevision",
    "DefaultModels",
    "Delivery",
    "Duty",
    "IPRuleUse",
    "LimitAlert",
    "ModelAlias",
    "ModelJob",
    "ModelPolicy",
    "PassThroughRoute",
    "RefusalCount",
    "Webhook",
    "WorkerReport",
]
