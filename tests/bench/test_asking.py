"""What is heard of a server's stream, and that a reply of another length is refused."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from asking import Asking

Object = dict[str, object]


def piece(text: str) -> Object:
    """A chunk of text."""
    return {"choices": [{"text": text}]}


def usage(num_tokens: int) -> Object:
    """The last chunk."""
    return {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": num_tokens}}


@contextmanager
def answering(objects: list[Object]) -> Iterator[tuple[str, list[Object]]]:
    """A server that streams these objects to whoever asks; yields its URL and what it was asked."""
    asked: list[Object] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(
                "".join(f"data: {json.dumps(each)}\n\n" for each in objects).encode() + b"data: [DONE]\n\n"
            )

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", asked
        finally:
            server.shutdown()
            thread.join()


def test_a_reply_is_heard_piece_by_piece() -> None:
    """Text, counts, receipt and rising times come out of the stream."""
    memory: Object = {"choices": [{"text": ""}], "memory": {"restored_from": "hot"}}
    with answering([piece("a"), piece("b"), piece("c"), memory, usage(3)]) as (url, asked):
        heard = Asking(url, {"7": -100.0}).complete("x", 3)

    assert (heard.text, heard.prompt_tokens, heard.num_tokens, heard.memory) == ("abc", 3, 3, {"restored_from": "hot"})
    assert 0 < heard.first_seconds <= heard.last_seconds <= heard.end_seconds
    assert heard.token_seconds == pytest.approx((heard.last_seconds - heard.first_seconds) / 2)
    assert asked[0]["logit_bias"] == {"7": -100.0} and asked[0]["temperature"] == 0


def test_vllm_is_told_in_its_own_words() -> None:
    """vLLM is asked to ignore the end, and gets no bias."""
    with answering([piece("a"), usage(1)]) as (url, asked):
        Asking(url, is_vllm=True).complete("x", 1)

    assert asked[0]["ignore_eos"] is True and "logit_bias" not in asked[0]


@pytest.mark.parametrize(
    ("objects", "reason"),
    [
        ([piece("a"), usage(1)], "has 1 tokens, 3 were asked for"),
        ([piece("abc"), usage(3)], "3 tokens in 1 pieces"),
        ([piece("a"), {"error": {"message": "failed"}}], "failed"),
    ],
    ids=["short", "at-once", "error"],
)
def test_a_reply_that_says_nothing_of_time_is_refused(objects: list[Object], reason: str) -> None:
    """Another length, text that does not come as it is made, and an error in the stream end the bench."""
    with answering(objects) as (url, _), pytest.raises(RuntimeError, match=reason):
        Asking(url).complete("x", 3)
