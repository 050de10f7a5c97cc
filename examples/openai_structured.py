"""An answer as an object of a class: python examples/openai_structured.py [BASE_URL] [QUESTION]."""

import sys
from typing import Literal

from openai import OpenAI
from pydantic import BaseModel

BASE_URL = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
QUESTION = sys.argv[2] if len(sys.argv) > 2 else "What is the capital of France?"


class City(BaseModel):
    """What the answer must hold."""

    name: Literal["Paris", "Rome", "Tokyo"]
    is_capital: bool


client = OpenAI(base_url=f"{BASE_URL}/v1", api_key="unused")
answer = client.chat.completions.parse(
    model=client.models.list().data[0].id,
    messages=[{"role": "user", "content": QUESTION}],
    response_format=City,
    temperature=0,
    max_tokens=64,
)
city = answer.choices[0].message.parsed
assert city is not None, answer.choices[0].message.refusal
print(f"{city.name}, capital: {city.is_capital}")
