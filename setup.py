"""What the metadata says of the repository; all else is in pyproject.toml.

A package index shows the README far from the files that it links to. If the variable `PORTCONV_SOURCE_URL` is the
address at which the repository can be browsed (".../blob/main", as for docs/conf.py), links lead there; if not, a link
becomes its text, and a picture is left out.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from setuptools import setup

SOURCE_URL = os.environ.get("PORTCONV_SOURCE_URL", "").rstrip("/")


def lead_there(link: re.Match[str]) -> str:
    """Return a link to a file of the repository as it is on an index."""
    picture, text, path = link.groups()
    if picture:
        return f"![{text}]({SOURCE_URL}/{path}?raw=true)" if SOURCE_URL else ""
    return f"[{text}]({SOURCE_URL}/{path})" if SOURCE_URL else text


def urls() -> dict[str, str]:
    """Return the addresses that an index shows beside the README."""
    if not SOURCE_URL:
        return {}
    pages = {"Documentation": "docs/index.md", "Changelog": "CHANGELOG.md"}
    source = SOURCE_URL.partition("/blob/")[0]
    return {"Source": source, "Issues": f"{source}/issues"} | {
        name: f"{SOURCE_URL}/{page}" for name, page in pages.items()
    }


setup(
    long_description=re.sub(r"(!?)\[([^]]*)\]\((?!\w+:|#)([^)]+)\)", lead_there, Path("README.md").read_text("utf-8")),
    long_description_content_type="text/markdown",
    project_urls=urls(),
)
