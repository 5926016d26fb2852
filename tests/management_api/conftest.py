"""Programs of the cast: each asks with a token of somebody's."""

import json

import pytest
from django.test import Client

from tenants.management_tokens import create_token
from tenants.models.management_tokens import SCOPES

API = "/manage/api/"


class Program:
    """`raise_request_exception` is off: what would be a 500 is one."""

    def __init__(self, credential="", **headers):
        self.client = Client(raise_request_exception=False)
        self.headers = {"authorization": f"Bearer {credential}"} if credential else {}
        self.headers |= headers

    def ask(self, method, path, body=None, **headers):
        content = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        path = path if path.startswith("/") else API + path
        return self.client.generic(method, path, content, "application/json", headers={**self.headers, **headers})

    def get(self, path, **headers):
        return self.ask("GET", path, **headers)

    def post(self, path, body=None, **headers):
        return self.ask("POST", path, {} if body is None else body, **headers)

    def patch(self, path, body, **headers):
        return self.ask("PATCH", path, body, **headers)

    def delete(self, path, **headers):
        return self.ask("DELETE", path, **headers)


@pytest.fixture
def program():
    """A program with a token of a user: of all scopes, unless others are named."""

    def make(user, *scopes, **fields):
        return Program(create_token(user, "test", scopes or SCOPES, **fields).clear_text)

    return make


def error(answer, status):
    """(code, field) of a refusal in its one shape."""
    assert answer.status_code == status, answer.content
    assert answer["content-type"] == "application/json"
    said = answer.json()
    assert set(said) == {"error", "request_id"}
    assert said["request_id"] == answer["x-request-id"]
    assert set(said["error"]) <= {"code", "message", "field"}
    assert said["error"]["message"]
    return said["error"]["code"], said["error"].get("field", "")
