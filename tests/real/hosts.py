"""Runs real Weighlock daemons for the scripts under tests/: starts, asks, measures, kills. Standard library only."""

import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO / "node/python/src"))

MIB = 1 << 20
GIB = 1 << 30
TICKS = os.sysconf("SC_CLK_TCK")
START_S_MAX = 60
# A script that is told to stop must stop its daemons too: SIGTERM unwinds it like an error.
signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped by SIGTERM"))
FILE_SYSTEMS = {0xEF53: "ext4", 0x01021994: "tmpfs", 0x58465342: "xfs", 0x9123683E: "btrfs", 0x794C7630: "overlayfs"}


class Failure(Exception):
    """Something that the product or the machine did wrong."""


def give_up(message):
    """Ends the script because it cannot run here; nothing was proven."""
    sys.exit(f"{Path(sys.argv[0]).name}: {message}")


def binary():
    """The `weighlock` to try: WEIGHLOCK_BIN, or the release build of this tree."""
    path = Path(os.environ.get("WEIGHLOCK_BIN") or REPO / "target/release/weighlock").absolute()
    if not os.access(path, os.X_OK):
        give_up(f"no program at {path}; run `cargo build --release` or set WEIGHLOCK_BIN")
    return str(path)


def cache_dir():
    """Where downloads and Python environments are kept between runs, outside the repository."""
    path = Path(os.environ.get("WEIGHLOCK_TEST_CACHE") or Path.home() / ".cache/weighlock-tests")
    path.mkdir(parents=True, exist_ok=True)
    return path


def file_system(path):
    """Name of the file system that holds `path`."""
    kind = subprocess.run(["stat", "-f", "-c", "%t", str(path)], capture_output=True, text=True, check=True)
    number = int(kind.stdout.strip(), 16)
    return FILE_SYSTEMS.get(number, hex(number))


def cpu_s(pid):
    """CPU seconds that a live process has used, its threads included."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def rss_anon_bytes(pid):
    """Anonymous resident memory of a process; 0 when it is gone."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


class Watch:
    """Remembers the peak of RssAnon of some processes while the `with` block runs, looking 50 times a second."""

    def __init__(self, **pids):
        self.pids = pids
        self.peak = dict.fromkeys(pids, 0)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self):
        while True:
            for name, pid in self.pids.items():
                self.peak[name] = max(self.peak[name], rss_anon_bytes(pid))
            if self._stop.wait(0.02):
                return

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()


