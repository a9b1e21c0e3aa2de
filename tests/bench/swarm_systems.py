"""The two systems that `swarm` compares: our daemons and libtorrent clients, one in each namespace.

Both have the same shape: `prepare` until everyone is connected, `pids`, `fetch`, `payload`, `check`, `stop`.
"""

import filecmp
import json
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

from common import warm
from hosts import Failure, Host, cache_dir

import weighlock

REFERENCE = "bench/swarm:1.0.0"
CONTENT = "content"
TORRENT = Path(__file__).resolve().parent / "swarm_torrent.py"


def libtorrent_python():
    """A Python that has libtorrent, in an environment that is made when it is not there; else why there is none."""
    home = cache_dir() / "venv-libtorrent"
    python = home / "bin/python"

    def quiet(*command):
        return subprocess.run(command, capture_output=True, text=True)

    def works():
        return python.exists() and quiet(python, "-c", "import libtorrent").returncode == 0

    # No building from source: that needs Boost and half an hour.
    pip = [python, "-m", "pip", "install", "-q", "--only-binary", ":all:", "libtorrent"]
    reason = "no Python with venv"
    for base in dict.fromkeys([sys.executable, *(f"python3.{minor}" for minor in (13, 12, 11, 10, 9))]):
        if works():
            break
        if not shutil.which(base) or quiet(base, "-m", "venv", "--clear", home).returncode:
            continue
        done = quiet(*pip)
        reason = (done.stderr.strip().splitlines() or ["the package cannot be imported"])[-1]
    return (str(python), None) if works() else (None, reason)


def parallel(call, items):
    """`call` of each item at the same time; the first error is raised when all have ended.

    Not a thread pool: that would wait for its threads when this script is told to stop.
    """
    items = list(items)
    results, errors = [None] * len(items), []

    def one(number):
        try:
            results[number] = call(items[number])
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=one, args=(number,), daemon=True) for number in range(len(items))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results


class Ours:
    """Daemons, one a namespace, the first one with the file."""

    label = "weighlock"

    def __init__(self, bench, root):
        self.bench, self.root = bench, root
        self.hosts = [Host(root / f"h{n}", f"h{n}", space) for n, space in enumerate(bench.network.spaces)]
        self.packet_bytes = None

    def prepare(self):
        seed, *others = self.hosts
        seed.start(loopback=False)
        seed.ask("add", self.bench.source / CONTENT, REFERENCE)
        ticket = seed.ask("invite", "--uses", len(others))["ticket"]
        parallel(lambda host: host.start(ticket, loopback=False), others)
        parallel(self.wait_all_connected, self.hosts)
        parallel(lambda host: host.wait_known(REFERENCE), others)
        warm(path for path in (seed.data / "layers").rglob("*") if path.is_file())

    def wait_all_connected(self, host):
        others = len(self.hosts) - 1

        def all_connected():
            rows = host.ask("peers")["items"]
            return sum(row["connected"] for row in rows) == others

        host.wait_for(f"being connected to {others} hosts", all_connected, 90)

    def pids(self):
        return [host.pid for host in self.hosts]

    def fetch(self, at, deadline_s):
        """Seconds from `at` on until each receiver had half of the bytes, and all."""
        deadline = threading.Timer(at + deadline_s - time.monotonic(), self.stop)
        deadline.start()
        try:
            return parallel(lambda host: self.receive(host, at), self.hosts[1:])
        finally:
            deadline.cancel()

    def receive(self, host, at):
        half = None

        def progress(step):
            nonlocal half
            if half is None and step.phase == "fetch" and step.done_bytes * 2 >= self.bench.size:
                half = time.monotonic() - at

        time.sleep(max(0, at - time.monotonic()))
        try:
            artifact = weighlock.open(REFERENCE, host.socket, progress=progress)
        except weighlock.Error as error:
            after = time.monotonic() - at
            raise Failure(f"{host.name} failed after {after:.0f} s: {error}\n{host.log()}") from error
        done = time.monotonic() - at
        artifact.close()
        return half or done, done

    def payload(self):
        """Bytes of the file that the seed sent, and that all receivers got, as the daemons count them."""
        rows = [host.ask("peers")["items"] for host in self.hosts]
        self.packet_bytes = max((row["mtu"] or 0 for row in rows[0]), default=None) or self.packet_bytes
        return sum(row["sent_bytes"] for row in rows[0]), sum(row["fetched_bytes"] for all in rows[1:] for row in all)

    def check(self, number):
        with weighlock.open(REFERENCE, self.hosts[number].socket) as artifact:
            for path in artifact.paths():
                here = f"/proc/self/fd/{artifact[path].fileno()}"
                if not filecmp.cmp(here, self.bench.source / CONTENT / path, shallow=False):
                    raise Failure(f"h{number} has other bytes in {path}")

    def stop(self):
        for host in self.hosts:
            host.kill()


