#!/usr/bin/env python3
"""A 2 GiB checkpoint and one with 5,000 small files go through add and fetch, byte for byte. Standard library only."""

import argparse
import hashlib
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

from hosts import GIB, MIB, Failure, Host, Watch, checkpoint, file_system, files_of, rate

RSS_ANON_BYTES_MAX = 128 * MIB


def small_files(directory, count, rng):
    """`count` files of 1 to 20 KB in a hundred directories, none like another."""
    for number in range(count):
        path = Path(directory) / f"part-{number % 100:02}" / f"file-{number:05}.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(rng.randbytes(rng.randrange(1000, 20_001)))


def sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else slow(file)


def slow(file):
    digest = hashlib.sha256()
    while block := file.read(MIB):
        digest.update(block)
    return digest.hexdigest()


class Run:
    def __init__(self, root):
        self.root = root
        self.passed = self.failed = 0
        self.a, self.b = Host(root / "a", "a"), Host(root / "b", "b")

    def check(self, what, good, detail=""):
        self.passed += bool(good)
        self.failed += not good
        print(f"  {'ok  ' if good else 'FAIL'} {what}{': ' + str(detail) if detail else ''}", flush=True)

    def case(self, name, source):
        files = files_of(source)
        total = sum(files.values())
        reference = f"sizes/{name}:1.0.0"
        print(f"\n{name}: {len(files)} files, {total / 1e6:.0f} MB", flush=True)
        os.sync()
        with Watch(a=self.a.pid) as adding:
            began = time.monotonic()
            added = self.a.ask("add", source, reference)
            add_s = time.monotonic() - began
        self.check("add names every file", added["files"] == len(files), f"{added['files']} files")
        began = time.monotonic()
        self.b.wait_known(reference)
        heard_s = time.monotonic() - began
        os.sync()
        with Watch(a=self.a.pid, b=self.b.pid) as fetching:
            began = time.monotonic()
            pulled = self.b.ask("pull", reference)
            fetch_s = time.monotonic() - began
            target = self.root / "out" / name
            began = time.monotonic()
            self.b.ask("pull", reference, "--to", target)
            write_s = time.monotonic() - began
        self.check("the digest is the publisher's", pulled["digest"] == added["digest"], added["digest"][:19])
        self.check("the same paths and sizes", files_of(target) == files)
        wrong = [path for path in files if sha256(source / path) != sha256(target / path)]
        self.check("SHA-256 of every file equals the original's", not wrong, wrong[:3] or "")
        row = self.b.row(reference)
        self.check("ls says that all of it is here", row["complete"] and row["held_bytes"] == total)
        left = [str(path.relative_to(self.b.data)) for path in (self.b.data / "partial").glob("*") if path.is_file()]
        self.check("nothing partial is left", not left, left[:3] or "")
        print(f"  add {add_s:.2f} s ({rate(total, add_s):.0f} MB/s), heard after {heard_s:.2f} s, "
              f"fetch {fetch_s:.2f} s ({rate(total, fetch_s):.0f} MB/s), pull --to {write_s:.2f} s")
        peaks = {"add": adding.peak["a"], "serve": fetching.peak["a"], "fetch": fetching.peak["b"]}
        shown = ", ".join(f"{key} {value / MIB:.0f} MiB" for key, value in peaks.items())
        self.check("peak RssAnon is at most 128 MiB", max(peaks.values()) <= RSS_ANON_BYTES_MAX, shown)
        for host in (self.b, self.a):
            host.ask("rm", reference, "--force")
        shutil.rmtree(target)


def main():
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--gib", type=float, default=2, help="size of the large checkpoint")
    options.add_argument("--files", type=int, default=5000, help="files of the other one")
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--dir", help="where everything is kept meanwhile (default: the temporary directory)")
    options = options.parse_args()
    root = Path(tempfile.mkdtemp(prefix="weighlock-sizes-", dir=options.dir))
    run = Run(root)
    print(f"file system: {file_system(root)}; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    try:
        run.a.start()
        run.b.start(run.a.ask("invite")["ticket"])
        run.b.wait_connected()
        checkpoint(root / "large", int(options.gib * GIB), 4)
        run.case("large", root / "large")
        small_files(root / "many", options.files, random.Random(options.seed))
        run.case("many", root / "many")
        for host in (run.b, run.a):
            host.stop()
        run.check("both daemons stop on SIGTERM", True)
    except Failure as failure:
        run.check("the run goes through", False, failure)
    finally:
        for host in (run.a, run.b):
            host.kill()
        shutil.rmtree(root, ignore_errors=True)
    print(f"\n{run.passed} passed, {run.failed} failed")
    return run.failed > 0


if __name__ == "__main__":
    sys.exit(main())
