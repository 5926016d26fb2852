"""What a client reads of a backend's errors: its text, without the machine behind it (B9)."""

import time

import pytest

from proxy.relay import own_words, scrubbed

PRIVATE = [
    ("open /root/.ollama/models/blobs/sha256-abc: no such file or directory", "open …: no such file or directory"),
    ("mkdir:/root/.ollama/x failed", "mkdir:… failed"),
    ('stat "/usr/share/ollama": denied', 'stat "…": denied'),
    ("cannot read /root", "cannot read …"),
    ("~/.ollama/id_ed25519 is missing", "… is missing"),
    (r"open C:\Users\bob\.ollama\x: denied", "open … denied"),
    ("dial tcp 10.0.0.5:11434: connect: connection refused", "dial tcp …: connect: connection refused"),
    ("dial tcp [::1]:38765: connect: connection refused", "dial tcp …: connect: connection refused"),
    ("dial tcp [fe80::1%eth0]:38765: refused", "dial tcp …: refused"),
    ("bound to fe80::1:2:3 only", "bound to … only"),
    ("lookup ollama.corp.local on 10.0.0.53:53: no such host", "lookup … on …: no such host"),
    ('Post "http://gpu-1.corp:11434/api/x": EOF', 'Post "… EOF'),
    ("localhost:38765 refused", "… refused"),
    ("gpu-1.corp.example:11434 is gone", "… is gone"),
    ("signed in as bob.smith+x@corp.example", "signed in as …"),
]
HARMLESS = [
    "model 'llama3.2:70b' not found",
    'option "num_ctx" must be of type integer',
    "the input length exceeds the context length",
    'registry.ollama.ai says: "qwen3:8b" does not support thinking',
    "top_logprobs must be between 0 and 20",
    "say and/or 5/6, at 12:30:45",
    "invalid format: expected \"json\" or a JSON schema",
]  # fmt: skip


@pytest.mark.parametrize(("said", "told"), PRIVATE)
def test_b9_paths_addresses_hosts_and_accounts_are_taken_out(said, told):
    assert scrubbed(said) == told


@pytest.mark.parametrize("said", HARMLESS)
def test_b9_what_helps_the_client_stays(said):
    assert scrubbed(said) == said


def test_b9_texts_are_bounded_and_hostile_ones_take_no_time():
    assert len(scrubbed("x" * 100_000)) == 4096
    slowest = 0.0
    for hostile in ("/", ":", "a.", "1.", "[::", "a@", "a-b.", "a", "~/", "1:", "x:\\", "lookup ", "\n", "é"):
        began = time.process_time()
        scrubbed(hostile * 4096)
        slowest = max(slowest, time.process_time() - began)
    print(f"slowest: {slowest * 1000:.1f} ms")
    assert slowest < 0.1


@pytest.mark.parametrize(
    ("text", "logged"),
    [
        ("llama runner process has terminated: exit status 2", None),
        ("model requires more system memory (5.5 GiB) than is available (3.1 GiB)", None),
        ("can't open the model", None),
        (
            'error parsing tool call: raw=\'{"city": "my secret"}\', err=unexpected end',
            "error parsing tool call: raw= …",
        ),
        ('template: :3:12: executing "my secret" at <.Messages>', "template: :3:12: executing …"),
        ("CUDA error: out of memory\n  my secret", "CUDA error: out of memory …"),
        ("json: cannot unmarshal {my secret}", "json: cannot unmarshal …"),
        ("could not decode b'my secret'", "could not decode b …"),
        ("bad line:\rmy secret", "bad line: …"),
        ("[my secret]", " …"),
        ('{"error":{"code":500,"message":"image input is not supported","type":"x"}}', "image input is not supported"),
        ('{"error":"no slot for \\"my secret\\""}', "no slot for …"),
        ('{"error":{"message":{"prompt":"my secret"}}}', " …"),
        ('{"my secret":', " …"),
        ("a" * 300, "a" * 200 + " …"),
    ],
)
def test_l7_the_log_has_what_a_backend_says_and_not_what_it_quotes(text, logged):
    assert own_words(text) == (text if logged is None else logged)