class Torrent:
    """libtorrent clients, one a namespace, the first one with the file."""

    label = "libtorrent"

    def __init__(self, bench, root):
        self.bench, self.root = bench, root
        self.children = []
        self.hello = None

    def prepare(self):
        bench = self.bench
        self.root.mkdir()
        peers = len(bench.network.spaces) - 1
        for number, address in enumerate(bench.network.addresses):
            where = self.directory(number)
            command = [bench.python, TORRENT, "--torrent", bench.torrent, "--dir", where, "--listen", address]
            command += ["--peers", peers, *(["--seed"] if number == 0 else [])]
            command += [word for setting in bench.options.libtorrent_set for word in ("--set", setting)]
            with open(self.root / f"log{number}", "wb") as log:
                # Not in the terminal's group: Ctrl-C is for this script, which then ends them.
                self.children.append(subprocess.Popen(
                    bench.network.inside(number, *command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
                    text=True, start_new_session=True,
                ))
        hellos = parallel(lambda number: self.answer(number, 60), range(peers + 1))
        self.hello = hellos[0]
        for number in range(peers + 1):
            # Each dials those before it, so every pair is connected once.
            self.order(number, "connect", *bench.network.addresses[:number])
        for number, answer in enumerate(parallel(lambda number: self.answer(number, 60), range(peers + 1))):
            if answer["connected"] != peers:
                raise Failure(f"libtorrent client {number} is connected to {answer['connected']} of {peers} others")
        warm([bench.source / CONTENT / path for path in bench.paths])

    def directory(self, number):
        return self.bench.source if number == 0 else self.root / f"t{number}"

    def order(self, number, *words):
        try:
            print(*words, file=self.children[number].stdin, flush=True)
        except OSError as error:
            raise Failure(f"libtorrent client {number} ended: {error}\n{self.log(number)}") from error

    def log(self, number):
        return (self.root / f"log{number}").read_text(errors="replace")[-1000:]

    def answer(self, number, seconds):
        child = self.children[number]
        timer = threading.Timer(seconds, child.kill)
        timer.start()
        line = child.stdout.readline()
        timer.cancel()
        answer = json.loads(line or "{}")
        if not answer or "error" in answer:
            reason = answer.get("error", f"no answer in {seconds:.0f} s")
            raise Failure(f"libtorrent client {number}: {reason}\n{self.log(number)}")
        return answer

    def pids(self):
        return [child.pid for child in self.children]

    def fetch(self, at, deadline_s):
        receivers = range(1, len(self.children))
        for number in receivers:
            self.order(number, "go", repr(at))
        left = at + deadline_s - time.monotonic()
        answers = parallel(lambda number: self.answer(number, left), receivers)
        return [(answer["half"], answer["finished"]) for answer in answers]

    def payload(self):
        for number in range(len(self.children)):
            self.order(number, "stats")
        answers = [self.answer(number, 30) for number in range(len(self.children))]
        if any(answer["failed"] for answer in answers):
            raise Failure("libtorrent got pieces that failed their hash")
        return answers[0]["payload_sent"], sum(answer["payload_received"] for answer in answers[1:])

    def check(self, number):
        for path in self.bench.paths:
            here = self.directory(number) / CONTENT / path
            if not filecmp.cmp(here, self.bench.source / CONTENT / path, shallow=False):
                raise Failure(f"libtorrent client {number} has other bytes in {path}")

    def stop(self):
        for child in self.children:
            child.kill()
            child.wait()
            child.stdin.close()
            child.stdout.close()
