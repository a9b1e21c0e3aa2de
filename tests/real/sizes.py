#!/usr/bin/env python3
"""A 2 GiB checkpoint and one with 5,000 small files go through add and fetch, byte for byte, within bounded memory.

With `--gib 10`, or anything above 4, it is one file of that size instead, and nothing else: add, fetch, the proof of
SHA-256 after it and a scrub, on two daemons. The source is removed after the add and nothing is copied out, so twice the size of
disk is enough. Standard library only.
"""

import argparse
import hashlib
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

from hosts import GIB, MIB, Failure, Run, Watch, checkpoint, cpu_s, file_system, files_of, rate

import weighlock

RSS_ANON_BYTES_MAX = 128 * MIB
RSS_ANON_BYTES_AIM = 64 * MIB
# Above it, disk is what is short.
COPIES_GIB_MAX = 4
# A daemon that used less CPU than this for three seconds has nothing left to do.
IDLE_CPU_S = 0.1


def small_files(directory, count, rng):
    """`count` files of 1 to 20 KB in a hundred directories, none like another."""
    for number in range(count):
        path = Path(directory) / f"part-{number % 100:02}" / f"file-{number:05}.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(rng.randbytes(rng.randrange(1000, 20_001)))


def sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else slow(file)


def idle(host, seconds=600):
    """Waits until a daemon works on nothing, its background work included; returns the CPU seconds used meanwhile."""
    began, until = cpu_s(host.pid), time.monotonic() + seconds
    # The proof begins two seconds after a fetch.
    time.sleep(3)
    while time.monotonic() < until:
        before = cpu_s(host.pid)
        time.sleep(3)
        if cpu_s(host.pid) - before < IDLE_CPU_S:
            return cpu_s(host.pid) - began
    raise Failure(f"{host.name} is still at work after {seconds} s:\n{host.log()}")


def slow(file):
    digest = hashlib.sha256()
    while block := file.read(MIB):
        digest.update(block)
    return digest.hexdigest()


class Both(Run):
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

    def lean(self, name, source):
        """One large file; every phase is watched by itself, and the source goes once it is in."""
        wanted = {path: sha256(source / path) for path in files_of(source)}
        total = sum(files_of(source).values())
        reference = f"sizes/{name}:1.0.0"
        print(f"\n{name}: {len(wanted)} files, {total / 1e6:.0f} MB", flush=True)
        self.phase("add", total, lambda: self.a.ask("add", source, reference))
        shutil.rmtree(source)
        self.b.wait_known(reference)
        self.phase("fetch", total, lambda: self.b.ask("pull", reference))
        self.phase("proof of SHA-256", total, lambda: print(f"  CPU of the proof: {idle(self.b):.1f} s"))
        with weighlock.open(reference, socket=self.b.socket) as artifact:
            got = {}
            for path in wanted:
                with artifact[path].open() as file:
                    digest = hashlib.sha256()
                    while block := file.read(MIB):
                        digest.update(block)
                    got[path] = digest.hexdigest()
        self.check("SHA-256 of every file equals the original's", got == wanted)
        self.phase("scrub", total, lambda: self.b.ask("scrub"))

    def phase(self, name, total, work):
        """Does something while the memory of both daemons is watched, and holds it against the bound."""
        os.sync()
        with Watch(a=self.a.pid, b=self.b.pid) as memory:
            began = time.monotonic()
            work()
            seconds = time.monotonic() - began
        peak = max(memory.peak.values())
        shown = ", ".join(f"{host} {value / MIB:.0f} MiB" for host, value in memory.peak.items())
        within = "within" if peak <= RSS_ANON_BYTES_AIM else "above"
        self.check(f"{name}: peak RssAnon is at most 128 MiB", peak <= RSS_ANON_BYTES_MAX,
                   f"{shown}, {within} the aim of 64; {seconds:.1f} s ({rate(total, seconds):.0f} MB/s)")


def main():
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--gib", type=float, default=2, help="size of the large checkpoint")
    options.add_argument("--files", type=int, default=5000, help="files of the other one")
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--dir", help="where everything is kept meanwhile (default: the temporary directory)")
    options = options.parse_args()
    root = Path(tempfile.mkdtemp(prefix="weighlock-sizes-", dir=options.dir))
    run = Both(root)
    print(f"file system: {file_system(root)}; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")

    def go():
        run.a.start()
        run.b.start(run.a.ask("invite")["ticket"])
        run.b.wait_connected()
        if options.gib > COPIES_GIB_MAX:
            checkpoint(root / "large", int(options.gib * GIB), 1)
            run.lean("large", root / "large")
        else:
            checkpoint(root / "large", int(options.gib * GIB), 4)
            run.case("large", root / "large")
            small_files(root / "many", options.files, random.Random(options.seed))
            run.case("many", root / "many")
        for host in (run.b, run.a):
            host.stop()
        run.check("both daemons stop on SIGTERM", True)

    return run.carry_out(go)


if __name__ == "__main__":
    sys.exit(main())
