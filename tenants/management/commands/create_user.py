from typing import Any

from django.core.management.base import CommandParser

from tenants.management.administration import AdministrationCommand, Result, save_changes, tenant_named
from tenants.memberships import settling_keys
from tenants.models import Membership, Role, User


class Command(AdministrationCommand):
    help = "Creates a user if there is none of that name, and makes them part of a tenant, in one role."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("name")
        parser.add_argument("--tenant", required=True, metavar="NAME")
        parser.add_argument("--role", required=True, choices=Role.values)

    def administer(self, *, name: str, tenant: str, role: str, **options: Any) -> Result:
        home = tenant_named(tenant)
        user = User.objects.filter(username=name).first()
        created = user is None
        if user is None:
            user = User(username=name)
            user.set_unusable_password()
            user.full_clean()
            user.save()
        membership = Membership.objects.filter(tenant=home, user=user).first() or Membership(tenant=home, user=user)
        with settling_keys(Membership.objects.filter(tenant=home, user=user)) as settled:
            changed = save_changes(membership, role=role)
        data = {"user": user.username, "id": user.pk, "tenant": home.name, "role": role}
        if created:
            return Result(
                f"Created {user}, {role} of {home}. To let them sign in: manage.py changepassword {user}", data
            )
        verb = "is now" if changed else "already is"
        off = f" Keys switched off: {settled.keys_off}." if settled.keys_off else ""
        return Result(f"{user} {verb} {role} of {home}.{off}", data, changed=changed)
