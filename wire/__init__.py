"""Everything that crosses a process boundary: messages, tensors, requests, deltas. Pure, no I/O."""
