"""Builds the light client (PEP 517): gathers the client's modules under the one import name `hatrack`, and packs them.

The modules are all of `service/client`, the command in `service/cli`, and whatever of `service` and `adapters` these
import. Their imports are rewritten, and the names of modules in their docstrings: `service.client` becomes
`hatrack.client`, `adapters.names` becomes `hatrack.adapters.names`; so that nothing is in the way of another
`adapters`, such as PyPI's. What is in `hatrack/` beside this file takes the place of the module of its name; what only
that module imports stays out.

Only setuptools and the standard library are used.
"""

from __future__ import annotations

import ast
import re
import shutil
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

HERE: Final = Path(__file__).resolve().parent
REPO: Final = HERE.parent.parent
PACKAGE: Final = "hatrack"
NEW_NAMES: Final = {"service": PACKAGE, "adapters": f"{PACKAGE}.adapters"}
"""Top-level packages of the full product, and what becomes of them."""
CLIENT: Final = "service/client"
COMMAND: Final = ("service.cli.main", "service.cli.__main__")
OWN_BACKEND: Final = 'build-backend = "backend"\nbackend-path = ["."]'
PLAIN_BACKEND: Final = 'build-backend = "setuptools.build_meta"'


class CannotBuild(Exception):
    """A module has an import in a form that is not rewritten."""


# the hooks of PEP 517


def build_wheel(
    wheel_directory: str, config_settings: dict[str, Any] | None = None, metadata_directory: str | None = None
) -> str:
    """Build the wheel; returns its file name."""
    from setuptools import build_meta

    target = Path(wheel_directory).resolve()
    with TemporaryDirectory(prefix="hatrack-client-") as tree:
        gather(Path(tree))
        with chdir(tree):
            return str(build_meta.build_wheel(str(target), config_settings))


def build_sdist(sdist_directory: str, config_settings: dict[str, Any] | None = None) -> str:
    """Build the source distribution, of the gathered modules; returns its file name."""
    from setuptools import build_meta

    target = Path(sdist_directory).resolve()
    with TemporaryDirectory(prefix="hatrack-client-") as tree:
        gather(Path(tree))
        with chdir(tree):
            return str(build_meta.build_sdist(str(target), config_settings))


# what is in the package


def gather(target: Path) -> None:
    """Write the package, and what setuptools needs to pack it, into an empty directory. Raises CannotBuild."""
    modules = needed()
    dotted = sorted((module for module in modules if "." in module), reverse=True)  # `adapters` alone is also a word
    known = re.compile(rf"(?<![\w./])({'|'.join(map(re.escape, dotted))})\b")
    for module, path in modules.items():
        written = target / new_path(module, path)
        written.parent.mkdir(parents=True, exist_ok=True)
        written.write_text(rewritten(path, known), encoding="utf-8")
    for path in replacements():
        written = target / path.relative_to(HERE)
        written.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, written)
    version = f'"""The release."""\n\n__version__ = {released()!r}\n'
    (target / PACKAGE / "_version.py").write_text(version, encoding="utf-8")
    (target / PACKAGE / "py.typed").touch()
    shutil.copyfile(REPO / "LICENSE", target / "LICENSE")
    shutil.copyfile(HERE / "README.md", target / "README.md")
    project = (HERE / "pyproject.toml").read_text(encoding="utf-8")
    (target / "pyproject.toml").write_text(project.replace(OWN_BACKEND, PLAIN_BACKEND), encoding="utf-8")


def needed() -> dict[str, Path]:
    """The modules that the client and the command are made of, with their files: theirs, and what they import."""
    replaced = {old_name(path) for path in replacements()}
    waiting = [*COMMAND, *(name_of(path) for path in sorted((REPO / CLIENT).rglob("*.py")))]
    modules: dict[str, Path] = {}
    while waiting:
        module = waiting.pop()
        path = file_of(module)
        if path is None or module in modules or module in replaced:
            continue
        modules[module] = path
        waiting.append(module.rpartition(".")[0])
        for node in imports(path):
            waiting.append(str(node.module))
            waiting += [f"{node.module}.{name.name}" for name in node.names]
    return modules


def replacements() -> list[Path]:
    """The modules beside this file, which the full product has in another form or not at all."""
    return sorted((HERE / PACKAGE).rglob("*.py"))


def imports(path: Path) -> Iterator[ast.ImportFrom]:
    """A module's imports of the product's packages, wherever in it they are. Raises CannotBuild."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            raise CannotBuild(f"{path}, line {node.lineno}: imports relatively; name the whole module")
        if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] in NEW_NAMES:
            yield node
        if isinstance(node, ast.Import) and {name.name.split(".")[0] for name in node.names} & set(NEW_NAMES):
            raise CannotBuild(f"{path}, line {node.lineno}: write `from … import …`, which can be rewritten")


def rewritten(path: Path, known: re.Pattern[str]) -> str:
    """A module's text with the new names of modules in its imports and its docstrings.

    Args:
        known: Matches the old names.
    """
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines(keepends=True)
    for node in imports(path):
        at, start = node.lineno - 1, node.col_offset + len("from ")
        old = str(node.module)
        line = lines[at].encode()  # columns are counted in bytes
        if line[start : start + len(old)] != old.encode():
            raise CannotBuild(f"{path}, line {node.lineno}: the module must follow `from ` on its line")
        lines[at] = (line[:start] + new_name(old).encode() + line[start + len(old) :]).decode()
    for first, last in docstrings(ast.parse(text)):
        for at in range(first, last):
            lines[at] = known.sub(lambda match: new_name(match[0]), lines[at])
    return "".join(lines)


def docstrings(tree: ast.Module) -> Iterator[tuple[int, int]]:
    """Where the texts stand that document a module, its classes, functions and values: from a line up to another."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.lineno - 1, int(node.end_lineno or node.lineno)


# names of modules


def name_of(path: Path) -> str:
    """The module in a file of the repository."""
    return ".".join(path.relative_to(REPO).with_suffix("").parts).removesuffix(".__init__")


def file_of(module: str) -> Path | None:
    """The file of a module of the repository; None if there is no such module."""
    if not module:
        return None
    path = REPO.joinpath(*module.split("."))
    candidates = (path / "__init__.py", path.with_suffix(".py"))
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def new_name(module: str) -> str:
    """The module's name in the package."""
    top, dot, rest = module.partition(".")
    return f"{NEW_NAMES[top]}{dot}{rest}"


def old_name(replacement: Path) -> str:
    """The name in the repository of the module that a file beside this one replaces."""
    module = ".".join(replacement.relative_to(HERE).with_suffix("").parts).removesuffix(".__init__")
    return module.replace(PACKAGE, "service", 1)


def new_path(module: str, path: Path) -> Path:
    """The module's file in the package."""
    parts = new_name(module).split(".")
    return Path(*parts, "__init__.py") if path.name == "__init__.py" else Path(*parts).with_suffix(".py")


def released() -> str:
    """The product's version, as its gateway says it."""
    tree = ast.parse((REPO / "service" / "__init__.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            return str(node.value.value)
    raise CannotBuild("service/__init__.py has no __version__")
