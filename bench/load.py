"""Load: each function drives the proxy on core 1 and says what it got."""
import http.client
import json
import re
import socket
import ssl
import threading
import time
from pathlib import Path

from material import ENTRY, HOSTS, MIDDLE, REVIEWS
from process import Failed, on_load_core

BENCH = Path(__file__).resolve().parent
GIB = 1 << 30
HANDSHAKERS = 8
REQUEST = f"GET /bytes/1024 HTTP/1.1\r\nHost: {REVIEWS}\r\n".encode()


def full_speed(scenario, seconds):
    """Requests done, as fast as they go."""
    url = f"http://127.0.0.1:{ENTRY}/bytes/1024"
    if scenario.shape == "h2c":
        out = on_load_core(["h2load", "-c", 8, "-m", 8, "-t", 1, "-D", f"{seconds:g}s", "--warm-up-time", "0", url], seconds + 30)
        done, good = re.search(r"requests: \d+ total, \d+ started, (\d+) done, (\d+) succeeded", out).groups()
        done, bad = int(done), int(done) - int(good)
    else:
        hosts = ["--", HOSTS] if scenario.hosts else []
        out = on_load_core(["wrk", "-t", 1, "-c", 64, "-d", f"{seconds:g}s", "-s", BENCH / "wrk.lua", url, *hosts], seconds + 30)
        result = json.loads(re.search(r"^RESULT (.*)$", out, re.M)[1])
        done, bad = result["requests"], result["bad"]
    if bad or not done:
        raise Failed(f"{bad} of {done} requests at full speed were bad")
    return done


def paced(lateen, scenario, rate, seconds):
    """p50 and p99 in milliseconds at a fixed rate, from when a request was due."""
    http2 = scenario.shape == "h2c"
    host = "svc7.ns7.svc.cluster.local" if scenario.hosts else REVIEWS
    argv = [lateen, "app", "load", "--url", f"http://127.0.0.1:{ENTRY}/bytes/1024", "--rps", rate, "--duration", f"{seconds:g}s",
            "--connections", 4 if http2 else 16, "--header", f"Host: {host}", "--json"]
    report = json.loads(on_load_core(argv + (["--http2"] if http2 else []), seconds + 30))
    failed = report["scheduled"] - sum(count for status, count in report["statuses"].items() if status.startswith("2"))
    if failed:
        raise Failed(f"{failed} requests at the fixed rate failed")
    return report["latency_ms"]["p50"], report["latency_ms"]["p99"]


def stream(size=GIB):
    """Reads one answer of this size; the number of bytes."""
    with socket.create_connection(("127.0.0.1", ENTRY), 30) as caller:
        caller.sendall(f"GET /bytes/{size} HTTP/1.1\r\nHost: {REVIEWS}\r\nConnection: close\r\n\r\n".encode())
        buffer, got = bytearray(1 << 18), 0
        while count := caller.recv_into(buffer):
            got += count
    if got < size:
        raise Failed(f"{got} of {size} bytes arrived")
    return got


def identity(certs):
    context = ssl.create_default_context(cafile=certs / "ca.crt")
    context.check_hostname = False
    context.load_cert_chain(certs / "client.crt", certs / "client.key")
    context.set_alpn_protocols(["http/1.1"])
    return context


def dial(port, context=None):
    raw = socket.create_connection(("127.0.0.1", port), 10)
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return context.wrap_socket(raw) if context else raw


def handshakes(certs, seconds):
    """New connections with mutual TLS to the server's sidecar, one request on each; how many."""
    context, until, done, bad = identity(certs), time.monotonic() + seconds, [], []

    def call():
        while time.monotonic() < until:
            got = b""
            try:
                with dial(MIDDLE, context) as caller:
                    caller.sendall(REQUEST + b"Connection: close\r\n\r\n")
                    while part := caller.recv(65536):
                        got += part
            except OSError:
                pass
            (done if got.startswith(b"HTTP/1.1 200") else bad).append(1)

    threads = [threading.Thread(target=call) for _ in range(HANDSHAKERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if bad or not done:
        raise Failed(f"{len(bad)} of {len(bad) + len(done)} new connections failed")
    return len(done)


def served_once(port, context):
    """A connection that has had one answer."""
    caller = dial(port, context)
    caller.sendall(REQUEST + b"\r\n")
    got = b""
    while len(got.partition(b"\r\n\r\n")[2]) < 1024:
        part = caller.recv(65536)
        if not part or not got.startswith(b"HTTP/1.1 200"[:len(got)]):
            raise Failed(f"no good answer: {got[:80]!r}")
        got += part
    return caller


def idle(proxy, port, count, context=None):
    """KiB of memory that no file backs, for each connection that waits."""
    held = [served_once(port, context) for _ in range(50)]  # what the first ones bring about is not counted
    time.sleep(0.5)
    before = proxy.memory_kib("RssAnon")
    try:
        held += [served_once(port, context) for _ in range(count)]
        time.sleep(1.5)
        return (proxy.memory_kib("RssAnon") - before) / count
    finally:
        for caller in held:
            caller.close()


def first_answer(proxy, started, seconds=60):
    """Seconds since `started` until a request is answered with 200."""
    while time.monotonic() - started < seconds and proxy.process.poll() is None:
        try:
            call = http.client.HTTPConnection("127.0.0.1", ENTRY, timeout=2)
            call.request("GET", "/bytes/10", headers={"Host": REVIEWS})
            if call.getresponse().status == 200:
                return time.monotonic() - started
        except (OSError, http.client.HTTPException):
            pass
        time.sleep(0.001)
    raise proxy.failed("does not answer")
