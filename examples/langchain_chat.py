"""Stream a chain's answer with LangChain: python examples/langchain_chat.py [BASE_URL] [COUNTRY].

Needs the package langchain-openai.
"""

import sys

from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI
from openai import OpenAI

BASE_URL = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
COUNTRY = sys.argv[2] if len(sys.argv) > 2 else "France"

client = OpenAI(base_url=f"{BASE_URL}/v1", api_key="unused")
model = ChatOpenAI(
    base_url=f"{BASE_URL}/v1",
    api_key="unused",
    model=client.models.list().data[0].id,
    temperature=0,
    max_tokens=64,
)
chain = ChatPromptTemplate.from_template("What is the capital of {country}?") | model
for chunk in chain.stream({"country": COUNTRY}):
    print(chunk.content, end="", flush=True)
print()
