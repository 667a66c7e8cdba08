"""Headless Chromium by Playwright, and a folder served to it; tests are skipped where either is not installed."""

import contextlib
import functools
import http.server
import shutil
import threading

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ISOLATED = {"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp"}


@contextlib.contextmanager
def chromium():
    """A browser with a camera that shows a test picture."""
    playwright = pytest.importorskip("playwright.sync_api", reason="the browser is driven by Playwright")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium")
    options = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=options)
        yield browser
        browser.close()


@contextlib.contextmanager
def serving(folder, headers=()):
    """The address at which a folder is served as `python -m http.server` does, with more headers."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def end_headers(self):
            for name, value in dict(headers).items():
                self.send_header(name, value)
            super().end_headers()

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()
