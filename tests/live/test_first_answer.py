"""The main job: a streamed answer through the gateway, with a key, a record and its tokens."""

import json


def chat(**fields):
    return {"model": "llama3.2", "messages": [{"role": "user", "content": "hi"}], **fields}


async def test_a_streamed_chat_is_recorded_with_the_fakes_counts(gateway, fake):
    async with gateway.client(gateway.key) as client:
        answer = await client.post("/api/chat", json=chat(options={"num_predict": 5}))
    assert answer.status_code == 200
    last = json.loads(answer.text.splitlines()[-1])
    record = await gateway.record(answer.headers["x-request-id"])
    assert (record.outcome, record.status, record.stream) == ("ok", 200, True)
    assert (record.prompt_tokens, record.completion_tokens) == (last["prompt_eval_count"], last["eval_count"])
    assert not record.estimated
    assert record.model == "llama3.2:latest"


async def test_an_unknown_key_reaches_no_backend(gateway, fake):
    async with gateway.client("ogw_nobody") as client:
        answer = await client.post("/api/chat", json=chat())
    assert answer.status_code == 401
    assert "error" in answer.json()
    assert not [call for call in fake.calls if call.path == "/api/chat"]
