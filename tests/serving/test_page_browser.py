"""The page in a real browser: what it shows is what the bundle answers."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sample_models import grey_images, table_rows

from vae_anomaly import Bundle

playwright = pytest.importorskip("playwright.sync_api", reason="the browser tests need playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt install chromium"),
]

TOKEN = "a-token-of-this-test"
# A file dropped or pasted, as the browser would tell of it.
HAND_OVER = """([way, text]) => {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const held = new DataTransfer();
  held.items.add(new File([bytes], "a.png", {type: "image/png"}));
  const [target, event] = way === "drop"
    ? [document.getElementById("drop"), new DragEvent("drop", {dataTransfer: held, cancelable: true})]
    : [document, new ClipboardEvent("paste", {clipboardData: held})];
  target.dispatchEvent(event);
}"""


@pytest.fixture(scope="module")
def services(image_folder: Path, table_folder: Path) -> Iterator[dict[str, str]]:
    """Addresses of an image model, a table model and an image model behind a token."""
    wanted = {"image": (image_folder, {}), "table": (table_folder, {})}
    wanted["locked"] = (image_folder, {"VAE_ANOMALY_TOKEN": TOKEN})
    started = {name: start(*args) for name, args in wanted.items()}
    try:
        for address, process in started.values():
            await_ready(address, process)
        yield {name: address for name, (address, _) in started.items()}
    finally:
        for _, process in started.values():
            process.terminate()
        for _, process in started.values():
            process.wait(30)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        # Containers run as root, where chromium's own sandbox does not start.
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page that fails the test on any error of a script, and knows what it asked for."""
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    opened = context.new_page()
    opened.set_default_timeout(15_000)
    problems: list[str] = []
    opened.asked = []
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.on("request", lambda request: opened.asked.append(request.url))
    yield opened
    context.close()
    assert not problems


def test_the_verdict_on_a_picture_is_the_bundles(
    services: dict[str, str], page: Any, image_bundle: Bundle
) -> None:
    picture = grey_images(1, seed=7)
    upload(page, services["image"], picture)

    row = image_bundle.verdicts(picture).iloc[0]
    shown_p(page, row["p_value"])
    page.get_by_text("All scores").click()
    assert float(page.locator("#scores tr", has_text="neg_elbo").locator("td").nth(1).inner_text()) == (
        pytest.approx(row["score_neg_elbo"], rel=1e-3)
    )


@pytest.mark.parametrize("way", ["drop", "paste"])
def test_a_picture_that_is_dropped_or_pasted_is_judged(
    services: dict[str, str], page: Any, image_bundle: Bundle, way: str
) -> None:
    picture = grey_images(1, seed=7)
    page.goto(services["image"])
    page.wait_for_selector("#histogram svg")
    page.wait_for_load_state("networkidle")
    page.evaluate(HAND_OVER, [way, base64.b64encode(as_png(picture)).decode()])
    shown_p(page, image_bundle.p_values(picture)[0])


