"""An agent's loop: the model calls functions of ours until it has an answer.

python examples/openai_tools.py [BASE_URL] [QUESTION] [FIRST_TOOL_CHOICE]

A model that was trained for tools decides by itself ("auto"); "required" makes any model call.
"""

import json
import sys

from openai import OpenAI

BASE_URL = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
QUESTION = sys.argv[2] if len(sys.argv) > 2 else "What is the capital of France?"
CHOICE = sys.argv[3] if len(sys.argv) > 3 else "auto"
MOST_ROUNDS = 4

CAPITALS = {"France": "Paris", "Italy": "Rome", "Japan": "Tokyo"}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "capital_of",
            "description": "The capital of a country",
            "parameters": {
                "type": "object",
                "properties": {"country": {"type": "string", "enum": list(CAPITALS)}},
                "required": ["country"],
                "additionalProperties": False,
            },
            "strict": True,
        },
    }
]


def capital_of(country: str) -> str:
    """What the model may look up."""
    return CAPITALS[country]


client = OpenAI(base_url=f"{BASE_URL}/v1", api_key="unused")
model = client.models.list().data[0].id
messages = [{"role": "user", "content": QUESTION}]
for round_ in range(MOST_ROUNDS):
    last = round_ == MOST_ROUNDS - 1
    answer = client.chat.completions.create(
        model=model,
        messages=messages,
        tools=TOOLS,
        tool_choice="none" if last else CHOICE if round_ == 0 else "auto",
        temperature=0,
        max_tokens=128,
    )
    message = answer.choices[0].message
    if not message.tool_calls:
        print(message.content)
        break
    messages.append(message.model_dump(exclude_none=True))
    for call in message.tool_calls:
        arguments = json.loads(call.function.arguments)
        result = capital_of(**arguments)
        print(f"{call.function.name}({arguments}) = {result}")
        messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
