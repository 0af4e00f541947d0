"""A warehouse in, docs/images/feature.png out: the page of one feature as a browser shows it.

    python benchmarks/feature_picture.py demo.duckdb 25:1736

Needs the extra `browser` and a Chromium with its driver, as tests/test_site_browser.py does.
"""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path

from PIL import Image

from energy_lens.reports.site.render import export_site
from energy_lens.tests.test_site_browser import open_browser

PICTURE = Path(__file__).parent.parent / "docs" / "images" / "feature.png"

#: Pixels of the picture, and colours that are kept of it.
WIDTH, HEIGHT, COLOURS = 1_440, 1_150, 160


def main(db: str, feature: str) -> None:
    with tempfile.TemporaryDirectory() as folder, open_browser(Path(folder) / "profile") as browser:
        site = Path(folder) / "site"
        export_site(Path(db), site, [feature])
        browser.execute_cdp_cmd("Emulation.setScrollbarsHidden", {"hidden": True})
        metrics = {"width": WIDTH, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        browser.get((site / "feature" / f"{feature.replace(':', '-')}.html").as_uri())
        shot = Image.open(io.BytesIO(browser.get_screenshot_as_png())).convert("RGB")
    shot.quantize(COLOURS).save(PICTURE, optimize=True)
    print(f"{PICTURE}: {PICTURE.stat().st_size / 1e3:,.0f} kB")


if __name__ == "__main__":
    main(*sys.argv[1:])
