from tenants.models.keys import ApiKey, ApiKeyLastUsed
from tenants.models.people import Membership, Role, Tenant, User
from tenants.models.rules import IPRule, Limit

__all__ = ["ApiKey", "ApiKeyLastUsed", "IPRule", "Limit", "Membership", "Role", "Tenant", "User"]
