"""Examples of secrets.yaml; scripts/audit runs them."""

import hmac
import logging
import secrets

# ruleid: secrets-are-not-pseudo-random
import random

# ruleid: secrets-are-not-pseudo-random
from random import choice

logger = logging.getLogger(__name__)


def compare(row, given, key, settings):
    # ruleid: secrets-are-compared-in-constant-time
    if row.digest == digest(given):
        return True
    # ruleid: secrets-are-compared-in-constant-time
    if given != settings.METRICS_TOKEN:
        return True
    # ruleid: secrets-are-compared-in-constant-time
    if bytes(row.digest) == given:
        return True
    # ruleid: secrets-are-compared-in-constant-time
    if signature(key, given) != given:
        return True
    # ok: secrets-are-compared-in-constant-time
    if settings.METRICS_TOKEN == "":
        return True
    # ok: secrets-are-compared-in-constant-time
    if len(row.digest) != 32:
        return True
    # ok: secrets-are-compared-in-constant-time
    if row.max_output_tokens == given:
        return True
    # ok: secrets-are-compared-in-constant-time
    return hmac.compare_digest(row.digest, digest(given))


def draw():
    # ok: secrets-are-not-pseudo-random
    return secrets.token_bytes(32)


def log(call, request, key, name, password, exc):
    # ruleid: logs-hold-no-secrets
    logger.warning("The key %s is unknown", key)
    # ruleid: logs-hold-no-secrets
    logger.info("A request came: %r", request.headers)
    # ruleid: logs-hold-no-secrets
    logger.debug("Asked of %s: %s", name, call.body.decode())
    # ruleid: logs-hold-no-secrets
    logger.error("Sign-in failed: %s %s", name, password)
    # ruleid: logs-hold-no-secrets
    logger.warning("It came with %s", request.headers["authorization"])
    # ruleid: logs-hold-no-secrets
    logging.warning("It said %s", call.messages[-1])
    # ok: logs-hold-no-secrets
    logger.warning("The key %s is unknown", key.prefix)
    # ok: logs-hold-no-secrets
    logger.warning("The prompt of %s has %d bytes", call.id, len(call.body))
    # ok: logs-hold-no-secrets
    logger.warning("What is said of the body")
    # ruleid: logs-are-formatted-by-logging
    logger.warning(f"Backend {name} failed")
    # ruleid: logs-are-formatted-by-logging
    logger.warning("Backend %s failed" % name)
    # ruleid: logs-are-formatted-by-logging
    logger.warning("Backend failed: " + name)
    # ok: logs-are-formatted-by-logging
    logger.warning("Backend %s failed (%s)", name, type(exc).__name__)
