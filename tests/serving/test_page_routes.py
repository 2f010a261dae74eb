"""The page is complete in itself: every file is served, none asks for anything from elsewhere."""

import re

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from serving.service.page import POLICY, STATIC, page_routes

CLIENT = TestClient(Starlette(routes=page_routes()))
PATHS = [route.path for route in page_routes()]


@pytest.mark.parametrize("path", PATHS)
def test_every_file_comes_with_the_policy(path: str) -> None:
    answer = CLIENT.get(path)

    assert answer.status_code == 200
    assert answer.content == (STATIC / (path.strip("/") or "index.html")).read_bytes()
    assert answer.headers["content-security-policy"] == POLICY
    assert CLIENT.get(path, headers={"if-none-match": answer.headers["etag"]}).status_code == 304


def test_what_the_files_name_is_served() -> None:
    named = set()
    for path in STATIC.iterdir():
        named |= set(re.findall(r'(?:from |href=|src=)"(?:\./)?([\w-]+\.(?:js|css|svg))"', path.read_text()))
    assert named >= {"app.js", "style.css", "icon.svg", "api.js", "chart.js", "picture.js"}
    assert {f"/{name}" for name in named} <= set(PATHS)


def test_no_file_names_another_host() -> None:
    for path in STATIC.iterdir():
        foreign = set(re.findall(r"https?://[^\s\"']+", path.read_text()))
        assert foreign <= {"http://www.w3.org/2000/svg"}, path.name


def test_nothing_inline_that_the_policy_would_refuse() -> None:
    page = (STATIC / "index.html").read_text()
    assert not re.search(r"\sstyle=|\son\w+=|<style|<script(?![^>]*src=)", page)
