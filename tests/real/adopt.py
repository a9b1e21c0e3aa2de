#!/usr/bin/env python3
"""A Hub cache made by the real huggingface_hub is adopted without copying a layer, and served to another host.

A small server speaks the Hub's dialect for one made-up model; `snapshot_download` of the real package fills its cache on
an XFS image that shares blocks. Three daemons: the first publishes the same bytes from a plain directory, the second has
its store on the image beside the cache and runs `weighlock adopt`, the third fetches from the second alone once the
first has stopped. Shown: no byte of a file was copied or fetched by the second (blocks used on the image, bytes over
the network), the third has the right files.

Needs root for the loop mount, xfsprogs, python3 with venv and a package index the first time.
"""

import argparse
import hashlib
import http.server
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import hosts
from hosts import MIB, Failure, Host, cache_dir, give_up

HUB = "huggingface_hub==2.4.0"
REPO, MODEL = "acme/model", "acme/model:1.0.0"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
DOWNLOAD = "import sys; from huggingface_hub import snapshot_download as d; print(d(sys.argv[1], cache_dir=sys.argv[2]))"


def hub_of(source):
    """Serves the files of `source` as the one repository of a Hub. Large files have their SHA-256 as ETag, as there."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def do_HEAD(self):
            self.answer(False)

        def do_GET(self):
            self.answer(True)

        def answer(self, body):
            path = self.path.split("?")[0]
            names = sorted(each.name for each in source.iterdir())
            if path.startswith(f"/api/models/{REPO}/revision/"):
                told = {"id": REPO, "modelId": REPO, "sha": COMMIT, "siblings": [{"rfilename": n} for n in names]}
                return self.send(json.dumps(told).encode(), {"Content-Type": "application/json"}, body)
            if path.startswith(f"/api/models/{REPO}/tree/"):
                tree = [{"type": "file", "path": n, "size": (source / n).stat().st_size, "oid": "0" * 40} for n in names]
                return self.send(json.dumps(tree).encode(), {"Content-Type": "application/json"}, body)
            name = path.rsplit("/", 1)[-1]
            if path.startswith(f"/{REPO}/resolve/") and name in names:
                data = (source / name).read_bytes()
                large = name.endswith(".safetensors")
                etag = hashlib.sha256(data).hexdigest() if large else hashlib.sha1(data).hexdigest()
                headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
                if large:
                    headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(data))}
                return self.send(data, headers, body)
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return None

        def send(self, data, headers, body):
            self.send_response(200)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if body:
                self.wfile.write(data)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def python_with_hub():
    """A Python environment with the real package."""
    venv = cache_dir() / "hub-venv"
    python = venv / "bin/python"
    if subprocess.run([python, "-c", "import huggingface_hub"], capture_output=True).returncode if python.exists() else True:
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
        subprocess.run([python, "-m", "pip", "-q", "install", HUB], check=True)
    return python


def used_bytes(path):
    """Bytes in use on the file system of `path`, all of it on disk."""
    subprocess.run(["sync", "-f", str(path)], check=True)
    stat = os.statvfs(path)
    return (stat.f_blocks - stat.f_bfree) * stat.f_frsize


def sha256_of(directory):
    found = {}
    for path in sorted(Path(directory).rglob("*")):
        if path.is_file():
            found[str(path.relative_to(directory))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def run(work, mount, size_mib):
    source = work / "source"
    total = hosts.checkpoint(source, size_mib * MIB, 3)
    server = hub_of(source)
    cache = mount / "hub"
    environment = {
        **os.environ,
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HOME": str(mount / "home"),
    }
    done = subprocess.run(
        [python_with_hub(), "-c", DOWNLOAD, REPO, cache], env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise Failure(f"huggingface_hub: {done.stderr.strip()[-2000:]}")
    server.shutdown()
    snapshot = Path(done.stdout.strip())
    links = [path for path in snapshot.iterdir() if path.is_symlink()]
    if len(links) != len(list(source.iterdir())):
        raise Failure(f"{snapshot} is not a snapshot of links into blobs/")

    alpha, beta, gamma = Host(work / "alpha", "alpha"), Host(mount / "beta", "beta"), Host(work / "gamma", "gamma")
    try:
        alpha.start()
        alpha.ask("add", source, MODEL)
        beta.start(ticket=alpha.ask("invite")["ticket"])
        gamma.start(ticket=alpha.ask("invite")["ticket"])
        for host in (beta, gamma):
            host.wait_known(MODEL)
            host.wait_for("the manifest", lambda host=host: host.row(MODEL)["files"])
        before = used_bytes(mount)
        began = time.monotonic()
        adopted = beta.ask("adopt", cache)
        seconds = time.monotonic() - began
        grown = used_bytes(mount) - before
        if adopted["copied_bytes"] or adopted["reflinked_bytes"] != total:
            raise Failure(f"adopt copied: {adopted}")
        beta.wait_for("being a seed", lambda: beta.row(MODEL)["complete"])
        fetched = int(beta.metric("weighlock_fetched_bytes_total"))
        # Trees are 1/256 of the layers; the file system keeps room for its own records.
        if grown > total // 64 + 8 * MIB or fetched > MIB:
            raise Failure(f"{grown} bytes more on the disk, {fetched} fetched, for {total} adopted")
        alpha.stop()
        gamma.ask("pull", MODEL, "--to", work / "pulled")
        if sha256_of(work / "pulled") != sha256_of(source):
            raise Failure("the third host has other files")
        sent = sum(peer["sent_bytes"] for peer in beta.ask("peers")["items"])
    finally:
        for host in (alpha, beta, gamma):
            host.kill()
    return {
        "model_bytes": total,
        "file_system": hosts.file_system(mount),
        "adopt_s": round(seconds, 3),
        "reflinked_bytes": adopted["reflinked_bytes"],
        "copied_bytes": adopted["copied_bytes"],
        "disk_growth_bytes": grown,
        "fetched_bytes": fetched,
        "sent_to_third_bytes": sent,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=192, help="size of the model [default: %(default)s]")
    options = parser.parse_args()
    if os.geteuid() != 0 or not shutil.which("mkfs.xfs"):
        give_up("needs root for a loop mount, and mkfs.xfs (Debian: xfsprogs)")
    with tempfile.TemporaryDirectory(prefix="wl-adopt-") as work:
        work = Path(work)
        image, mount = work / "xfs.img", work / "mount"
        mount.mkdir()
        with open(image, "wb") as file:
            file.truncate((options.mib * 3 + 1024) * MIB)
        subprocess.run(["mkfs.xfs", "-q", "-m", "reflink=1", image], check=True)
        subprocess.run(["mount", "-o", "loop", image, mount], check=True)
        try:
            figures = run(work, mount, options.mib)
        except Failure as failure:
            sys.exit(f"FAILED: {failure}")
        finally:
            subprocess.run(["umount", mount], check=True)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
