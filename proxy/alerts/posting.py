"""Sends one message: to a webhook by httpx, to a mailbox by the mail server. In a thread; bounded by timeouts."""

import asyncio
import time
from email.utils import parseaddr
from urllib.parse import urlsplit

import httpx
import orjson
from django.conf import settings
from django.core.mail import EmailMessage

from proxy.alerts import messages
from proxy.alerts.signature import HEADER, signature
from proxy.alerts.targets import NotAllowed, addresses_for, check_url
from proxy.credentials import CannotUnseal, unseal
from proxy.fleet.probes import problem_of
from proxy.models import Delivery

# Seconds for connection, request and status together.
PATIENCE = 10.0


class NotSent(Exception):
    """Its text is for the log of deliveries, in our own words: a page that showed the answer would scan ports."""


def send(delivery: Delivery) -> str:
    """What became of it. Raises NotSent."""
    return _post(delivery) if delivery.webhook is not None else _mail(delivery)


def body_of(delivery: Delivery) -> bytes:
    """The same at every attempt, so that a receiver can tell a repetition by its id."""
    said = delivery.alert.body if delivery.alert is not None else messages.TEST
    created = delivery.created_at.strftime("%Y-%m-%dT%H:%M:%SZ")
    return orjson.dumps({"id": str(delivery.pk), "created": created, **said})


def _post(delivery: Delivery) -> str:
    hook = delivery.webhook
    assert hook is not None
    if not hook.enabled:
        raise NotSent("The webhook is switched off.")
    try:
        url = check_url(hook.url)
        # Asked at each sending, and this very address is connected to: a name may lead elsewhere by now.
        address = addresses_for(url, settings.WEBHOOK_NETWORKS)[0]
        secret = unseal(hook.secret_encrypted)
    except CannotUnseal:
        raise NotSent("Its secret was sealed with another SECRET_KEY. Give it a new one.") from None
    except NotAllowed as exc:
        raise NotSent(str(exc)) from None
    try:
        status = asyncio.run(_status(url, address, secret, body_of(delivery), str(delivery.pk)))
    except (httpx.HTTPError, TimeoutError, OSError) as exc:
        raise NotSent(problem_of(exc)[:200]) from None
    if 300 <= status < 400:
        raise NotSent(f"It answered {status}: redirects are not followed. Give the address it leads to.")
    if not 200 <= status < 300:
        raise NotSent(f"It answered {status}.")
    return f"It answered {status}."


async def _status(url: str, address: str, secret: str, body: bytes, delivery_id: str) -> int:
    parts = urlsplit(url)
    headers = {
        "host": parts.netloc,
        "content-type": "application/json",
        "user-agent": "ollama-gateway",
        "x-gateway-delivery": delivery_id,
        HEADER: signature(secret, body, int(time.time())),
    }
    # By address: httpx would ask for the name again, and might get one that was not checked.
    target = httpx.URL(url).copy_with(host=address)
    extensions = {"sni_hostname": parts.hostname or ""}
    # Neither the proxies nor the .netrc of the environment.
    async with (
        asyncio.timeout(PATIENCE),
        httpx.AsyncClient(trust_env=False, follow_redirects=False, timeout=PATIENCE) as client,
        client.stream("POST", target, content=body, headers=headers, extensions=extensions) as answer,
    ):
        return answer.status_code


def _mail(delivery: Delivery) -> str:
    subject, text = messages.mail(delivery)
    _, sender = parseaddr(settings.DEFAULT_FROM_EMAIL)
    # One name for all attempts: mailboxes drop what they have already.
    name = f"<{delivery.pk}@{sender.rpartition('@')[2] or 'ollama-gateway'}>"
    try:
        EmailMessage(subject, text, None, [delivery.email], headers={"Message-ID": name}).send()
    except OSError as exc:  # smtplib's errors are some
        raise NotSent(f"The mail server did not take it ({type(exc).__name__}).") from None
    return "The mail server took it."
