"""Reports in a real browser: all is drawn and readable, dark and light, on phone and desk, by mouse and keyboard, on paper."""

import base64
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.models.report_folders import make_features, train_model, train_sweep
from selenium import webdriver
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from typer.testing import CliRunner

from finetune.__main__ import app

pytestmark = pytest.mark.slow
PAGES = ("two", "many", "sweep")
N_CLASSES = {"two": 2, "many": 257, "sweep": 5}
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
_PROBE = (Path(__file__).parent / "report_page.js").read_text()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    programs = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if None in programs:
        pytest.skip("there is no Chromium to look at reports with. Debian: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = str(programs[0])
    for flag in (*_FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(programs[1])))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The URLs of a report on two classes, on 257, and on a sweep."""
    urls = {}
    for name in PAGES:
        folder = tmp_path_factory.mktemp(name)
        rows = 6 * N_CLASSES[name] if name == "many" else 300
        features = make_features(folder, n_classes=N_CLASSES[name], rows=rows, spread=2.5)
        if name == "sweep":
            train_sweep(
                features, folder / "it", seeds=(1, 2), learning_rate=(0.003, 0.01, 0.1), schedule=("cosine", "constant")
            )
        else:
            train_model(features, folder / "it", epochs=4)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            arguments = ["report", "it", "--output", "report.html", *(["--no-check-data"] if name == "many" else [])]
            result = CliRunner().invoke(app, arguments, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        urls[name] = f"file://{folder}/report.html"
    return urls


def open_page(browser: webdriver.Chrome, url: str, *, width: int = 1400, theme: str = "light") -> None:
    screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    feature = {"name": "prefers-color-scheme", "value": theme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "screen", "features": [feature]})
    logged(browser)  # what an earlier page left
    browser.get(url)


def logged(browser: webdriver.Chrome) -> list[Any]:
    """What the page has written to its console since this was last asked."""
    entries: list[Any] = browser.get_log("browser")  # type: ignore[no-untyped-call]
    return entries


def probe(browser: webdriver.Chrome, *, width: int = 1400) -> dict[str, Any]:
    found = browser.execute_script(_PROBE, width)
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("width", [360, 1400])
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_all_is_drawn_and_nothing_cut(
    browser: webdriver.Chrome, pages: dict[str, str], name: str, theme: str, width: int
) -> None:
    open_page(browser, pages[name], width=width, theme=theme)
    found = probe(browser, width=width)
    assert found["faults"] == []
    assert found["classes"] == N_CLASSES[name]
    assert found["plots"] == (5 if name == "sweep" else 3)
    assert found["images"] > 0
    assert logged(browser) == []


def test_the_probe_sees_what_is_wrong(browser: webdriver.Chrome, pages: dict[str, str]) -> None:
    open_page(browser, pages["two"], width=360)
    browser.execute_script(
        "document.querySelector('h1').style.cssText = 'width: 40px; white-space: nowrap; overflow: hidden; font-size: 90px';"
        "document.querySelector('.sub').style.color = 'rgb(250, 250, 250)';"
        "document.querySelector('svg.plot text').setAttribute('x', '-40');"
        "document.querySelector('main').style.width = '700px';"
    )
    faults = "\n".join(probe(browser, width=360)["faults"])
    for fault in ("scrolls sideways", "outside its plot", "contrast", "text cut"):
        assert fault in faults


def classes_in_order(browser: webdriver.Chrome) -> list[float]:
    return [
        float(value)
        for value in browser.execute_script(
            "return [...document.querySelectorAll('#class-table tbody tr')].map((row) => row.cells[1].dataset.value || -1)"
        )
    ]


def test_a_table_is_sorted_by_keyboard(browser: webdriver.Chrome, pages: dict[str, str]) -> None:
    open_page(browser, pages["sweep"])
    recall = "document.querySelectorAll('#class-table .sort')[1]"
    for _ in range(200):
        ActionChains(browser).send_keys(Keys.TAB).perform()
        if browser.execute_script(f"return document.activeElement === {recall}"):
            break
    else:
        pytest.fail("Tab does not reach the button that sorts by recall")
    outline = browser.execute_script(f"const s = getComputedStyle({recall}); return [s.outlineStyle, s.outlineWidth]")
    assert outline == ["solid", "3px"]
    ActionChains(browser).send_keys(Keys.ENTER).perform()
    falling = classes_in_order(browser)
    assert falling == sorted(falling, reverse=True)
    assert falling[0] > falling[-1]
    assert browser.execute_script(f"return {recall}.closest('th').ariaSort") == "descending"
    ActionChains(browser).send_keys(Keys.SPACE).perform()
    assert classes_in_order(browser) == sorted(falling)


@pytest.mark.parametrize("name", ["two", "many"])
def test_the_matrix_is_read_by_mouse_and_keyboard(browser: webdriver.Chrome, pages: dict[str, str], name: str) -> None:
    open_page(browser, pages[name])
    canvas, readout = (browser.find_element(By.ID, identity) for identity in ("matrix", "readout"))
    browser.execute_script("arguments[0].scrollIntoView({behavior: 'instant'})", canvas)
    ActionChains(browser).move_to_element_with_offset(
        canvas, canvas.size["width"] // 2 - 4, canvas.size["height"] // 2 - 4
    ).perform()  # the last cell
    tip = browser.find_element(By.ID, "tip")
    assert tip.is_displayed()
    assert tip.text == readout.text
    assert re.search(r", found: \d+ of \d+", tip.text)
    browser.execute_script("arguments[0].focus()", canvas)
    canvas.send_keys((Keys.ARROW_UP + Keys.ARROW_LEFT) * N_CLASSES[name])  # to the first cell, and no further
    assert '<script>alert("class")</script>, found' in readout.text
    canvas.send_keys(Keys.ARROW_RIGHT)
    assert '<script>alert("class")</script>, taken for {{ 7 * 7 }}' in readout.text
    assert logged(browser) == []


def test_the_matrix_is_sorted(browser: webdriver.Chrome, pages: dict[str, str]) -> None:
    open_page(browser, pages["sweep"])
    looks = set()
    for order in ("given", "errors", "support", "chain"):
        button = browser.find_element(By.CSS_SELECTOR, f'button[data-order="{order}"]')
        button.send_keys(Keys.ENTER)
        assert button.get_attribute("aria-pressed") == "true"
        looks.add(browser.execute_script("return document.getElementById('matrix').toDataURL()"))
    assert len(looks) > 1
    assert len(browser.find_elements(By.CSS_SELECTOR, 'button[aria-pressed="true"]')) == 1


def test_the_button_changes_the_theme(browser: webdriver.Chrome, pages: dict[str, str]) -> None:
    open_page(browser, pages["two"], theme="dark")
    button = browser.find_element(By.ID, "theme")
    looks = []
    for name in ("Light theme", "Dark theme"):
        assert button.text == name
        looks.append(browser.execute_script("return getComputedStyle(document.body).backgroundColor"))
        button.send_keys(Keys.ENTER)
    assert looks == ["rgb(17, 22, 28)", "rgb(255, 255, 255)"]
    assert probe(browser)["faults"] == []


@pytest.mark.parametrize("name", PAGES)
def test_it_is_printed_light_and_whole(browser: webdriver.Chrome, pages: dict[str, str], name: str) -> None:
    open_page(browser, pages[name], width=760, theme="dark")
    printed = browser.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True, "printBackground": True})
    content = base64.b64decode(printed["data"])
    assert content.startswith(b"%PDF-")
    assert 3 <= len(re.findall(rb"/Type\s*/Page\b", content)) <= 40
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": []})
    assert browser.execute_script("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    hidden = browser.execute_script(
        "return [...document.querySelectorAll('.scroll')].filter((e) => e.scrollHeight > e.clientHeight + 2"
        " && getComputedStyle(e).overflowY !== 'visible').length"
    )
    assert hidden == 0
    assert logged(browser) == []
