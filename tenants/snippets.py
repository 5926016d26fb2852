"""How to use a key from the programs that people have: text to copy that works as it is printed."""

import json
import shlex
from dataclasses import dataclass

from django.conf import settings

QUESTION = "Why is the sky blue? One sentence."


@dataclass(frozen=True, slots=True)
class Snippet:
    """`language`: sh, python, javascript, yaml. `note`: what to do with it, where that is not obvious."""

    title: str
    language: str
    text: str
    note: str = ""


def api_url() -> str:
    """Where apps call: where the pages are, unless those have a port of their own."""
    return settings.API_URL or (f"http://localhost:{settings.PORT}" if settings.ADMIN_PORT else settings.SITE_URL)


def snippets(base_url: str, key: str, model: str) -> dict[str, Snippet]:
    """By slug. `base_url`: of the gateway, without a slash at the end."""
    values = {"base_url": base_url, "key": key, "model": model, "question": QUESTION}
    # As literals of Python, JavaScript and YAML, which those of JSON are.
    quoted = {name: json.dumps(value) for name, value in values.items()}
    quoted["openai_url"], quoted["bearer"] = json.dumps(f"{base_url}/v1"), json.dumps(f"Bearer {key}")
    return {
        "curl-ollama": Snippet("curl", "sh", _curl_ollama(**values), "Ollama's own API."),
        "curl-openai": Snippet("curl, OpenAI", "sh", _curl_openai(**values), "The API of OpenAI."),
        "curl-anthropic": Snippet("curl, Anthropic", "sh", _curl_anthropic(**values), "The API of Anthropic."),
        "python-ollama": Snippet("Python: ollama", "python", _PYTHON_OLLAMA.format(**quoted), "pip install ollama"),
        "python-openai": Snippet("Python: openai", "python", _PYTHON_OPENAI.format(**quoted), "pip install openai"),
        "python-anthropic": Snippet(
            "Python: anthropic", "python", _PYTHON_ANTHROPIC.format(**quoted), "pip install anthropic"
        ),
        "js-ollama": Snippet("JavaScript: ollama", "javascript", _JS_OLLAMA.format(**quoted), "npm install ollama"),
        "js-openai": Snippet("JavaScript: openai", "javascript", _JS_OPENAI.format(**quoted), "npm install openai"),
        "open-webui": Snippet(
            "Open WebUI",
            "sh",
            _open_webui(**values),
            "Or in a running one: Admin settings, Connections, OpenAI API: the same address and key.",
        ),
        "continue": Snippet("Continue", "yaml", _CONTINUE.format(**quoted), "In ~/.continue/config.yaml"),
        "claude-code": Snippet(
            "Claude Code", "sh", _claude_code(**values), "In the shell that it is started from. Choose a model that "
            "can call tools and has a long context."
        ),
    }  # fmt: skip


def _curl(url: str, headers: list[str], body: dict[str, object]) -> str:
    lines = [f"curl {shlex.quote(url)}"]
    lines += [f"-H {shlex.quote(header)}" for header in headers]
    lines.append(f"-d {shlex.quote(json.dumps(body))}")
    return " \\\n  ".join(lines)


def _messages(question: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}]


def _curl_ollama(base_url: str, key: str, model: str, question: str) -> str:
    body = {"model": model, "messages": _messages(question), "stream": False}
    return _curl(f"{base_url}/api/chat", [f"Authorization: Bearer {key}"], body)


def _curl_openai(base_url: str, key: str, model: str, question: str) -> str:
    headers = [f"Authorization: Bearer {key}", "Content-Type: application/json"]
    return _curl(f"{base_url}/v1/chat/completions", headers, {"model": model, "messages": _messages(question)})


def _curl_anthropic(base_url: str, key: str, model: str, question: str) -> str:
    headers = [f"x-api-key: {key}", "anthropic-version: 2023-06-01", "Content-Type: application/json"]
    body = {"model": model, "max_tokens": 200, "messages": _messages(question)}
    return _curl(f"{base_url}/v1/messages", headers, body)


_PYTHON_OLLAMA = """\
from ollama import Client

client = Client(host={base_url}, headers={{"Authorization": {bearer}}})
for part in client.chat(
    model={model},
    messages=[{{"role": "user", "content": {question}}}],
    stream=True,
):
    print(part.message.content, end="", flush=True)
print()"""

_PYTHON_OPENAI = """\
from openai import OpenAI

client = OpenAI(base_url={openai_url}, api_key={key})
answer = client.chat.completions.create(
    model={model},
    messages=[{{"role": "user", "content": {question}}}],
)
print(answer.choices[0].message.content)"""

_PYTHON_ANTHROPIC = """\
from anthropic import Anthropic

client = Anthropic(base_url={base_url}, api_key={key})
answer = client.messages.create(
    model={model},
    max_tokens=200,
    messages=[{{"role": "user", "content": {question}}}],
)
print(answer.content[0].text)"""

_JS_OLLAMA = """\
import {{ Ollama }} from "ollama";

const ollama = new Ollama({{
  host: {base_url},
  headers: {{ Authorization: {bearer} }},
}});
const answer = await ollama.chat({{
  model: {model},
  messages: [{{ role: "user", content: {question} }}],
}});
console.log(answer.message.content);"""

_JS_OPENAI = """\
import OpenAI from "openai";

const client = new OpenAI({{ baseURL: {openai_url}, apiKey: {key} }});
const answer = await client.chat.completions.create({{
  model: {model},
  messages: [{{ role: "user", content: {question} }}],
}});
console.log(answer.choices[0].message.content);"""

_CONTINUE = """\
name: Ollama Gateway
version: 0.0.1
schema: v1
models:
  - name: {model}
    provider: openai
    model: {model}
    apiBase: {openai_url}
    apiKey: {key}
    roles:
      - chat
      - edit
      - apply"""


def _open_webui(base_url: str, key: str, model: str, question: str) -> str:
    return " \\\n  ".join([
        "docker run -d --name open-webui -p 3000:8080 -v open-webui:/app/backend/data",
        f"-e OPENAI_API_BASE_URL={shlex.quote(f'{base_url}/v1')}",
        f"-e OPENAI_API_KEY={shlex.quote(key)}",
        "-e ENABLE_OLLAMA_API=false",
        "ghcr.io/open-webui/open-webui:main",
    ])  # fmt: skip


def _claude_code(base_url: str, key: str, model: str, question: str) -> str:
    return "\n".join([
        f"export ANTHROPIC_BASE_URL={shlex.quote(base_url)}",
        f"export ANTHROPIC_AUTH_TOKEN={shlex.quote(key)}",
        f"export ANTHROPIC_MODEL={shlex.quote(model)}",
        f"export ANTHROPIC_DEFAULT_HAIKU_MODEL={shlex.quote(model)}",
        "claude",
    ])  # fmt: skip
