"""What all workers of a gateway share: loaded once, in the process that they are forked from (server/template.py).

All that the application imports, but not the application: its clock, ids and names are those of one process.
"""

import gc
import importlib
import logging
import os

import django
from django.conf import settings
from django.utils.module_loading import import_string

logger = logging.getLogger(__name__)

MODULES = (
    "channels.auth",
    "channels.routing",
    "channels.security.websocket",
    "django.core.asgi",
    "gateway_site.daphne_server.answers",
    "gateway_site.server.worker",
    "gateway_site.urls",
    "proxy.consumers",
    "proxy.live.chat",
    "proxy.live.consumers",
    "proxy.runtime",
    "uvloop",
)

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "gateway_site.settings")
try:
    django.setup()
    for module in (*MODULES, settings.SESSION_ENGINE):
        importlib.import_module(module)
    for middleware in settings.MIDDLEWARE:
        import_string(middleware)
except Exception:
    # They load by themselves what is missing here, and say what is wrong with it.
    logger.exception("Workers start one by one: what they share could not be loaded")
# As long as no garbage is looked for in it, most of it stays the same memory for all of them.
gc.freeze()
