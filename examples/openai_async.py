"""Ask several questions at once: python examples/openai_async.py [BASE_URL] [QUESTION ...]."""

import asyncio
import sys

from openai import AsyncOpenAI

BASE_URL = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
QUESTIONS = sys.argv[2:] or [
    "What is the capital of France?",
    "What is the capital of Italy?",
]


async def ask(client: AsyncOpenAI, model: str, question: str) -> str:
    """The answer, whole."""
    answer = await client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": question}],
        temperature=0,
        max_tokens=64,
    )
    return answer.choices[0].message.content or ""


async def main() -> None:
    """Ask all of them and print the answers in order."""
    async with AsyncOpenAI(base_url=f"{BASE_URL}/v1", api_key="unused") as client:
        model = (await client.models.list()).data[0].id
        async with asyncio.TaskGroup() as tasks:
            asked = {it: tasks.create_task(ask(client, model, it)) for it in QUESTIONS}
    for question, answer in asked.items():
        print(f"{question}\n{answer.result()}\n")


asyncio.run(main())
