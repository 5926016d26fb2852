from django.http import HttpRequest

from tenants.models import User


class PersonRequest(HttpRequest):
    user: User  # behind @login_required: never AnonymousUser
