"""Text to tokens and back for one model: no transport, no event loop, no model framework."""
