"""OpenAI HTTP in front of any text backend: JSON in, GenerateRequest out, deltas back as SSE."""