class Host:
    """One daemon with a store, keys and configuration of its own under `directory`."""

    def __init__(self, directory, name, netns=None):
        self.dir = Path(directory)
        self.name = name
        self.netns = netns
        self.data = self.dir / "data"
        self.child = None
        self.ready = None
        self.dir.mkdir(parents=True, exist_ok=True)
        (self.dir / "config.toml").write_text(os.environ.get("WEIGHLOCK_TEST_CONFIG", ""))

    def command(self, *arguments):
        """The command line of `weighlock ARGUMENTS` for this host."""
        inside = ["ip", "netns", "exec", self.netns] if self.netns else []
        places = ["--data-dir", self.data, "--keys-dir", self.dir / "keys", "--config", self.dir / "config.toml"]
        return [*inside, binary(), *map(str, places), "--json", *map(str, arguments)]

    def environment(self, **more):
        kept = {key: value for key, value in os.environ.items() if not key.startswith("WEIGHLOCK_")}
        return {**kept, **more}

    def start(self, ticket=None, mdns=False, loopback=True):
        """Starts the daemon and waits until all its doors are open. On loopback its ports stay over restarts."""
        arguments = ["up", "--name", self.name]
        if loopback:
            before = self.ready or {"control": ["127.0.0.1:0"], "data": "127.0.0.1:0", "http": "127.0.0.1:0"}
            arguments += ["--control-listen", before["control"][0]]
            arguments += ["--data-listen", before["data"], "--http-listen", before["http"]]
        if not mdns:
            arguments.append("--no-mdns")
        environment = self.environment(**({"WEIGHLOCK_TICKET": ticket} if ticket else {}))
        with open(self.dir / "log", "ab") as log:
            self.child = subprocess.Popen(
                self.command(*arguments), env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log
            )
        timer = threading.Timer(START_S_MAX, self.child.kill)
        timer.start()
        line = self.child.stdout.readline()
        timer.cancel()
        if not line:
            raise Failure(f"{self.name} did not start:\n{self.log()}")
        self.ready = json.loads(line)
        return self

    @property
    def pid(self):
        return self.child.pid

    @property
    def socket(self):
        return self.ready["loader_socket"]

    def log(self, lines=15):
        path = self.dir / "log"
        text = re.sub(r"\x1b\[[0-9;]*m", "", path.read_text(errors="replace")) if path.exists() else ""
        return "\n".join(text.splitlines()[-lines:])

    def begin(self, *arguments):
        """Starts a command against this host's daemon and does not wait for it."""
        return subprocess.Popen(
            self.command(*arguments), env=self.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def ask(self, *arguments, timeout=900):
        """Runs a command against this host and returns what its last line of JSON says."""
        done = subprocess.run(
            self.command(*arguments), env=self.environment(), capture_output=True, text=True, timeout=timeout
        )
        if done.returncode != 0:
            raise Failure(f"{self.name}: weighlock {arguments[0]} ended with {done.returncode}: {done.stderr.strip()}")
        return json.loads(done.stdout.splitlines()[-1])

    def row(self, reference):
        """This host's line of `ls` for a reference, or None."""
        for row in self.ask("ls", reference)["items"]:
            if f"{row['artifact']}:{row['tag']}" == reference:
                return row
        return None

    def wait_for(self, what, probe, seconds=60):
        """Waits until `probe()` is true and returns it."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            found = probe()
            if found:
                return found
            time.sleep(0.05)
        peers = [f"{p['name']} connected={p['connected']} held={p['held']}" for p in self.ask("peers")["items"]]
        seen = "; ".join(peers) or "none"
        raise Failure(f"{self.name}: {what} did not happen within {seconds} s; peers: {seen}; log:\n{self.log()}")

    def wait_known(self, reference, seconds=60):
        """Waits until this host has heard of `reference` and of a host that holds all of it."""

        def known():
            row = self.row(reference)
            return row if row and (row["complete"] or row["copies_elsewhere"]) else None

        try:
            return self.wait_for(f"hearing of {reference}", known, seconds)
        except Failure as failure:
            raise Failure(f"`ls` says {self.row(reference)}; {failure}") from None

    def wait_connected(self, seconds=60):
        """Waits until this host is connected to another one; returns the seconds that it took."""
        began = time.monotonic()
        self.wait_for("a connection", lambda: any(peer["connected"] for peer in self.ask("peers")["items"]), seconds)
        return time.monotonic() - began

    def packet_bytes(self):
        """Path MTU of the open data connections, the largest; None without one."""
        sizes = [peer["mtu"] for peer in self.ask("peers")["items"] if peer["mtu"]]
        return max(sizes, default=None)

    def metric(self, name):
        """One number of /metrics."""
        with urllib.request.urlopen(f"http://{self.ready['http']}/metrics", timeout=10) as answer:
            for line in answer.read().decode().splitlines():
                if line.startswith(name + " "):
                    return float(line.split()[1])
        raise Failure(f"{self.name}: /metrics has no {name}")

    def stop(self):
        """SIGTERM, and the daemon must end with 0."""
        self.child.send_signal(signal.SIGTERM)
        try:
            code = self.child.wait(60)
        except subprocess.TimeoutExpired:
            self.kill()
            raise Failure(f"{self.name} did not stop within 60 s of SIGTERM:\n{self.log()}") from None
        self.child.stdout.close()
        if code != 0:
            raise Failure(f"{self.name} ended with {code}:\n{self.log()}")

    def kill(self):
        """kill -9, if it runs."""
        if self.child and self.child.poll() is None:
            self.child.kill()
            self.child.wait()
        if self.child and self.child.stdout:
            self.child.stdout.close()


class Run:
    """Checks told one by one on two hosts, `a` and `b`, whose directories go at the end."""

    def __init__(self, root):
        self.root = root
        self.passed = self.failed = 0
        self.hosts = []
        self.a, self.b = self.host("a"), self.host("b")

    def host(self, name, kind=None, *more):
        """A host that the end of the run also ends."""
        self.hosts.append((kind or Host)(self.root / name, name, *more))
        return self.hosts[-1]

    def check(self, what, good, detail=""):
        self.passed += bool(good)
        self.failed += not good
        print(f"  {'ok  ' if good else 'FAIL'} {what}{': ' + str(detail) if detail else ''}", flush=True)

    def carry_out(self, go):
        """Calls `go`; then the result of the script: 1 if a check failed, or `go` did."""
        try:
            go()
        except Failure as failure:
            self.check("the run goes through", False, failure)
        finally:
            for host in self.hosts:
                host.kill()
            shutil.rmtree(self.root, ignore_errors=True)
        print(f"\n{self.passed} passed, {self.failed} failed")
        return int(self.failed > 0)


def safetensors(path, tensors, payload, metadata=None):
    """Writes a valid file of F16 matrices: `tensors` is [(name, rows, columns)], `payload(n)` gives n bytes."""
    header, at = {}, 0
    if metadata:
        header["__metadata__"] = metadata
    for name, rows, columns in tensors:
        size = 2 * rows * columns
        header[name] = {"dtype": "F16", "shape": [rows, columns], "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for _, rows, columns in tensors:
            left = 2 * rows * columns
            while left:
                step = min(left, 16 * MIB)
                out.write(payload(step))
                left -= step


def checkpoint(directory, total_bytes, shards, payload=os.urandom):
    """Writes a checkpoint in the Hugging Face layout: shards, their index and a configuration. Returns its bytes."""
    directory = Path(directory)
    directory.mkdir(parents=True)
    columns = 1024
    rows_each = 4096 if total_bytes >= 512 * MIB else 256
    rows = total_bytes // (2 * columns * shards)
    where = {}
    for shard in range(shards):
        name = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        tensors, left = [], rows
        while left:
            take = min(left, rows_each)
            tensors.append((f"model.layers.{shard}.{len(tensors)}.weight", take, columns))
            left -= take
        safetensors(directory / name, tensors, payload, {"format": "pt"})
        where.update({tensor: name for tensor, _, _ in tensors})
    total = shards * rows * columns * 2
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": columns}
    (directory / "config.json").write_text(json.dumps(config))
    return sum(each.stat().st_size for each in directory.iterdir())


def files_of(directory):
    """Relative path and size of every file below a directory."""
    root = Path(directory)
    return {str(path.relative_to(root)): path.stat().st_size for path in sorted(root.rglob("*")) if path.is_file()}


def rate(total_bytes, seconds):
    """MB/s, 10^6 bytes."""
    return total_bytes / 1e6 / seconds if seconds > 0 else float("inf")
