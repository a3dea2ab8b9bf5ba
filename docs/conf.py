"""How Sphinx builds the site: ``sphinx-build -W --keep-going -n docs build/site``."""

from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx

from composer_distill import __version__

project = "composer-distill"
author = "the composer-distill authors"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

autodoc_typehints = "description"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
python_maximum_signature_line_length = 88
# Other projects' names: their inventories would need the network
nitpick_ignore_regex = [("py:.*", r"(torch|composer|nn|collections|pathlib|numbers)\b.*")]
nitpick_ignore = [("py:class", "Schedule"), ("py:class", "PreTrainedModel")]

html_theme = "furo"
html_title = "composer-distill"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_copyright = False
html_math_renderer = "mathml"


def setup(app: Sphinx) -> None:
    """Write formulas as MathML, which browsers draw themselves: no script, no network."""

    def inline(translator: Any, node: nodes.math) -> None:
        translator.body.append(convert(node.astext()))
        raise nodes.SkipNode

    def block(translator: Any, node: nodes.math_block) -> None:
        formula = convert(node.astext(), display="block")
        translator.body.append(f'<div class="formula">{formula}</div>')
        raise nodes.SkipNode

    app.add_html_math_renderer("mathml", (inline, None), (block, None))
