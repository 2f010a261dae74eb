"""The page is complete in itself: what its files name is there, and none asks for anything from elsewhere."""

import re

from serving.service.page import STATIC

FILES = {path.name: path.read_text() for path in STATIC.iterdir()}
NAMED = re.compile(r'(?:from "\./|(?:href|src)="static/)([\w-]+\.(?:js|css|svg))"')


def test_what_the_files_name_is_there() -> None:
    named = {name for text in FILES.values() for name in NAMED.findall(text)}
    assert named | {"index.html"} == set(FILES)


def test_no_file_names_another_host() -> None:
    found = {name: set(re.findall(r"https?://[^\s\"']+", text)) for name, text in FILES.items()}
    assert {name: urls - {"http://www.w3.org/2000/svg"} for name, urls in found.items() if urls} == {
        "chart.js": set(),
        "icon.svg": set(),
    }


def test_nothing_is_inline_that_the_policy_would_refuse() -> None:
    assert not re.search(r"\sstyle=|\son\w+=|<style|<script(?![^>]*src=)", FILES["index.html"])


def test_every_element_that_the_scripts_look_for_is_in_the_page() -> None:
    scripts = "".join(text for name, text in FILES.items() if name.endswith(".js"))
    ids = set(re.findall(r'id="([\w-]+)"', FILES["index.html"]))
    assert set(re.findall(r'\bat\("([\w-]+)"\)', scripts)) <= ids
