"""Sphinx configuration; the site builds offline (intersphinx inventories are in _inventories)."""

from __future__ import annotations

import ast
import inspect
import runpy
import struct
import textwrap
import tomllib
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from docutils import nodes
from sphinx.ext.intersphinx import InventoryAdapter, resolve_reference_any_inventory
from sphinx.ext.napoleon.docstring import NumpyDocstring
from sphinx.util.inspect import TypeAliasForwardRef

import scr2mae

if TYPE_CHECKING:
    from docutils.nodes import Element, TextElement, reference
    from sphinx.addnodes import pending_xref
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

HERE = Path(__file__).parent
_WIDE = 1.6  # width over height from which a figure is wide

project = "scr2mae"
author = "scr2mae developers"
copyright = "2026, scr2mae developers"
version = release = scr2mae.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx-mathjax-offline",
    "sphinxext.opengraph",
]
exclude_patterns = ["_build", "**.ipynb_checkpoints"]
default_role = "code"
nitpicky = True
nitpick_ignore_regex = [  # internal classes in annotations and among bases, described where they are used
    ("py:class", r"lightning\..*\.WeightAveraging"),
    (
        "py:class",
        r"(scr2mae\.[\w.]+\.|history\.)?(BackedCounts|BatchLoader|BatchLoss|Calibration|CellModel|CellPanels|Collate|Columns|Corruption|DecayingNetwork|Density|"
        r"Device|DeviceCells|Embedder|Features|Float|GroupAttributions|Head|History|ImageFiles|Kind|LawLike|LinearMap|Method|"
        r"PaperSettings|PixelNetwork|Rejection|RobertaConfig|Scheme|ShrunkCovariance|SparseRows|Studies|"
        r"MaskedLoss|SavedNetwork|Splits|TextNetwork|ViTMAEConfig|_Head|_Network|\w+Mixin)",
    ),
]

# Tutorials: the notebooks with the outputs that are stored in them; `make test-tutorials` executes them. They are copied,
# for Sphinx reads no page from outside its folder.
write_gallery = runpy.run_path(str(HERE / "gallery.py"))["write"]
write_gallery(HERE.parent / "tutorials", HERE / "tutorials", front=HERE / "_static" / "blood_cells.png")

