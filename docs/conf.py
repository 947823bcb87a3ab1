"""The documentation as a site: ``sphinx-build -W --keep-going -b html docs OUT``.

It needs portconv with its extra `cli`, sphinx, numpydoc, pydata-sphinx-theme, myst-parser and matplotlib. It needs no
network: formulas become MathML, docs/plots draws the pictures, and nothing is looked up elsewhere. If the variable
`PORTCONV_SOURCE_URL` is the address at which the repository can be browsed (".../blob/main"), links from pages to other
files of the repository lead there. If not, the site includes those files, and a link to a folder becomes its name.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx import addnodes
from sphinx.application import Sphinx

import portconv

ROOT = Path(__file__).resolve().parents[1]
SOURCE_URL = os.environ.get("PORTCONV_SOURCE_URL", "").rstrip("/")

project = "portconv"
author = "the portconv developers"
copyright = author
version = release = portconv.__version__
language = "en"

extensions = [
    "matplotlib.sphinxext.plot_directive",
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
]
exclude_patterns = ["example_backend", "plots"]
templates_path: list[str] = []

# Every reference must lead somewhere, except these of other packages.
nitpicky = True
nitpick_ignore = {
    ("py:class", "Exception"),
    ("py:class", "NamedTuple"),
    ("py:class", "RuntimeError"),
    ("py:class", "TypeError"),
    ("py:class", "ValueError"),
    ("py:class", "object"),
    ("py:class", "tuple"),
    ("py:obj", "numpy.pad"),
    # An argument and a field with the names of things that can be imported.
    ("py:obj", "array"),
    ("py:obj", "db"),
}
# Nor must the types of signatures: those of other packages, type variables, and what is not to be looked into.
nitpick_ignore_regex = {
    ("py:class", r"(collections\.abc|contextlib|numpy)\.\w+"),
    ("py:class", r"(portconv\.backends\._terms\.)?(ArrayT|Block)"),
    ("py:class", r"portconv\.engine\.call\.\w+Cache"),
}

# Pages are Markdown as code hosts show it, with fences of "math" and links to headings.
myst_enable_extensions = ["dollarmath"]
myst_fence_as_directive = ["math"]
myst_heading_anchors = 3
# A block that is indented, or fenced without a name, is in no language.
highlight_language = "none"
pygments_style = "default"

# `name` in a docstring is a link if it is a public name, else it is set as an argument.
default_role = "autolink"
add_module_names = False
autosummary_generate = False  # each table is above the entries that it lists
autodoc_typehints = "signature"
python_display_short_literal_types = True
python_maximum_signature_line_length = 100
autodoc_member_order = "bysource"
numpydoc_show_class_members = False  # pages list the members that they show
numpydoc_attributes_as_param_list = True
numpydoc_validation_checks = {
    "GL03",  # a blank line too many
    "GL06",  # a section that numpydoc does not know
    "GL07",  # sections out of order
    "PR01",  # a parameter that is missing
    "PR02",  # one that is too many
    "PR03",  # parameters out of order
    "PR10",  # no space before the colon
    "SS02",  # a summary without a capital
    "SS03",  # a summary without a full stop
    "YD01",  # a generator that does not say what it yields
}
# Functions describe each argument. Classes describe their fields as attributes, and methods have a line or two.
numpydoc_validation_exclude = {r"\.[A-Z]\w*(\.\w+)?$"}

plot_formats = [("svg", 100)]
plot_html_show_formats = False
plot_html_show_source_link = False
plot_include_source = False
plot_rcparams = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "savefig.facecolor": "white",
    "svg.hashsalt": "portconv",
}
plot_apply_rcparams = True

html_theme = "pydata_sphinx_theme"
html_title = f"portconv {version}"
html_copy_source = False
html_show_sourcelink = False
html_math_renderer = "mathml"
html_static_path = ["_static"]
html_css_files = ["portconv.css"]
html_theme_options = {
    "navigation_with_keys": False,
    "show_nav_level": 2,
    "show_toc_level": 2,
    "footer_start": ["copyright"],
    "footer_end": [],
    "secondary_sidebar_items": ["page-toc"],
}
html_sidebars = {"index": [], "quickstart": [], "features": [], "changelog": []}


def inline_math(translator: Any, node: nodes.math) -> None:
    """Write a formula as MathML, which browsers show without a script."""
    translator.body.append(tex2mathml(node.astext()))
    raise nodes.SkipNode


def displayed_math(translator: Any, node: nodes.math_block) -> None:
    """Write a formula on a line of its own."""
    translator.body.append(f'<div class="formula">{tex2mathml(node.astext(), as_block=True)}</div>')
    raise nodes.SkipNode


def lead_elsewhere(app: Sphinx, doctree: nodes.document) -> None:
    """Point links to files outside docs/ to `PORTCONV_SOURCE_URL`; without it, replace links to folders by names."""
    folder = Path(app.env.doc2path(app.env.docname)).parent
    for node in [*doctree.findall(addnodes.pending_xref), *doctree.findall(addnodes.download_reference)]:
        path = (folder / str(node.get("reftarget", ""))).resolve()
        if node.get("reftype") != "myst" or path.is_relative_to(ROOT / "docs") or not path.is_relative_to(ROOT):
            continue
        if not path.exists():
            continue  # Sphinx reports it
        if SOURCE_URL:
            uri = f"{SOURCE_URL}/{path.relative_to(ROOT).as_posix()}"
            node.replace_self(nodes.reference("", "", *node.children, refuri=uri, internal=False))
        elif path.is_dir():
            node.replace_self(node.children)


def escape_stars(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Escape the star in `(N, C, *spatial)`; docstrings have no escape, because they are read in terminals too."""
    lines[:] = [re.sub(r"(?<=[(,] )\*(?=\w)|(?<=\()\*(?=\w)", r"\\*", line) for line in lines]


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the functions above with Sphinx."""
    app.add_html_math_renderer("mathml", inline_renderers=(inline_math, None), block_renderers=(displayed_math, None))
    app.connect("autodoc-process-docstring", escape_stars, priority=400)  # before numpydoc's own
    app.connect("doctree-read", lead_elsewhere)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
