"""More load than the workers can take: goodput, refusals, time to first token."""
