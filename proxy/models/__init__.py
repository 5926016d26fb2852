from proxy.models.backends import Backend
from proxy.models.catalogue import ModelAlias, ModelPolicy
from proxy.models.reports import BackendReport
from proxy.models.revisions import ConfigRevision

__all__ = ["Backend", "BackendReport", "ConfigRevision", "ModelAlias", "ModelPolicy"]
