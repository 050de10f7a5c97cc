"""The worker: one engine behind the KServe token contract."""
