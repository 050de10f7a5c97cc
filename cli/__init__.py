"""The command line: argument parsing and composition, the only place that builds objects."""
