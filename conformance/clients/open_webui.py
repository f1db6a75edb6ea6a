"""What Open WebUI sends: the whole history each time under its chat id, streamed, and tasks of its own in between."""

from __future__ import annotations

import json
import sys
from typing import Any

import httpx
from cases import MODEL, base_url, case, run, session_id

# The shape of Open WebUI's own prompt for a title.
TITLE_TASK = """### Task:
Generate a concise, 3-5 word title summarizing the chat history.
### Output:
JSON format: { "title": "your concise title here" }
### Chat History:
<chat_history>
USER: The lighthouse is painted green.
ASSISTANT: Good to know.
</chat_history>"""


def send(client: httpx.Client, chat_id: str, messages: list[Any]) -> tuple[str, dict[str, Any]]:
    """A streamed turn; returns its text and receipt."""
    body = {"model": MODEL, "messages": messages, "stream": True, "max_tokens": 16, "temperature": 0}
    text, receipt, is_done = "", {}, False
    with client.stream("POST", "/v1/chat/completions", json=body, headers={"X-OpenWebUI-Chat-Id": chat_id}) as answer:
        assert answer.status_code == 200, answer.read()
        for line in answer.iter_lines():
            is_done = is_done or line == "data: [DONE]"
            if line.startswith("data: {"):
                chunk = json.loads(line[6:])
                text += "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])
                receipt = chunk.get("memory") or receipt
    assert is_done
    return text, receipt


def turns(text: str, reply: str) -> list[Any]:
    """A message and its answer."""
    return [{"role": "user", "content": text}, {"role": "assistant", "content": reply}]


@case
def a_chat_with_its_history(client: httpx.Client) -> None:
    """A chat: each turn resends everything, and only what is new is read."""
    chat_id = session_id("3f2a.owui")
    first = [{"role": "user", "content": "The lighthouse is painted green."}]
    reply, receipt = send(client, chat_id, first)
    assert receipt["tokens_learned"] > 0
    _, later = send(client, chat_id, [*turns(first[0]["content"], reply), {"role": "user", "content": "And the door?"}])
    assert later["turn"] == 2 and later["tokens_read"] < receipt["tokens_read"] + 30


@case
def a_title_does_not_teach(client: httpx.Client) -> None:
    """A title request between two turns reads the memory and leaves it as it was."""
    chat_id = session_id("owui")
    first = [{"role": "user", "content": "The lighthouse is painted green."}]
    reply, receipt = send(client, chat_id, first)
    _, title = send(client, chat_id, [{"role": "user", "content": TITLE_TASK}])
    assert title["not_learned"] == "side_request" and title["version_after"] == receipt["version_after"]
    _, later = send(client, chat_id, [*turns(first[0]["content"], reply), {"role": "user", "content": "And the door?"}])
    assert later["version_before"] == receipt["version_after"] and later["turn"] == 2


@case
def an_edited_message(client: httpx.Client) -> None:
    """An edited message and a regenerated answer go back to where the conversation parted."""
    chat_id = session_id("owui")
    first = [{"role": "user", "content": "The lighthouse is painted green."}]
    reply, receipt = send(client, chat_id, first)
    past = turns(first[0]["content"], reply)
    _, wrong = send(client, chat_id, [*past, {"role": "user", "content": "The door is red."}])
    _, edited = send(client, chat_id, [*past, {"role": "user", "content": "The door is blue."}])
    assert wrong["turn"] == edited["turn"] == 2 and edited["version_before"] != receipt["version_before"]
    _, again = send(client, chat_id, [*past, {"role": "user", "content": "The door is blue."}])
    assert again["turn"] == 2


if __name__ == "__main__":
    with httpx.Client(base_url=base_url(), timeout=120) as plain:
        sys.exit(run(client=plain))
