"""What the playground makes of the lines of a stream, whatever a backend writes into them."""

import pytest

from proxy.live.chat import messages_in

ENDED = {"type": "ended", "prompt_tokens": None, "completion_tokens": None, "decode_ms": 0.0, "total_ms": 0.0,
         "reason": None}  # fmt: skip


@pytest.mark.parametrize(
    ("lines", "messages"),
    [
        (
            [b'{"message": {"content": "he"}}', b'{"message": {"content": "llo", "thinking": "hm"}}'],
            [{"type": "piece", "text": "hello", "thinking": "hm"}],
        ),
        (
            [b'{"done": true, "prompt_eval_count": 2, "eval_count": 3, "eval_duration": 4e6, "total_duration": 5000000,'
             b' "done_reason": "stop"}'],
            [{**ENDED, "prompt_tokens": 2, "completion_tokens": 3, "decode_ms": 4.0, "total_ms": 5.0,
              "reason": "stop"}],
        ),
        ([b'{"error": "boom"}', b""], [{"type": "failed", "status": 0, "why": "boom"}]),
        ([b"5", b"[]", b"null", b'"x"', b"{", b'{"message": 5}', b'{"message": {"content": ["x"]}}'], []),
        ([b'{"done": true, "eval_duration": "long", "total_duration": []}'], [ENDED]),
    ],
)  # fmt: skip
def test_what_lines_say_and_what_is_odd_says_nothing(lines, messages):
    assert messages_in(lines) == messages
