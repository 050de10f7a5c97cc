"""OpenAI's Responses API over the same requests and deltas as chat completions."""
