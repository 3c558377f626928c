"""One side of http_load.py: clients of a server, bare sockets in a process of their own."""

from __future__ import annotations

import asyncio
import json
import sys
import time


async def ask(
    port: int, bodies: asyncio.Queue[tuple[int, bytes]], found: dict[int, tuple[float, str]]
) -> None:
    """One client: a connection that is kept, requests one after another until there are none left."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 22)
    while not bodies.empty():
        number, body = bodies.get_nowait()
        begun = time.perf_counter()
        head = f"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n"
        writer.write(f"{head}content-type: application/json\r\n\r\n".encode() + body)
        headers = (await reader.readuntil(b"\r\n\r\n")).lower()
        if b" 200 " not in headers[:20]:
            raise SystemExit(f"the server answered {headers.decode()}")
        if b"transfer-encoding: chunked" in headers:
            content = await chunked(reader)
        else:
            length = int(headers.split(b"content-length: ")[1].split(b"\r\n")[0])
            content = await reader.readexactly(length)
        found[number] = (time.perf_counter() - begun, content.decode())
    writer.close()


async def chunked(reader: asyncio.StreamReader) -> bytes:
    """A body that comes in parts."""
    parts = []
    while size := int(await reader.readuntil(b"\r\n"), 16):
        parts.append((await reader.readexactly(size + 2))[:-2])
    await reader.readexactly(2)
    return b"".join(parts)


async def ask_all(port: int, n_clients: int, bodies: list[str]) -> dict[str, object]:
    """The seconds for all requests, processor seconds of this process, and latency and content of each."""
    queue: asyncio.Queue[tuple[int, bytes]] = asyncio.Queue()
    for number, body in enumerate(bodies):
        queue.put_nowait((number, body.encode()))
    found: dict[int, tuple[float, str]] = {}
    begun, processor = time.perf_counter(), time.process_time()
    await asyncio.gather(*(ask(port, queue, found) for _ in range(n_clients)))
    seconds, used = time.perf_counter() - begun, time.process_time() - processor
    return {
        "seconds": seconds,
        "processor_s": used,
        "answers": [found[number] for number in range(len(bodies))],
    }


if __name__ == "__main__":
    # Reads {"port", "n_clients", "bodies"}.
    json.dump(asyncio.run(ask_all(**json.load(sys.stdin))), sys.stdout)
