"""The frameworks that take an operation as one node of their graph, each in one file or folder."""
