"""A real Chromium for the tests that need one: Debian's chromium and chromedriver, by selenium."""
import contextlib
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]


def missing():
    """Why there is no browser here, in a line; None where there is one."""
    if not importlib.util.find_spec("selenium"):
        return "no browser tests: selenium is not installed (requirements-dev.txt)"
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        return "no browser tests: there is no chromium (apt-get install chromium chromium-driver)"
    return None


def axe():
    """The source of the checker axe-core, from a package that is only installed for tests; None
    where it is not."""
    spec = importlib.util.find_spec("axe_playwright_python")
    path = spec and Path(spec.origin).parent / "axe.min.js"
    return path.read_text(encoding="utf-8") if path and path.exists() else None


def violations(driver, source):
    """{rule: places} that axe-core, of this source, finds wrong in the page that is open."""
    driver.execute_script(source)
    found = driver.execute_async_script("""
        const done = arguments[arguments.length - 1];
        axe.run(document, {resultTypes: ["violations"]}).then(r => done(r.violations.map(
          v => [v.id, v.nodes.map(n => n.target.join(" ") + ": " + n.failureSummary)])));""")
    return {rule: nodes[:3] for rule, nodes in found}


@contextlib.contextmanager
def chromium(width=1400, height=900, dark=False, touch=False):
    """A selenium driver of a window of this size."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                 "--hide-scrollbars", f"--window-size={width},{height}", "--lang=en"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options, Service(shutil.which("chromedriver")))
    try:
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {
            "width": width, "height": height, "deviceScaleFactor": 1, "mobile": touch})
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
            *([{"name": "hover", "value": "none"}] if touch else [])]})
        if touch:
            driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
        yield driver
    finally:
        driver.quit()


class Page:
    """`python -m labels.page` as a process of its own, in a folder. Killed at the end."""

    def __init__(self, folder, *flags, port=0):
        self.folder, self.flags, self.out = Path(folder), flags, Path(folder) / "out" / "labels"
        self.port, self.process = port, None
        self.start()

    def start(self, seconds=180):
        """Start it, and wait for its address. A restart takes the same port."""
        self.log = self.folder / "page.log"
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "labels.page", f"--port={self.port}", *self.flags],
                cwd=self.folder, env=environment, stdout=log, stderr=subprocess.STDOUT)
        until = time.monotonic() + seconds
        while not (found := re.search(r"page: (http://\S+:(\d+))", self.log.read_text())):
            assert self.process.poll() is None and time.monotonic() < until, self.log.read_text()
            time.sleep(0.02)
        self.address, self.port = found[1], int(found[2])

    @property
    def link(self):
        return (self.out / "owner-link.txt").read_text().strip()

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        if self.process.poll() is None:
            self.kill()
