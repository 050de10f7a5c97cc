"""Rank texts by likeness: python examples/openai_embeddings.py [BASE_URL] [QUERY].

Needs a server with an embedding model: penstock serve minilm
"""

import sys

import numpy as np
from openai import OpenAI

BASE_URL = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
QUERY = sys.argv[2] if len(sys.argv) > 2 else "the capital of France"
TEXTS = ["Tokyo is large", "Paris is where the French government is", "Cats sleep a lot"]

client = OpenAI(base_url=f"{BASE_URL}/v1", api_key="unused")
model = client.models.list().data[0].id
vectors = [it.embedding for it in client.embeddings.create(model=model, input=[QUERY, *TEXTS]).data]
query, *texts = np.array(vectors)
for score, text in sorted(zip(texts @ query, TEXTS, strict=True), reverse=True):
    print(f"{score:.3f} {text}")
