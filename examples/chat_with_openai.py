"""Chats with a running server through the stock `openai` client: the session is one header, the rest is as ever.

pip install openai
python examples/chat_with_openai.py [http://127.0.0.1:8000]
"""

from __future__ import annotations

import os
import sys

from openai import OpenAI

base_url = sys.argv[1].rstrip("/") if len(sys.argv) > 1 else "http://127.0.0.1:8000"
client = OpenAI(base_url=f"{base_url}/v1", api_key=os.environ.get("OPENAI_API_KEY", "none"))
model = client.models.list().data[0].id
session = {"X-Session-ID": "openai-example"}

# What is said in a session is learned; only the new message is sent, never the history.
told = client.chat.completions.create(
    model=model,
    messages=[{"role": "user", "content": "Mira keeps the violin in the red barn."}],
    max_tokens=40,
    extra_headers=session,
)
print("told:    ", told.choices[0].message.content)
print("receipt: ", (told.model_extra or {}).get("memory"))

# Asked without teaching, the answer streamed; the receipt is in the chunk that ends it.
asked = client.chat.completions.create(
    model=model,
    messages=[{"role": "user", "content": "Where does Mira keep the violin?"}],
    max_tokens=40,
    temperature=0,
    stream=True,
    extra_headers=session,
    extra_body={"memory": {"mode": "read"}},
)
print("answer:   ", end="")
receipt = None
for chunk in asked:
    receipt = (chunk.model_extra or {}).get("memory") or receipt
    if chunk.choices and chunk.choices[0].delta.content:
        print(chunk.choices[0].delta.content, end="", flush=True)
print("\nreceipt: ", receipt)
