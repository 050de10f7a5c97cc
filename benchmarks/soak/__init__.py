"""Mixed load for minutes: every request ends once, and everything comes back to its level."""
