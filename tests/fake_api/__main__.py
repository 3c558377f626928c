"""Serves the page with the fake behind it on a port, until it is interrupted."""

from __future__ import annotations

import sys
import threading

from fake_api.api import FakeApi
from fake_api.serving import serving

with serving(FakeApi(delay_s=0.06), int(sys.argv[1])) as shown:
    print(shown.url)  # noqa: T201
    threading.Event().wait()