# Pages: MyST Markdown whose code cells are executed at every build, so that no output goes stale.
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath", "fieldlist"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_excludepatterns = ["tutorials/*"]
nb_execution_in_temp = True
nb_execution_timeout = 600
nb_execution_raise_on_error = True
nb_merge_streams = True
nb_output_stderr = "remove"  # progress bars; the tests run the same cells with warnings as errors
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

# API: types live in the signatures, the text gives shape, unit, range and errors.
autosummary_generate = True
autosummary_context = {
    "model_methods": {  # by task, without what only the package calls; tests/test_docs.py checks that none is forgotten
        "Set up": ["setup_anndata", "paper"],
        "Train": ["train", "integrate", "from_pretrained"],
        "Embed": ["get_latent_representation", "get_reconstruction_error", "get_gene_attributions"],
        "Impute and predict": [
            *("get_normalized_expression", "get_masked_reconstruction"),
            *("get_likelihood_parameters", "posterior_predictive_sample", "get_pearson_residuals"),
            "get_imputation_scores",
        ],
        "Query": ["prepare_query_anndata", "load_query_data"],
        "Save, load and share": [
            *("save", "load", "push_to_hub", "from_hub", "export_scvi"),
            *("load_registry", "view_setup_args", "fingerprint", "embedding_fingerprint"),
        ],
        "Inspect": ["get_curriculum_weights", "to_device", "seed"],
    }
}
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
autodoc_typehints = "description"
toc_object_entries_show_parents = "hide"  # the contents beside a class have room for names of methods alone
autodoc_typehints_description_target = "documented"
autodoc_typehints_format = "short"
napoleon_google_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
python_use_unqualified_type_names = True
templates_path = ["_templates"]

_sites = runpy.run_path(str(HERE / "_inventories" / "make.py"))["SITES"]
intersphinx_mapping = {
    name: (site.url, str(HERE / "_inventories" / f"{name}.inv")) for name, site in _sites.items()
}
intersphinx_disabled_reftypes = []

URLS = tomllib.loads((HERE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]

html_theme = "sphinx_book_theme"
html_title = f"scr2mae {version}"
html_logo = "_static/logo.svg"
html_favicon = "_static/favicon.svg"
html_baseurl = URLS["Documentation"]
ogp_site_url = html_baseurl
ogp_site_name = "scr2mae"
ogp_image = "_static/blood_cells.png"
ogp_social_cards = {"enable": False}
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_extra_path = ["llms.txt"]
html_show_sourcelink = False
html_theme_options = {
    "logo": {"text": f"scr2mae {version}"},
    "navbar_persistent": [],
    "show_toc_level": 2,
    "show_navbar_depth": 1,
    "use_download_button": False,
    "use_fullscreen_button": False,
    "repository_url": URLS["Repository"],
    "repository_branch": "main",
    "path_to_docs": "docs",
    "use_repository_button": True,
    "use_edit_page_button": True,
    "use_issues_button": True,
    "launch_buttons": {
        "colab_url": "https://colab.research.google.com",
        "binderhub_url": "https://mybinder.org",
    },
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
    "extra_footer": 'Method: <a href="https://arxiv.org/abs/2509.21650">Dong, Wang &amp; Kluger (2025)</a>.',
}


def _parse_returns(self: NumpyDocstring, section: str) -> list[str]:
    """Take a Returns section as prose: types live in the signature here, where numpydoc expects one first."""
    return self._format_block(":returns: ", self._dedent(self._consume_to_next_section()))


def _parse_attributes(self: NumpyDocstring, section: str) -> list[str]:
    """Let one entry describe several attributes, as one does several parameters."""
    return self._format_docutils_params(self._consume_fields(multiple=True), "ivar", "vartype")


def _parse_attribute_docstring(self: NumpyDocstring) -> list[str]:
    """Take the docstring of a property as it is; what stands before its first colon is no type."""
    return list(self._lines)


NumpyDocstring._parse_returns_section = _parse_returns
NumpyDocstring._parse_attributes_section = _parse_attributes
NumpyDocstring._parse_attribute_docstring = _parse_attribute_docstring


def _annotations_as_written(app: Sphinx, obj: Any, bound_method: bool) -> None:
    """Show the annotations of the source: evaluated, ``ArrayLike`` alone fills ten lines."""
    obj = getattr(obj, "__func__", obj)
    if not inspect.isfunction(obj) or not obj.__module__.startswith("scr2mae"):
        return
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(obj))).body[0]
    except (OSError, SyntaxError, TypeError):  # generated, by a dataclass for one
        return
    if isinstance(tree, ast.FunctionDef):
        arguments = [
            *tree.args.posonlyargs,
            *tree.args.args,
            *tree.args.kwonlyargs,
            tree.args.vararg,
            tree.args.kwarg,
        ]
        written = {each.arg: each.annotation for each in arguments if each and each.annotation}
        if tree.returns is not None:
            written["return"] = tree.returns
        # Sphinx would evaluate the strings of a function, but not those of a class, which it reads from __init__.
        opaque = str if obj.__name__ == "__init__" else TypeAliasForwardRef
        obj.__annotations__ = {name: opaque(ast.unparse(node)) for name, node in written.items()}


def _public_bases(app: Sphinx, name: str, obj: Any, options: Any, bases: list[Any]) -> None:
    """Show what a class inherits from in public, not the private classes that hold its methods."""

    def public(base: Any) -> list[Any]:
        first, *inner = base.__module__.split(".")
        is_private = any(part.startswith("_") for part in inner) or base.__name__.endswith("Mixin")
        if first != "scr2mae" or not is_private:
            return [base]
        return [shown for each in base.__bases__ for shown in public(each)]

    shown = dict.fromkeys(each for base in bases for each in public(base))
    bases[:] = [base for base in shown if base is not object] or [object]


def _full_names(env: BuildEnvironment) -> dict[str, set[str]]:
    """Last part of a name to the full names, of this package's objects and of the inventories', that end in it."""
    found: dict[str, set[str]] = {}
    inventories = InventoryAdapter(env).main_inventory
    known = [names for role, names in inventories.items() if role.startswith("py:")]
    for name in chain(env.domains.python_domain.objects, *known):
        found.setdefault(name.rpartition(".")[2], set()).add(name)
    return found


def _resolve_short_name(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, contnode: TextElement
) -> reference | None:
    """Find what an annotation calls by a short name (``AnnData``, ``np.ndarray``) or a private path, if one fits."""
    if node.get("refdomain") != "py":
        return None
    candidates = _full_names(env).get(node["reftarget"].rpartition(".")[2], set())
    if len(candidates) != 1:
        return None
    node["reftarget"], node["reftype"] = candidates.copy().pop(), "obj"
    if node["reftarget"] in env.domains.python_domain.objects:
        return env.domains.python_domain.resolve_xref(
            env, node["refdoc"], app.builder, "obj", node["reftarget"], node, contnode
        )
    return resolve_reference_any_inventory(env, False, node, contnode)


def _mark_wide_images(app: Sphinx, doctree: Element, docname: str) -> None:
    """Give wide figures a class of their own: on a phone they scroll, for shrunk their text cannot be read."""
    for image in doctree.findall(nodes.image):
        path = Path(app.srcdir, image["uri"])
        if path.suffix == ".png" and path.is_file():
            width, height = struct.unpack(">II", path.read_bytes()[16:24])
            if width > _WIDE * height:
                image["classes"].append("wide")


def _lead_to_sources(
    app: Sphinx, pagename: str, template: str, context: dict[str, Any], doctree: Any
) -> None:
    """Let buttons of tutorials lead to the folder in the repository; pages that are generated have nothing to edit."""

    def mend(buttons: list[Any]) -> list[Any]:
        kept = []
        for button in buttons:
            if "buttons" in button:
                button["buttons"] = mend(button["buttons"])
            url = button.get("url", "")
            if pagename.startswith("api/generated/") and "/edit/" in url:
                continue
            if url and pagename.startswith("tutorials/") and pagename != "tutorials/index":
                button["url"] = url.replace("docs/tutorials/", "tutorials/").replace(
                    "docs%2Ftutorials", "tutorials"
                )
            kept.append(button)
        return kept

    context["header_buttons"] = mend(context.get("header_buttons", []))


def setup(app: Sphinx) -> None:
    """Register the handlers: before autodoc reads signatures, after intersphinx gave up, before pages are written."""
    app.extensions["sphinx-mathjax-offline"].parallel_read_safe = True  # it sets a path and does not say so
    app.connect("doctree-resolved", _mark_wide_images)
    app.connect("autodoc-before-process-signature", _annotations_as_written)
    app.connect("autodoc-process-bases", _public_bases)
    app.connect("missing-reference", _resolve_short_name, priority=600)
    app.connect("html-page-context", _lead_to_sources, priority=900)
