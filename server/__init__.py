"""The front door: KServe v2 in text and messages, the data plane, and the fleet of workers."""
