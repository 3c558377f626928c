"""The page behind a reverse proxy, in headless Chromium: the server's guard around the fake interface."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

import page_walk
import pytest
from fake_api.api import FakeApi
from fake_api.serving import serving
from page_visits import PROXY

from morfi.serve.http.gate import Limits
from morfi.serve.http.guard import Guard
from morfi.serve.http.keys import Keys
from morfi.serve.http.sites import read_sites

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@contextmanager
def proxy(port: int, upstream: int, host: str, root_path: str = "") -> Iterator[None]:
    """Passes requests on to `upstream` with another Host, and without the root path, until it is closed."""

    def changed(part: bytes) -> bytes:
        if not re.match(rb"(GET|POST) ", part):
            return part
        part = re.sub(rb"(?im)^host: .*\r$", b"Host: " + host.encode() + b"\r", part, count=1)
        part = re.sub(rb"(?im)^connection: .*\r$", b"Connection: close\r", part, count=1)
        return part.replace(root_path.encode() + b"/", b"/", 1) if root_path else part

    def pump(source: socket.socket, target: socket.socket, *, is_request: bool) -> None:
        with closing(source), closing(target):
            try:
                while part := source.recv(65536):
                    target.sendall(changed(part) if is_request else part)
            except OSError:
                return  # the other direction has ended

    def serve() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return  # closed: the test is over
            server = socket.create_connection(("127.0.0.1", upstream))
            for ends, is_request in (((client, server), True), ((server, client), False)):
                copies = [end.dup() for end in ends]
                threading.Thread(
                    target=pump, args=copies, kwargs={"is_request": is_request}, daemon=True
                ).start()
            client.close()
            server.close()

    listener = socket.create_server(("127.0.0.1", port))
    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(10)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.mark.parametrize(
    ("host", "root_path"),
    [("127.0.0.1:{port}", ""), (PROXY, ""), ("localhost", ""), (PROXY, "/tools/morfi")],
    ids=["as nginx sends it by itself", "the site's name", "localhost, another port", "under a path"],
)
@pytest.mark.parametrize("is_allowed", [True, False], ids=["allowed", "not allowed"])
def test_the_page_works_where_the_proxys_address_is_allowed(
    browser: Browser, host: str, root_path: str, *, is_allowed: bool
) -> None:
    port = free_port()
    origin = f"http://{PROXY}:{port}"
    sites = read_sites([origin] if is_allowed else [], [], root_path)

    def guarded(app: Any) -> Any:
        return Guard(app, keys=Keys(), limits=Limits(), local=True, sites=sites)

    api = FakeApi()
    with serving(api, around=guarded):
        upstream = int(api.url.split(":")[-1].rstrip("/"))
        with proxy(port, upstream, host.format(port=upstream), root_path):
            page = browser.new_page()
            page.set_default_timeout(30_000)
            try:
                found: Any = page.goto(f"{origin}{root_path}/")
                if is_allowed:
                    walk(page)
                elif found.status != 403:
                    page_walk.wait_for_list(page, "question")
                    page_walk.rows(page, "latent").first.click()
                    page.locator("#statistics dt").first.wait_for()
                    page_walk.rows(page, "question").first.click()
                    page.locator("#ask-error", has_text="--allow-origin").wait_for()
            finally:
                page.close()


def walk(page: Any) -> None:
    """Asks a question, and reads its answers."""
    page_walk.wait_for_list(page, "question")
    page_walk.rows(page, "latent").first.click()
    page.locator("#statistics dt").first.wait_for()
    page_walk.rows(page, "question").first.click()
    page_walk.wait_for_answers(page, "Steered")
    assert page.locator("#steered-answer .said").inner_text() == "France"
    assert page.locator("#ask-error").inner_text() == ""
