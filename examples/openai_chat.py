"""Stream a chat answer with openai: python examples/openai_chat.py [BASE_URL] [QUESTION]."""

import sys

from openai import OpenAI

BASE_URL = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
QUESTION = sys.argv[2] if len(sys.argv) > 2 else "What is the capital of France?"

client = OpenAI(base_url=f"{BASE_URL}/v1", api_key="unused")
model = client.models.list().data[0].id
chunks = client.chat.completions.create(
    model=model,
    messages=[{"role": "user", "content": QUESTION}],
    temperature=0,
    max_tokens=64,
    stream=True,
)
for chunk in chunks:
    print(chunk.choices[0].delta.content or "", end="", flush=True)
print()
