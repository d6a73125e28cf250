"""Sphinx settings of the book. `make book` first runs `assemble.py`, then Sphinx on what it wrote."""

import inspect
import sys
from pathlib import Path

from docutils.nodes import SkipNode
from fastcore.docments import docments

from ssl_nb.runs.report import mathml

project, author, copyright = "ssl_nb", "The ssl_nb authors", "2026 onwards, The ssl_nb authors"
extensions = ["myst_nb", "sphinx_external_toc", "sphinx.ext.autodoc"]
suppress_warnings = ["config.cache", "mystnb.unknown_mime_type"]  # unknown: what `ssl_nb` reads from a notebook by itself
external_toc_path = "_toc.yml"
html_theme, html_title = "furo", "ssl_nb"
html_static_path, html_css_files = ["static"], ["book.css"]
html_math_renderer = "mathml"

nb_execution_mode = "off"  # committed outputs are shown as they are
nb_merge_streams = True
nb_render_markdown_format = "myst"  # links in the outputs of cells, too
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 4
sys.path.insert(0, str(Path(__file__).parent))
myst_heading_slug_func = "assemble.anchor"  # by name: Sphinx pickles its settings
myst_links_external_new_tab = True

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
python_maximum_signature_line_length = 88
add_module_names = False


def formula(display):
    "A visitor that writes a formula as MathML, which browsers draw without a script and without a network."

    def visit(self, node):
        made = mathml(node.astext(), display)
        self.body.append(f'<div class="math">{made}</div>' if display == "block" else made)
        raise SkipNode

    return visit


def parameter_comments(app, what, name, obj, options, lines):
    "The comments beside parameters, which nbdev's style has in place of a docstring's section."
    if not (inspect.isfunction(obj) or inspect.isclass(obj)):
        return
    try:
        comments = docments(obj.__init__ if inspect.isclass(obj) else obj, returns=False)
    except (OSError, TypeError):  # made without source, such as the constructor of a named tuple
        return
    fields = [":param {}: {}".format(key, text.replace("*", r"\*")) for key, text in comments.items() if text and key != "self"]
    lines += ["", *fields] if fields else []


def setup(app):
    app.add_html_math_renderer("mathml", (formula("inline"), None), (formula("block"), None))
    app.connect("autodoc-process-docstring", parameter_comments)
