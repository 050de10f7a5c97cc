"""What routing by KV caches gains: time to first token under kv, round-robin and random."""
