"""Anthropic's Messages API over the same requests and deltas as chat completions."""
