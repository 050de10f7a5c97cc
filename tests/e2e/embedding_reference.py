"""Embeddings as the model's own card computes them: mean of the last layer, unit length.

Reads a JSON object {"model", "texts"}, writes a JSON list of vectors. In a process of its own:
transformers costs seconds and half a gigabyte.
"""

import json
import sys

import torch
from transformers import AutoModel, AutoTokenizer

asked = json.load(sys.stdin)
tokenizer = AutoTokenizer.from_pretrained(asked["model"])
model = AutoModel.from_pretrained(asked["model"]).eval()
vectors = []
for text in asked["texts"]:
    inputs = tokenizer(text, return_tensors="pt", truncation=True, max_length=asked["length"])
    with torch.no_grad():
        states = model(**inputs).last_hidden_state[0]
    mean = states.mean(dim=0)
    vectors.append((mean / mean.norm()).tolist())
json.dump(vectors, sys.stdout)
