"""A model's own marks in its answers: what it thinks and which tools it calls, told apart."""