def test_what_is_painted_over_is_filled(services: dict[str, str], page: Any, image_bundle: Bundle) -> None:
    picture = grey_images(1, seed=7)
    upload(page, services["image"], picture)
    page.click("#lower")
    plane = picture[0].size
    page.get_by_text(f"{plane // 2} of {plane} pixels are hidden").wait_for()

    observed = np.ones(picture.shape, bool).reshape(1, -1)
    observed[:, plane // 2 :] = False
    filled = image_bundle.impute(picture, observed.reshape(picture.shape))
    np.testing.assert_allclose(pixels(page, "imputed"), filled.mean[0].squeeze(), atol=1)


def test_a_brush_works_from_the_keyboard(services: dict[str, str], page: Any) -> None:
    upload(page, services["image"], grey_images(1, seed=7))
    page.focus("#sample")
    for key in ("ArrowUp", "Space", "ArrowLeft", "Space", "Space"):
        page.keyboard.press(key)
    page.get_by_text(re.compile("^2 of ")).wait_for()


def test_a_drop_of_the_pointer_hides_one_pixel(services: dict[str, str], page: Any) -> None:
    upload(page, services["image"], grey_images(1, seed=7))
    page.click("#sample", position={"x": 5, "y": 5})
    page.get_by_text(re.compile("^1 of ")).wait_for()


def test_the_latent_walk_moves_the_decoders_picture(services: dict[str, str], page: Any) -> None:
    upload(page, services["image"], grey_images(1, seed=7))
    before, place = pixels(page, "decoded"), page.inner_text("#where")
    page.focus("#pad")
    for _ in range(10):
        page.keyboard.press("ArrowRight")
    page.wait_for_function("before => document.getElementById('where').textContent !== before", arg=place)
    # The picture is asked for once the keys rest.
    for _ in range(200):
        if (moved := np.abs(pixels(page, "decoded") - before).max()) > 0:
            break
        page.wait_for_timeout(50)
    assert moved > 0


def test_a_row_typed_in_is_judged_and_filled(
    services: dict[str, str], page: Any, table_bundle: Bundle
) -> None:
    row = table_rows(30, seed=5).dropna().head(1)
    page.goto(services["table"])
    page.wait_for_selector("#histogram svg")
    for name, value in row.iloc[0].items():
        page.get_by_label(str(name), exact=True).fill(str(value))
    shown_p(page, table_bundle.p_values(row)[0])

    first = str(row.columns[0])
    page.get_by_label(first, exact=True).fill("")
    cell = page.locator("#imputed td").nth(1)
    cell.wait_for()
    expected = table_bundle.impute(row.assign(**{first: np.nan})).mean[first].iloc[0]
    assert float(cell.inner_text().replace(",", "")) == pytest.approx(expected, rel=1e-3)


def test_nothing_is_asked_of_another_host(services: dict[str, str], page: Any) -> None:
    upload(page, services["image"], grey_images(1))
    assert {url.split("/")[2] for url in page.asked if not url.startswith("blob:")} == {
        services["image"].split("/")[2]
    }


def test_a_token_opens_a_locked_service(services: dict[str, str], page: Any) -> None:
    page.goto(services["locked"])
    page.get_by_text("asks for a token").wait_for()
    page.get_by_label("Token").fill(TOKEN)
    page.get_by_role("button", name="Use").click()
    page.wait_for_selector("#histogram svg")
    assert page.locator("#problem").is_hidden()


@pytest.mark.parametrize("kind", ["image", "table"])
def test_a_phone_needs_no_sideways_scrolling(services: dict[str, str], browser: Any, kind: str) -> None:
    context = browser.new_context(viewport={"width": 360, "height": 700}, color_scheme="dark", has_touch=True)
    page = context.new_page()
    page.goto(services[kind])
    page.wait_for_selector("#histogram svg")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    # Dark paper, light ink.
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert max(int(part) for part in re.findall(r"\d+", paper)) < 64
    context.close()


def as_png(picture: np.ndarray[Any, Any]) -> bytes:
    held = io.BytesIO()
    Image.fromarray(picture[0].squeeze()).save(held, "PNG")
    return held.getvalue()


def upload(page: Any, address: str, picture: np.ndarray[Any, Any]) -> None:
    """Pick a picture and wait until everything about it is shown."""
    page.goto(address)
    page.wait_for_selector("#histogram svg")
    page.wait_for_load_state("networkidle")
    page.set_input_files("#file", {"name": "a.png", "mimeType": "image/png", "buffer": as_png(picture)})
    page.wait_for_timeout(300)
    page.wait_for_load_state("networkidle")


def shown_p(page: Any, p_value: float) -> None:
    """Wait until the verdict shows this p-value, to two digits."""
    page.get_by_text(f"(p = {float(f'{p_value:.2g}'):g};").wait_for()


def pixels(page: Any, name: str) -> np.ndarray[Any, Any]:
    """The red bytes of a canvas, shape (H, W)."""
    data = page.evaluate(
        "name => { const c = document.getElementById(name);"
        " return [c.height, c.width, [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]] }",
        name,
    )
    return np.array(data[2], dtype=float).reshape(data[0], data[1], 4)[..., 0]


def start(folder: Path, settings: dict[str, str]) -> tuple[str, subprocess.Popen[bytes]]:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    command = [sys.executable, "-m", "pipelines.cli", "serve", str(folder), "--port", str(port)]
    process = subprocess.Popen(command, env={**os.environ, **settings}, stderr=subprocess.DEVNULL)
    return f"http://127.0.0.1:{port}/", process


def await_ready(address: str, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        assert process.poll() is None
        try:
            with urllib.request.urlopen(f"{address}readyz", timeout=5) as answer:
                json.load(answer)
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.1)
    raise AssertionError("the service was not ready within 60 s")
