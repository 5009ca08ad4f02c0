"""The console as it is served: its headers, and that its files are whole, quiet and from here alone."""

from __future__ import annotations

import json
import re
import threading
import tomllib
from collections.abc import AsyncIterator
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from fastapi import FastAPI

from service.console.routes import POLICY, STATIC, StaticFile, console, static_files
from service.training.openapi import FORWARDED as FORWARDED_ROUTES
from tests.conftest import REPO

OURS = [name for name in static_files() if not name.startswith("vendor/")]
MODULES = [name for name in static_files() if name.endswith(".js")]
WORDS = {"http://www.w3.org/2000/svg"}
"""Names that look like addresses; no browser asks for them."""
VENDORED = "72284e8e9079c87817145df1110f74e8a2aa040b2fc384922e18dfcb46fc1fd7"
"""`preact/standalone.module.js` of the npm package htm 3.1.1, as it was published."""
FORWARDED = [route.path for route in FORWARDED_ROUTES]
MAX_LINES = 400


@pytest_asyncio.fixture
async def browser() -> AsyncIterator[httpx.AsyncClient]:
    """A client of an app that serves the console alone."""
    app = FastAPI(openapi_url=None)
    app.include_router(console())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://hatrack") as client:
        yield client


class Tags(HTMLParser):
    """All tags of a page with their attributes, and the text inside scripts and styles."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inline = ""
        self._within = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._within = tag

    def handle_endtag(self, tag: str) -> None:
        self._within = ""

    def handle_data(self, data: str) -> None:
        if self._within in ("script", "style"):
            self.inline += data


def tags_of(page: str) -> Tags:
    parser = Tags()
    parser.feed(page)
    return parser


async def test_the_page_may_load_from_here_alone_and_is_never_stored(browser: httpx.AsyncClient) -> None:
    page = await browser.get("/console")
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.headers["cache-control"] == "no-store"
    assert "etag" not in page.headers
    assert page.headers["x-content-type-options"] == "nosniff"
    assert page.headers["referrer-policy"] == "no-referrer"
    policy = dict(part.strip().split(" ", 1) for part in page.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == policy["object-src"] == "'none'"
    assert policy["require-trusted-types-for"] == "'script'"
    assert "unsafe" not in POLICY
    assert {"script-src", "style-src", "connect-src", "img-src"}.isdisjoint(policy), "default-src holds for them"


@pytest.mark.parametrize("name", static_files())
async def test_every_file_says_what_it_is_and_is_asked_for_anew_only_if_it_changed(
    browser: httpx.AsyncClient, name: str
) -> None:
    if name == "index.html":
        return
    file = await browser.get(f"/console/{name}")
    assert file.content == (STATIC / name).read_bytes()
    assert file.headers["x-content-type-options"] == "nosniff"
    assert file.headers["content-security-policy"] == POLICY
    assert file.headers["cache-control"] == "no-cache"
    kinds = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".txt": "text/plain"}
    assert file.headers["content-type"].startswith(kinds[Path(name).suffix])
    again = await browser.get(f"/console/{name}", headers={"if-none-match": file.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    changed = await browser.get(f"/console/{name}", headers={"if-none-match": '"another"'})
    assert changed.status_code == 200


async def test_a_file_is_hashed_once_and_again_after_a_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[bytes] = []
    threads: set[int] = set()

    def counting(content: bytes) -> Any:
        hashed.append(content)
        threads.add(threading.get_ident())
        return sha256(content)

    monkeypatch.setattr("service.console.routes.hashlib.sha256", counting)
    path = tmp_path / "main.js"
    path.write_bytes(b"one")
    file = StaticFile(path)
    first = await file.content()
    assert await file.content() == first
    path.write_bytes(b"another")
    content, etag = await file.content()
    assert (content, etag != first[1]) == (b"another", True), "an edited file is seen at the next reload"
    assert hashed == [b"one", b"another"]
    assert threading.get_ident() not in threads, "not on the event loop"


async def test_no_path_leads_out_of_the_folder(browser: httpx.AsyncClient) -> None:
    for path in ("/console/../routes.py", "/console/%2e%2e/routes.py", "/console/vendor/", "/console/index.html"):
        assert (await browser.get(path)).status_code == 404


async def test_the_page_has_no_script_style_or_handler_of_its_own(browser: httpx.AsyncClient) -> None:
    parser = tags_of((await browser.get("/console")).text)
    assert parser.inline.strip() == ""
    for tag, attributes in parser.tags:
        assert tag != "style"
        assert not [name for name in attributes if name.startswith("on") or name == "style"], (tag, attributes)
    assert dict(parser.tags[0][1])["lang"] == "en"
    assert [attributes["src"] for tag, attributes in parser.tags if tag == "script"] == ["/console/main.js"]


async def test_whatever_the_page_names_is_served(browser: httpx.AsyncClient) -> None:
    tags = tags_of((await browser.get("/console")).text).tags
    named = [attributes.get("src") or attributes.get("href") for _, attributes in tags]
    addresses = [address for address in named if address]
    assert len(addresses) == 4
    for address in addresses:
        assert (await browser.get(address)).status_code == 200, address


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_files_that_exist_and_names_that_they_export(name: str) -> None:
    text = (STATIC / name).read_text()
    for names, source in re.findall(r'^import \{([^}]*)\} from "([^"]*)";$', text, re.MULTILINE):
        assert source.startswith("./"), f"{name} imports {source}, which a browser cannot find"
        exporter = ((STATIC / name).parent / source).resolve()
        assert exporter.relative_to(STATIC).as_posix() in MODULES
        code = exporter.read_text()
        exported = set(re.findall(r"^export (?:async )?(?:function\*?|const|class) (\w+)", code, re.MULTILINE))
        for group in re.findall(r"export\{([^}]*)\}", code):
            exported |= {each.split(" as ")[-1] for each in group.split(",")}
        missing = {each.strip() for each in names.split(",") if each.strip()} - exported
        assert not missing, f"{source} does not export {missing}"
        unused = [
            each
            for each in (part.strip() for part in names.split(","))
            if not re.search(rf"\b{each}\b", text.replace(names, "", 1))
        ]
        assert not unused, f"{name} does not use {unused}"
    imports = text.count("import ") if name.startswith("vendor/") else len(re.findall(r"^import ", text, re.MULTILINE))
    assert imports == len(re.findall(r'^import \{[^}]*\} from "[^"]*";$', text, re.MULTILINE))


def test_every_module_is_reached_from_the_first() -> None:
    reached, ahead = set(), ["main.js"]
    while ahead:
        name = ahead.pop()
        if name not in reached:
            reached.add(name)
            sources = re.findall(r'^import \{[^}]*\} from "\./([^"]*)";$', (STATIC / name).read_text(), re.MULTILINE)
            ahead += sources
    assert reached == set(MODULES)


@pytest.mark.parametrize("name", static_files())
def test_nothing_is_loaded_from_elsewhere_or_becomes_html(name: str) -> None:
    if name.endswith(".txt"):
        return
    text = (STATIC / name).read_text()
    if not name.startswith("vendor/"):
        assert set(re.findall(r"https?://[^\s\"'`<>)]*", text)) <= WORDS
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|dangerouslySetInnerHTML|srcdoc", text
        )
        assert not re.search(r"\bstyle=|localStorage|document\.cookie|javascript:", text)
    assert not re.search(r"\beval\(|new Function|setTimeout\(\s*[\"'`]", text)
    assert not name.endswith(".css") or not re.search(r"@import|url\(", text), "a style loads nothing"


@pytest.mark.parametrize("name", OURS)
def test_files_stay_small(name: str) -> None:
    assert len((STATIC / name).read_text().splitlines()) <= MAX_LINES


def test_what_is_vendored_is_what_was_published_with_its_licences() -> None:
    vendor = {name for name in static_files() if name.startswith("vendor/")}
    assert vendor == {"vendor/preact.js", "vendor/LICENSE-htm.txt", "vendor/LICENSE-preact.txt"}
    assert sha256((STATIC / "vendor/preact.js").read_bytes()).hexdigest() == VENDORED
    assert "Apache License" in (STATIC / "vendor/LICENSE-htm.txt").read_text()
    assert "MIT License" in (STATIC / "vendor/LICENSE-preact.txt").read_text()


def test_a_wheel_has_the_files() -> None:
    package_data = tomllib.loads((REPO / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert "static/**" in package_data["service.console"]
    assert set(static_files()) == {
        path.relative_to(STATIC).as_posix() for path in STATIC.rglob("*") if path.is_file()
    }, "every file in the folder is served; what is not belongs elsewhere"


def test_the_paths_that_it_asks_are_the_api_s() -> None:
    routes = json.loads((REPO / "tests" / "contract" / "routes.json").read_text())
    routes = {*(key.split(" ")[1] for key in routes), *FORWARDED, "/v1/models", "/v1/chat/completions", "/readyz"}
    known = [re.compile(re.sub(r"\\\{[^}]*\\\}", "[^/]+", re.escape(path))) for path in routes]
    asked = {
        re.sub(r"\$\{[^}]*\}", "x", path).partition("?")[0]
        for name in OURS
        for path in re.findall(r"[\"`](/v1/[^\"`]*)", (STATIC / name).read_text())
    }
    assert len(asked) > 8
    assert {path for path in asked if not any(each.fullmatch(path) for each in known)} == set()
