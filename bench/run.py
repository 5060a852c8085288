#!/usr/bin/env python3
"""Lateen's own benchmark: what a proxy costs in each of its roles, against Envoy and HAProxy in one run.

See README.md beside this file for what is measured and how. Needs Python 3.9 and a release build.
"""
import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

sys.dont_write_bytecode = True

import load
from material import ENTRY, MIDDLE, SERVICE, envoy_file, haproxy_file, make_certificates
from process import LOAD_CORE, PROXY_CORE, Failed, Instance

ROOT = Path(__file__).resolve().parent.parent
WARM_UP = 1.0


def note(text):
    print(text, file=sys.stderr, flush=True)


# -------------------------------------------------------------------------- scenarios

@dataclass(frozen=True)
class Scenario:
    shape: str
    roles: tuple
    measure: object
    # Requests are spread among many hosts.
    hosts: bool = False
    # Connections that wait.
    idle: int = 5000
    # Who cannot do it.
    without: tuple = ()


THROUGHPUT = [("cpu_us", "CPU µs/request", "{:.1f}"), ("rps", "requests/s", "{:.0f}"), ("p50_ms", "p50 ms", "{:.2f}"),
              ("p99_ms", "p99 ms", "{:.2f}"), ("rss_mib", "RSS MiB", "{:.1f}")]
STREAM = [("cpu_ms", "CPU ms/GiB", "{:.0f}"), ("gbit", "Gbit/s", "{:.1f}")]
HANDSHAKE = [("cpu_us", "CPU µs/connection", "{:.0f}"), ("per_second", "connections/s", "{:.0f}")]
START = [("first_ms", "first answer ms", "{:.1f}"), ("cpu_ms", "CPU ms", "{:.1f}"), ("rss_mib", "RSS MiB", "{:.1f}")]
IDLE = [("kib", "KiB/connection", "{:.1f}")]


def throughput(run, scenario, proxies):
    load.full_speed(scenario, WARM_UP)
    before, started = cpu(proxies), time.monotonic()
    requests = load.full_speed(scenario, run.options.duration)
    # The generator's own start is inside the interval; the proxy does nothing then.
    used, took = cpu(proxies) - before, time.monotonic() - started
    rss = sum(p.memory_kib() for p in proxies) / 1024
    p50, p99 = load.paced(run.options.lateen, scenario, run.options.rate, run.options.duration)
    return {"cpu_us": used / 1e3 / requests, "rps": requests / took, "p50_ms": p50, "p99_ms": p99, "rss_mib": rss}


