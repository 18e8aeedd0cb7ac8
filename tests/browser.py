"""A real Chromium for the tests that need one: Debian's chromium and chromedriver, by selenium."""
import contextlib
import importlib.util
import shutil


def missing():
    """Why there is no browser here, in a line; None where there is one."""
    if not importlib.util.find_spec("selenium"):
        return "no browser tests: selenium is not installed (requirements-dev.txt)"
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        return "no browser tests: there is no chromium (apt-get install chromium chromium-driver)"
    return None


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
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]})
        yield driver
    finally:
        driver.quit()
