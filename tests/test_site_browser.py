"""The site in a browser: no error, nothing wider than the screen, all of it by keyboard, and axe-core finds nothing.

Needs Debian's chromium and chromium-driver, and the extra `browser`; skipped with the reason where they are not there.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from energy_lens import Warehouse
from energy_lens.reports.site.render import export_site

WIDTHS, SCHEMES = (390, 820, 1440), ("light", "dark")

#: A browser that keeps to itself.
OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
)  # fmt: skip


@pytest.fixture(scope="module")
def site(complete_warehouse: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("site") / "out"
    with Warehouse(complete_warehouse) as warehouse:
        edited = warehouse.sql(
            "SELECT DISTINCT layer, feature FROM intervention_effects ORDER BY ALL LIMIT 2"
        ).fetchall()
    export_site(complete_warehouse, output, ["top:6", *(f"{layer}:{feature}" for layer, feature in edited)])
    return output


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    pytest.importorskip("selenium.webdriver", reason="selenium is not installed: pip install '.[browser]'")
    if shutil.which("chromium") is None or shutil.which("chromedriver") is None:
        pytest.skip("there is no chromium with its driver: apt-get install chromium chromium-driver")
    with open_browser(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


@contextlib.contextmanager
def open_browser(profile: Path) -> Iterator[Any]:
    """A browser that keeps what it keeps in the folder `profile`."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for option in (*OPTIONS, f"--user-data-dir={profile}"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        yield opened
    finally:
        opened.quit()


def show(browser: Any, file: Path, width: int, scheme: str) -> None:
    resize(browser, width, scheme)
    browser.get(file.as_uri())


def resize(browser: Any, width: int, scheme: str) -> None:
    media = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def pages_of(site: Path) -> list[Path]:
    """One of each kind."""
    return [
        *sorted(site.glob("*.html")),
        sorted((site / "feature").iterdir())[1],
        sorted((site / "document").iterdir())[0],
    ]


def focused(browser: Any) -> Any:
    return browser.switch_to.active_element


def press(browser: Any, *keys: str) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    ActionChains(browser, duration=0).send_keys(*keys).perform()


def test_no_page_has_an_error_or_is_wider_than_the_screen(site: Path, browser: Any) -> None:
    for file in pages_of(site):
        browser.get(file.as_uri())
        for width, scheme in product(WIDTHS, SCHEMES):
            resize(browser, width, scheme)
            inside, across = browser.execute_script("return [innerWidth, document.documentElement.scrollWidth]")
            assert across <= inside == width, (file.name, width, scheme)  # less by a scrollbar
        assert browser.get_log("browser") == [], file.name


def test_axe_finds_no_violation(site: Path, browser: Any) -> None:
    """Of what is there by the hundred it sees the first few, or it takes minutes."""
    axe = pytest.importorskip("axe_core_python.selenium", reason="axe-core is not installed: pip install '.[browser]'")
    rest = {
        "exclude": [
            [".examples li:nth-child(n + 3)"],
            [".reading section:nth-child(n + 2)"],
            ["tbody tr:nth-child(n + 5)"],
        ]
    }
    pages = pages_of(site)
    some = [page for page in pages if page.stem in ("index", "features") or page.parent != site]
    for file, width, scheme in [*((page, 1440, "light") for page in pages), *((page, 390, "dark") for page in some)]:
        show(browser, file, width, scheme)
        if texts := browser.find_elements("css selector", "p.text > :first-child"):
            texts[0].click()  # with what is said of a token in sight
        found = axe.Axe().run(browser, rest, {"resultTypes": ["violations"]})["violations"]
        told = [(one["id"], one["nodes"][0]["html"][:200], one["nodes"][0]["failureSummary"]) for one in found]
        assert told == [], (file.name, width, scheme)


def test_the_way_by_keyboard(site: Path, browser: Any) -> None:
    """Tab to the filter, a word, Tab to a feature, Enter, and from feature to feature by arrow."""
    from selenium.webdriver.common.keys import Keys

    show(browser, site / "features.html", 1440, "light")
    for _ in range(12):
        press(browser, Keys.TAB)
        if focused(browser).get_attribute("id") == "search":
            break
    names = sorted((file.stem for file in (site / "feature").iterdir()), key=lambda s: tuple(map(int, s.split("-"))))
    press(browser, names[0].replace("-", ":"))
    rows = browser.find_elements("css selector", "#list tbody tr")
    assert names[0].replace("-", ":") in next(row.text for row in rows if row.is_displayed())
    assert sum(row.is_displayed() for row in rows) < len(rows)
    for _ in range(30):
        press(browser, Keys.TAB)
        if names[0] in (focused(browser).get_attribute("href") or ""):
            break
    press(browser, Keys.ENTER)
    assert browser.current_url.endswith(f"feature/{names[0]}.html")
    for key, name in ((Keys.ARROW_RIGHT, names[1]), ("j", names[2]), ("k", names[1]), (Keys.ARROW_LEFT, names[0])):
        press(browser, key)
        assert browser.current_url.endswith(f"feature/{name}.html")


def test_a_token_says_what_it_is(site: Path, browser: Any) -> None:
    """By pointer and by keyboard, in an example and in a document; a text keeps the arrows to itself."""
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    show(browser, sorted((site / "feature").iterdir())[1], 1440, "light")
    mark = browser.find_element("css selector", "mark.here")
    ActionChains(browser, duration=0).move_to_element(mark).perform()
    readout = browser.find_element("id", "readout")
    for word in ("a ", "g ", "a·g ", "loss "):
        assert word in readout.text
    before = browser.current_url, readout.text
    browser.execute_script("arguments[0].focus()", mark.find_element("xpath", ".."))
    press(browser, Keys.ARROW_LEFT)
    assert browser.current_url == before[0]
    assert readout.text != before[1]
    press(browser, Keys.ESCAPE)
    assert not readout.is_displayed()

    show(browser, sorted((site / "document").iterdir())[0], 390, "dark")
    browser.execute_script("document.querySelector('p.text').focus()")
    for _ in range(6):
        press(browser, Keys.ARROW_RIGHT)
    panel = browser.find_element("id", "panel")
    assert "a·g" in panel.text
    assert panel.find_elements("css selector", "tbody tr")
    first = browser.find_element("css selector", "p.text > :nth-child(7)").get_attribute("class")
    browser.execute_script(
        "const s = document.querySelector('#energy'); s.selectedIndex = s.options.length - 1; "
        "s.dispatchEvent(new Event('input'))"
    )
    assert browser.find_element("css selector", "p.text > :nth-child(7)").get_attribute("class") != first


def test_the_list_sorts_by_what_is_asked(site: Path, browser: Any) -> None:
    show(browser, site / "features.html", 820, "light")
    for column, heading in ((4, "Density"), (5, "Score")):
        button = next(
            b for b in browser.find_elements("css selector", "#list thead button") if b.text.startswith(heading)
        )
        button.click()
        values = browser.execute_script(
            "const column = arguments[0];"
            "return [...document.querySelectorAll('#list tbody tr')].map(r => Math.abs(r.cells[column].dataset.v))",
            column,
        )
        assert values == sorted(values, reverse=True)
        assert button.find_element("xpath", "..").get_attribute("aria-sort") == "descending"