def stream(_, __, proxies):
    load.stream(load.GIB // 8)
    before, started = cpu(proxies), time.monotonic()
    got = load.stream()
    return {"cpu_ms": (cpu(proxies) - before) / 1e6 * load.GIB / got, "gbit": got * 8 / 1e9 / (time.monotonic() - started)}


def handshake(run, _, proxies):
    load.handshakes(run.folder / "certs", WARM_UP)
    before, started = cpu(proxies), time.monotonic()
    done = load.handshakes(run.folder / "certs", run.options.duration)
    return {"cpu_us": (cpu(proxies) - before) / 1e3 / done, "per_second": done / (time.monotonic() - started)}


def idle(run, scenario, proxies):
    if "server" in scenario.roles:
        return {"kib": load.idle(proxies[0], MIDDLE, scenario.idle, load.identity(run.folder / "certs"))}
    return {"kib": load.idle(proxies[0], ENTRY, scenario.idle)}


def start(_, __, proxies):
    """The proxy has just been started; the others wait until theirs listens."""
    [proxy] = proxies
    first = load.first_answer(proxy, proxy.started)
    time.sleep(1)
    return {"first_ms": first * 1e3, "cpu_ms": proxy.cpu_nanos() / 1e6, "rss_mib": proxy.memory_kib() / 1024}


COLUMNS = {throughput: THROUGHPUT, stream: STREAM, handshake: HANDSHAKE, idle: IDLE, start: START}
PAIR = ("server", "client")
SCENARIOS = {
    "http1": Scenario("http1", ("proxy",), throughput),
    "h2c": Scenario("h2c", ("proxy",), throughput),
    "http1-hosts": Scenario("http1", ("proxy",), throughput, hosts=True),
    "routing": Scenario("routing", ("proxy",), throughput, hosts=True),
    "pair-h1": Scenario("pair-h1", PAIR, throughput),
    "pair-h2": Scenario("pair-h2", PAIR, throughput),
    "handshake": Scenario("pair-h1", ("server",), handshake),
    "tcp": Scenario("tcp", ("proxy",), stream),
    "start": Scenario("http1", ("proxy",), start),
    "start-large": Scenario("large", ("proxy",), start),
    "start-routes": Scenario("many-routes", ("proxy",), start),
    "idle": Scenario("http1", ("proxy",), idle),
    "idle-tls": Scenario("pair-h1", ("server",), idle),
    # HAProxy takes half as many connections as a process may open files, which are often 20,000.
    "idle-10k": Scenario("http1", ("proxy",), idle, idle=10_000, without=("haproxy",)),
    "idle-tls-10k": Scenario("pair-h1", ("server",), idle, idle=10_000, without=("haproxy",)),
}


def cpu(proxies):
    return sum(p.cpu_nanos() for p in proxies)


# -------------------------------------------------------------------------- contestants

def find_envoy(given):
    if given:
        return given
    for path in (ROOT / "target/peers/lib").rglob("envoy") if (ROOT / "target/peers/lib").is_dir() else []:
        if path.is_file() and path.stat().st_size > 1 << 20:
            return str(path)
    return shutil.which("envoy")


def contestants(options):
    """Name to a function from shape, role and folder to a command line, which is `None` where there is nothing to compare."""
    envoy, haproxy = find_envoy(options.envoy), shutil.which("haproxy", path=os.environ["PATH"] + ":/usr/sbin")

    def run_haproxy(shape, role, folder):
        path = haproxy_file(shape, role, folder)
        return path and [haproxy, "-db", "-f", path]

    return {
        "lateen": lambda shape, role, folder: [options.lateen, "proxy", "-c", envoy_file(shape, role, folder), "--concurrency", "1"],
        "envoy": envoy and (lambda shape, role, folder: [envoy, "-c", envoy_file(shape, role, folder), "--concurrency", "1", "--log-level", "error",
                                                         "--disable-hot-restart"]),
        "haproxy": haproxy and run_haproxy,
    }


@dataclass
class Run:
    options: argparse.Namespace
    folder: Path

    def measure(self, name, command):
        """One turn of one contestant; `None` when it has no such role."""
        scenario, proxies = SCENARIOS[name], []
        commands = [(role, command(scenario.shape, role, self.folder)) for role in scenario.roles]
        if any(argv is None for _, argv in commands):
            return None
        try:
            for role, argv in commands:
                proxy = Instance(argv, PROXY_CORE, self.folder / f"{role}.log", self.folder)
                proxies.append(proxy.start())
                if scenario.measure is not start:
                    proxy.wait_for(MIDDLE if role == "server" else ENTRY)
            return scenario.measure(self, scenario, proxies)
        finally:
            for proxy in reversed(proxies):
                proxy.stop()


# -------------------------------------------------------------------------- the whole run

def table(scenario, medians, reference):
    """Markdown: each figure and, in brackets, its ratio to the reference contestant's."""
    columns = COLUMNS[SCENARIOS[scenario].measure]
    lines = [f"| {scenario} | " + " | ".join(title for _, title, _ in columns) + " |", "| --- |" + " ---: |" * len(columns)]
    base = medians.get(reference)
    for name, figures in medians.items():
        cells = []
        for key, _, form in columns:
            ratio = f" ({figures[key] / base[key]:.2f}×)" if base and base[key] and name != reference else ""
            cells.append(form.format(figures[key]) + ratio)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenario", default=",".join(SCENARIOS), help="comma-separated (default: %(default)s)")
    parser.add_argument("--contestants", default="lateen,envoy,haproxy", help="comma-separated (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each contestant (default: %(default)s)")
    parser.add_argument("--duration", type=float, default=3, help="seconds of each phase (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=1000, help="requests a second of the paced phase (default: %(default)s)")
    parser.add_argument("--lateen", default=str(ROOT / "target/release/lateen"), help="the program (default: target/release/lateen)")
    parser.add_argument("--envoy", help="Envoy's binary (default: target/peers, then PATH)")
    parser.add_argument("--reference", default="envoy", help="whom ratios compare with (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write every round's figures here")
    options = parser.parse_args()
    if not Path(options.lateen).is_file():
        sys.exit(f"{options.lateen} is missing: cargo build --release")
    if len(os.sched_getaffinity(0)) < 2:
        sys.exit("two cores are needed: one for the proxy, one for service and load")
    for tool in ("wrk", "h2load", "openssl"):
        if not shutil.which(tool):
            sys.exit(f"{tool} is missing: apt-get install wrk nghttp2-client openssl")
    options.scenario = options.scenario.split(",")
    if unknown := set(options.scenario) - set(SCENARIOS):
        sys.exit(f"no scenario {', '.join(sorted(unknown))}; there are {', '.join(SCENARIOS)}")
    return options


def everything(run, here):
    """Figures by scenario and contestant, and what failed. They take turns within every round."""
    figures, failures = {}, []
    for scenario in run.options.scenario:
        rounds = figures[scenario] = {}
        for number in range(run.options.rounds):
            for name, command in here.items():
                if name in SCENARIOS[scenario].without:
                    continue
                try:
                    found = run.measure(scenario, command)
                except (Failed, OSError, subprocess.TimeoutExpired) as error:
                    failures.append(f"{scenario}, {name}, round {number + 1}: {error}")
                    note(failures[-1])
                    continue
                if found:
                    rounds.setdefault(name, []).append(found)
                    note(f"{scenario:11} round {number + 1} {name:8} " + "  ".join(f"{k} {v:.2f}" for k, v in found.items()))
        medians = {name: {k: statistics.median(r[k] for r in all_rounds) for k in all_rounds[0]} for name, all_rounds in rounds.items()}
        print(table(scenario, medians, run.options.reference), flush=True)
    return figures, failures


def main():
    options = arguments()
    wanted, known = options.contestants.split(","), contestants(options)
    here = {name: known[name] for name in wanted if known.get(name)}
    for name in set(wanted) - set(here):
        note(f"{name}: not installed, left out")
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    os.sched_setaffinity(0, {LOAD_CORE})
    with tempfile.TemporaryDirectory(prefix="lateen-bench-") as temporary:
        run = Run(options, Path(temporary))
        make_certificates(run.folder / "certs")
        service = Instance([options.lateen, "app", "--name", "reviews", "--port", str(SERVICE), "--address", "127.0.0.1"],
                           LOAD_CORE, run.folder / "service.log", run.folder).start()
        try:
            service.wait_for(SERVICE)
            figures, failures = everything(run, here)
        finally:
            service.stop()
    if options.json:
        options.json.write_text(json.dumps({"rounds": figures, "failures": failures}, indent=1) + "\n")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
