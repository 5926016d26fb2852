from tenants.models.audit import AuditEntry
from tenants.models.first_run import SetupLink
from tenants.models.invitations import Invitation
from tenants.models.keys import ApiKey, ApiKeyLastUsed
from tenants.models.management_tokens import KeptAnswer, ManagementToken, ManagementTokenLastUsed
from tenants.models.people import Authority, CachePolicy, CacheScope, LatencyClass, Membership, Role, Tenant, User
from tenants.models.rules import IPRule, Limit
from tenants.models.shown_once import ShownOnce

__all__ = [
    "ApiKey",
    "ApiKeyLastUsed",
    "AuditEntry",
    "Authority",
    "CachePolicy",
    "CacheScope",
    "IPRule",
    "Invitation",
    "KeptAnswer",
    "LatencyClass",
    "Limit",
    "ManagementToken",
    "ManagementTokenLastUsed",
    "Membership",
    "Role",
    "SetupLink",
    "ShownOnce",
    "Tenant",
    "User",
]
