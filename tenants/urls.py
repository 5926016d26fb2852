from django.urls import URLPattern

from tenants.views import account, changes, invited, keys, people, tokens


def urls(known: keys.Known) -> list[URLPattern]:
    return [*account.urls(), *invited.urls(), *keys.urls(known), *people.urls(), *tokens.urls(), *changes.urls()]
