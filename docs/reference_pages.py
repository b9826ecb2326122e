"""A hook of MkDocs that makes the reference: one page per part of the package.

Each page shows the public names of one part: those of its ``__all__``, or, in a module without
one, all that is defined there and does not start with an underscore. The build fails if one of
them has no docstring, or if a name of ``dipolegnn.__all__`` is on no page.
"""

from __future__ import annotations

from pathlib import Path

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
INTERNAL = {"cli", "app", "ops", "__main__"}
"""Parts without an interface for Python: commands, page, kernels."""
ALSO = {"inference": ["calculator", "derivatives", "ray"], "plots": ["scene"]}
"""Modules that are imported by their own name, because they need an extra or serve one purpose."""


def public_names(part: griffe.Object) -> list[str]:
    """The names that a part offers, in the order in which it lists or defines them."""
    if part.exports is not None:
        return [str(name) for name in part.exports]
    return [
        name
        for name, member in part.members.items()
        if not (name.startswith("_") or member.is_alias or member.is_module)
        and (member.has_docstring or not member.is_attribute)
    ]


def find(part: griffe.Object, name: str) -> griffe.Object | griffe.Alias:
    """A public name; a function that has the name of its module hides the module."""
    member = part.members[name]
    return member.members[name] if member.is_module else member


def undocumented(member: griffe.Object | griffe.Alias) -> list[str]:
    """Paths of a class or function and of its public methods that have no docstring."""
    own = [] if member.has_docstring else [member.path]
    if not member.is_class:
        return own
    methods = [
        method
        for name, method in member.members.items()
        if method.is_function and not name.startswith("_")
    ]
    # forward is described by the class, as in PyTorch.
    return own + [m.path for m in methods if not m.has_docstring and m.name != "forward"]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages of the reference, and an index of the names at the top level."""
    package = griffe.load("dipolegnn", search_paths=[ROOT])
    assert isinstance(package, griffe.Module)
    homes: dict[str, str] = {}  # where an object is defined -> the path it is shown under
    missing: list[str] = []
    pages: list[str] = []
    for name, part in sorted(package.modules.items()):
        if name.startswith("_") or name in INTERNAL:
            continue
        shown = []
        modules = [part, *(part.modules[module] for module in ALSO.get(name, []))]
        for member in (find(m, public) for m in modules for public in public_names(m)):
            path = member.canonical_path
            if path in homes or not path.startswith("dipolegnn."):
                continue
            homes[path] = member.path
            shown.append(f"::: {member.path}\n")
            missing += undocumented(member)
        if shown:
            head = part.docstring.value.splitlines()[0] if part.docstring else ""
            text = f"# dipolegnn.{name}\n\n{head}\n\n" + "\n".join(shown)
            files.append(File.generated(config, f"reference/{name}.md", content=text))
            pages.append(f"| [`dipolegnn.{name}`]({name}.md) | {head} |")
    rows = []
    for public in public_names(package):
        if public == "__version__":
            continue
        home = homes.get(find(package, public).canonical_path)
        if home is None:
            missing.append(f"dipolegnn.{public} (on no page of the reference)")
        rows.append(f"| `dipolegnn.{public}` | [`{home}`][{home}] |")
    if missing:
        raise PluginError("Public names without a docstring:\n" + "\n".join(missing))
    index = "\n".join(
        [
            "# Reference\n\nMade from the docstrings.\n\n## Names at the top level\n",
            "| name | described with |\n|---|---|",
            *rows,
            "\n## Parts of the package\n\n| part | what it is |\n|---|---|",
            *pages,
        ]
    )
    files.append(File.generated(config, "reference/index.md", content=index + "\n"))
    return files
