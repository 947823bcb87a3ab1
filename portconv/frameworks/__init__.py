"""The frameworks that take a step of a call as one node of theirs, one a file."""
