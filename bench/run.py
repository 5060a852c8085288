#!/usr/bin/env python3
"""Lateen's own benchmark: what a sidecar hop and a sidecar pair cost, against Envoy and HAProxy in one run.

See README.md beside this file for what is measured and how. Needs Python 3.9 and a release build.
"""
import argparse
import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

BENCH = Path(__file__).resolve().parent
ROOT = BENCH.parent
SERVICE, ENTRY, MIDDLE = 28080, 28000, 28001
PROXY_CORE, LOAD_CORE = 0, 1
WARM_UP = 1.0


def note(text):
    print(text, file=sys.stderr, flush=True)


# -------------------------------------------------------------------------- processes

@dataclass
class Instance:
    """One running program, pinned to a core; stopped by its own process id."""
    argv: list
    core: int
    log: Path
    cwd: Path
    process: subprocess.Popen = field(init=False, default=None)

    def start(self):
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [str(a) for a in self.argv], cwd=self.cwd, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True, preexec_fn=lambda: os.sched_setaffinity(0, {self.core}))
        return self

    def wait_for(self, port, seconds=20):
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if self.process.poll() is not None:
                break
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                return self
            except OSError:
                time.sleep(0.02)
        tail = self.log.read_text(errors="replace")[-800:]
        raise RuntimeError(f"{self.argv[0]} does not listen on {port}:\n{tail}")

    def family(self):
        """Its process id and those of its descendants."""
        children = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                except OSError:
                    continue
                children.setdefault(parent, []).append(int(entry.name))
        found, queue = [], [self.process.pid]
        while queue:
            pid = queue.pop()
            found.append(pid)
            queue.extend(children.get(pid, []))
        return found

    def cpu_nanos(self):
        total = 0
        for pid in self.family():
            for task in Path(f"/proc/{pid}/task").glob("*/schedstat"):
                try:
                    total += int(task.read_text().split()[0])
                except (OSError, IndexError):
                    pass
        return total

    def rss_kib(self):
        total = 0
        for pid in self.family():
            try:
                total += int(re.search(r"^VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(), re.M)[1])
            except (OSError, TypeError):
                pass
        return total

    def stop(self):
        if self.process is None or self.process.poll() is not None:
            return
        family = self.family()
        for sig, patience in ((signal.SIGTERM, 3), (signal.SIGKILL, 3)):
            for pid in family:
                try:
                    os.kill(pid, sig)
                except ProcessLookupError:
                    pass
            try:
                self.process.wait(patience)
                return
            except subprocess.TimeoutExpired:
                continue


def on_load_core(argv, seconds):
    """Runs a load generator beside the service and returns what it printed."""
    done = subprocess.run([str(a) for a in argv], capture_output=True, text=True, timeout=seconds,
                          preexec_fn=lambda: os.sched_setaffinity(0, {LOAD_CORE}))
    if done.returncode != 0:
        raise RuntimeError(f"{argv[0]} failed: {done.stdout[-300:]}{done.stderr[-300:]}")
    return done.stdout


# -------------------------------------------------------------------------- contestants

def find_envoy(given):
    if given:
        return given
    for path in (ROOT / "target/peers/lib").rglob("envoy") if (ROOT / "target/peers/lib").is_dir() else []:
        if path.is_file() and path.stat().st_size > 1 << 20:
            return str(path)
    return shutil.which("envoy")


def commands(options):
    """Contestant to a function from a role (`h1`, `pair-client` …) to its command line; None if it is not here."""
    lateen, envoy, haproxy = options.lateen, find_envoy(options.envoy), shutil.which("haproxy", path=os.environ["PATH"] + ":/usr/sbin")
    yaml = lambda role: BENCH / "envoy" / f"{role}.yaml"
    return {
        "lateen": lateen and (lambda role: [lateen, "proxy", "-c", yaml(role), "--concurrency", "1"]),
        "envoy": envoy and (lambda role: [envoy, "-c", yaml(role), "--concurrency", "1", "--log-level", "error",
                                          "--base-id", str(7001 + (role == "pair-server"))]),
        "haproxy": haproxy and (lambda role: [haproxy, "-db", "-f", BENCH / "haproxy" / f"{role}.cfg"]),
    }


SCENARIOS = {
    # name: (roles with the port that each opens, HTTP/2 at the entry)
    "h1": ([("h1", ENTRY)], False),
    "h2": ([("h2", ENTRY)], True),
    "pair": ([("pair-server", MIDDLE), ("pair-client", ENTRY)], False),
}


def make_certificates(folder):
    """A certificate authority and two workload certificates with SPIFFE ids, as the control plane would issue them."""
    folder.mkdir(parents=True, exist_ok=True)

    def openssl(*argv):
        done = subprocess.run(["openssl", *argv], cwd=folder, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"openssl {argv[0]}: {done.stderr}")

    new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    openssl("req", "-x509", *new_key, "-keyout", "ca.key", "-out", "ca.crt", "-days", "2", "-subj", "/O=cluster.local",
            "-addext", "keyUsage=critical,keyCertSign,cRLSign")
    for name in ("client", "server"):
        extensions = folder / f"{name}.ext"
        extensions.write_text(f"subjectAltName=critical,URI:spiffe://cluster.local/ns/default/sa/{name}\n"
                              "keyUsage=critical,digitalSignature\nextendedKeyUsage=serverAuth,clientAuth\nbasicConstraints=critical,CA:FALSE\n")
        openssl("req", *new_key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", "/")
        openssl("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2",
                "-extfile", extensions.name, "-out", f"{name}.crt")
        (folder / f"{name}.pem").write_text((folder / f"{name}.crt").read_text() + (folder / f"{name}.key").read_text())


# -------------------------------------------------------------------------- measuring

def full_speed(http2, seconds):
    """Requests done and how many of them were bad, at full speed."""
    url = f"http://127.0.0.1:{ENTRY}/bytes/1024"
    if http2:
        out = on_load_core(["h2load", "-c", 4, "-m", 16, "-t", 1, "-D", f"{seconds:g}s", "--warm-up-time", "0", url], seconds + 30)
        counts = re.search(r"requests: \d+ total, \d+ started, (\d+) done, (\d+) succeeded", out)
        return int(counts[1]), int(counts[1]) - int(counts[2])
    out = on_load_core(["wrk", "-t", 1, "-c", 32, "-d", f"{seconds:g}s", "-s", BENCH / "wrk.lua", url], seconds + 30)
    result = json.loads(re.search(r"^RESULT (.*)$", out, re.M)[1])
    return result["requests"], result["bad"]


def paced(options, http2, seconds):
    """p50 and p99 in milliseconds, at the fixed rate, and how many requests failed."""
    argv = [options.lateen, "app", "load", "--url", f"http://127.0.0.1:{ENTRY}/bytes/1024", "--rps", options.rate,
            "--duration", f"{seconds:g}s", "--connections", 4 if http2 else 32, "--json"]
    report = json.loads(on_load_core(argv + (["--http2"] if http2 else []), seconds + 30))
    failed = report["scheduled"] - sum(count for status, count in report["statuses"].items() if status.startswith("2"))
    return report["latency_ms"]["p50"], report["latency_ms"]["p99"], failed


def measure(options, command, scenario, folder):
    roles, http2 = SCENARIOS[scenario]
    proxies = []
    try:
        for role, port in roles:
            proxies.append(Instance(command(role), PROXY_CORE, folder / f"{role}.log", folder).start().wait_for(port))
        full_speed(http2, WARM_UP)
        before, started = sum(p.cpu_nanos() for p in proxies), time.monotonic()
        requests, bad = full_speed(http2, options.duration)
        # The generator's own start-up is inside the interval; the proxy does nothing then.
        cpu, took = sum(p.cpu_nanos() for p in proxies) - before, time.monotonic() - started
        rss = sum(p.rss_kib() for p in proxies)
        p50, p99, failed = paced(options, http2, options.duration)
        if bad or failed:
            raise RuntimeError(f"{bad} bad requests at full speed, {failed} at the fixed rate")
        return {"cpu_us": cpu / 1e3 / max(requests, 1), "rps": requests / took, "p50_ms": p50, "p99_ms": p99, "rss_mib": rss / 1024}
    finally:
        for proxy in reversed(proxies):
            proxy.stop()


# -------------------------------------------------------------------------- the whole run

COLUMNS = [("cpu_us", "CPU µs/request", "{:.1f}"), ("rps", "requests/s", "{:.0f}"), ("p50_ms", "p50 ms", "{:.2f}"),
           ("p99_ms", "p99 ms", "{:.2f}"), ("rss_mib", "RSS MiB", "{:.1f}")]


def summary(rounds):
    return {key: statistics.median(r[key] for r in rounds) for key, _, _ in COLUMNS}


def table(results, reference):
    """Markdown: each figure and, in brackets, its ratio to the reference contestant's."""
    lines = ["| scenario | proxy | " + " | ".join(title for _, title, _ in COLUMNS) + " |", "| --- | --- |" + " ---: |" * len(COLUMNS)]
    for scenario, contestants in results.items():
        base = contestants.get(reference)
        for name, figures in contestants.items():
            cells = []
            for key, _, form in COLUMNS:
                ratio = f" ({figures[key] / base[key]:.2f}×)" if base and base[key] else ""
                cells.append(form.format(figures[key]) + ratio)
            lines.append(f"| {scenario} | {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenario", default="h1,h2,pair", help="comma-separated (default: %(default)s)")
    parser.add_argument("--contestants", default="lateen,envoy,haproxy", help="comma-separated (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each contestant (default: %(default)s)")
    parser.add_argument("--duration", type=float, default=5, help="seconds of each phase (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=2000, help="requests a second of the paced phase (default: %(default)s)")
    parser.add_argument("--lateen", default=str(ROOT / "target/release/lateen"), help="the program (default: target/release/lateen)")
    parser.add_argument("--envoy", help="Envoy's binary (default: target/peers, then PATH)")
    parser.add_argument("--reference", default="envoy", help="whom ratios compare with (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write every round's figures here")
    return parser.parse_args()


def main():
    options = arguments()
    if not Path(options.lateen).is_file():
        sys.exit(f"{options.lateen} is missing: cargo build --release")
    if len(os.sched_getaffinity(0)) < 2:
        sys.exit("two cores are needed: one for the proxy, one for service and load")
    for tool in ("wrk", "h2load", "openssl"):
        if not shutil.which(tool):
            sys.exit(f"{tool} is missing: apt-get install wrk nghttp2-client openssl")
    wanted = options.contestants.split(",")
    here = {name: command for name, command in commands(options).items() if name in wanted and command}
    for name in wanted:
        if name not in here:
            note(f"{name}: not installed, left out")
    scenarios = options.scenario.split(",")
    unknown = set(scenarios) - set(SCENARIOS)
    if unknown:
        sys.exit(f"no scenario {', '.join(sorted(unknown))}; there are {', '.join(SCENARIOS)}")

    rounds, failures = {}, []
    with tempfile.TemporaryDirectory(prefix="lateen-bench-") as temporary:
        folder = Path(temporary)
        make_certificates(folder / "certs")
        service = Instance([options.lateen, "app", "--name", "reviews", "--port", str(SERVICE), "--address", "127.0.0.1"],
                           LOAD_CORE, folder / "service.log", folder).start()
        try:
            service.wait_for(SERVICE)
            for scenario in scenarios:
                for number in range(options.rounds):
                    for name, command in here.items():
                        try:
                            figures = measure(options, command, scenario, folder)
                        except (RuntimeError, subprocess.TimeoutExpired) as error:
                            failures.append(f"{scenario}, {name}, round {number + 1}: {error}")
                            note(failures[-1])
                            continue
                        rounds.setdefault(scenario, {}).setdefault(name, []).append(figures)
                        note(f"{scenario:5} round {number + 1} {name:8} " + "  ".join(f"{k} {v:.2f}" for k, v in figures.items()))
        finally:
            service.stop()

    results = {scenario: {name: summary(all_rounds) for name, all_rounds in contestants.items()} for scenario, contestants in rounds.items()}
    if options.json:
        options.json.write_text(json.dumps({"rounds": rounds, "medians": results, "failures": failures}, indent=1) + "\n")
    print(table(results, options.reference))
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
