# SPDX-License-Identifier: BSD-3-Clause
"""How the documentation is built: ``make doc``.

No page needs the network. With ``PPDAEMON_DOC_INTERSPHINX=1`` in the
environment, names of Python, NumPy and pydantic become links.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

import ppdaemon

project = "ppdaemon"
author = "the ppdaemon developers"
project_copyright = f"2026, {author}"
version = release = ppdaemon.__version__

extensions = [
    "fromcode",
    "numpydoc",
]
exclude_patterns = ["_ext"]
default_role = "py:obj"
highlight_language = "text"
nitpicky = True
nitpick_ignore_regex = [
    (r"py:.*", r"(?!ppdaemon\b)[a-z_0-9]+(\.\w+)*"),  # of others: only intersphinx resolves them
    (r"py:.*", r"None|True|False|T|NoneType|FieldInfo"),
    (r"py:.*", r"ppdaemon(\.\w+)*\._\w+"),  # private aliases of types in signatures
    (
        r"py:.*",
        r"ppdaemon\.(selection\.(Image|Coord)Type|camera\.SkyPoint|yamlfile\.KeyPath"
        r"|reports\.(common\.ProblemSource|requests\.CatchupState)|messages\.reader\.ReadKind)",
    ),  # type statements
]
suppress_warnings = ["ref.python"]  # the builtin ``type`` and the many fields of this name

html_theme = "furo"
html_title = f"ppdaemon {release}"
html_static_path = ["_static"]
html_css_files = ["ppdaemon.css"]
html_copy_source = False
html_show_sourcelink = False

autodoc_default_options = {
    "members": True,
    "undoc-members": True,
    "member-order": "bysource",
    "exclude-members": "__init__, model_config, model_post_init",
}
autodoc_typehints = "signature"
autodoc_class_signature = "separated"  # those of models show their validators
numpydoc_show_class_members = False

if os.environ.get("PPDAEMON_DOC_INTERSPHINX"):
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "numpy": ("https://numpy.org/doc/stable", None),
        "pydantic": ("https://docs.pydantic.dev/latest", None),
    }
