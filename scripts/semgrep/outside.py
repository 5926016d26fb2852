"""Examples of outside.yaml; scripts/audit runs them."""

import os
import ssl

import httpx
import yaml

# ruleid: nothing-that-was-read-is-run
import pickle

import requests

# ok: environment-is-read-by-the-settings
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "gateway_site.settings")
# ruleid: environment-is-read-by-the-settings
LINE = int(os.environ.get("LINE", "100"))
# ruleid: environment-is-read-by-the-settings
TOKEN = os.environ["TOKEN"]
# ruleid: environment-is-read-by-the-settings
WORKERS = os.getenv("WORKERS")
# ok: environment-is-read-by-the-settings
os.environ["DATA_DIR"] = "/tmp"


def trust(url, context, tls):
    # ruleid: certificates-are-checked
    httpx.AsyncClient(verify=False, trust_env=False, timeout=3)
    # ruleid: certificates-are-checked
    context.check_hostname = False
    # ruleid: certificates-are-checked
    context.verify_mode = ssl.CERT_NONE
    # ruleid: certificates-are-checked
    ssl._create_unverified_context()
    # ok: certificates-are-checked
    return httpx.AsyncClient(verify=tls, trust_env=False, timeout=3)


def ask(url):
    # ruleid: clients-believe-nothing-around-them
    httpx.AsyncClient(timeout=3)
    # ruleid: clients-believe-nothing-around-them
    httpx.AsyncClient(trust_env=False)
    # ruleid: clients-believe-nothing-around-them
    httpx.AsyncClient(trust_env=False, timeout=None)
    # ruleid: clients-believe-nothing-around-them
    httpx.AsyncClient(trust_env=False, timeout=3, follow_redirects=True)
    # ruleid: clients-believe-nothing-around-them
    httpx.get(url)
    # ruleid: clients-believe-nothing-around-them
    requests.Session()
    # ok: clients-believe-nothing-around-them
    return httpx.AsyncClient(trust_env=False, timeout=3, follow_redirects=False)


def load(text, Plain):
    # ruleid: nothing-that-was-read-is-run
    yaml.load(text)
    # ruleid: nothing-that-was-read-is-run
    yaml.load(text, Loader=yaml.Loader)
    # ruleid: nothing-that-was-read-is-run
    eval(text)
    # ok: nothing-that-was-read-is-run
    yaml.load(text, Loader=Plain)
    # ok: nothing-that-was-read-is-run
    return yaml.safe_load(text)
