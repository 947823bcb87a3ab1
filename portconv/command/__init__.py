"""The command ``portconv``: `run`, `backends`, `kernels`, `verify` and `bench`, one module each."""

import sys


def main() -> None:
    """Run the command; if one of its libraries is missing, say how to install it."""
    try:
        from .group import portconv, run

        run(portconv)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("portconv"):
            raise
        sys.exit(f"portconv: the command needs {error.name}; to install it: pip install 'portconv[cli]'")
