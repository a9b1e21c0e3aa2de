"""What `pair` runs beside us: nginx HTTPS -> curl, libtorrent, iroh-blobs over an iroh endpoint, plain QUIC.

Each case has a `setup` with the file, a `run` that fetches it once into a fresh place, and `stop`. A run answers with
seconds, CPU seconds of both sides together and, where both sides live long enough to be looked at, peak RssAnon.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

from common import MIB, give_up, need, synced, timed
from hosts import REPO, Failure, Watch, cpu_s
from swarm_systems import TORRENT, libtorrent_python

NGINX = """
worker_processes 1;
daemon off;
{user}
pid {dir}/nginx.pid;
error_log {dir}/error.log;
events {{ worker_connections 64; }}
http {{
    access_log off;
    sendfile on;
    client_body_temp_path {dir}/t1; proxy_temp_path {dir}/t2; fastcgi_temp_path {dir}/t3;
    uwsgi_temp_path {dir}/t4; scgi_temp_path {dir}/t5;
    server {{
        listen 127.0.0.1:{port} ssl;
        root {root};
        ssl_certificate {dir}/cert.pem;
        ssl_certificate_key {dir}/key.pem;
        ssl_protocols TLSv1.3;
        ssl_conf_command Ciphersuites TLS_AES_128_GCM_SHA256;
    }}
}}
"""


class Https:
    """nginx with one worker, TLS 1.3, AES-128-GCM, sendfile; curl writes to a file."""

    label = "nginx HTTPS -> curl"

    def __init__(self, directory, file):
        self.dir, self.file = directory, file
        self.program, self.curl = need("nginx", "nginx-light"), need("curl", "curl")
        directory.mkdir()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        subprocess.run(
            [need("openssl", "openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
             "-nodes", "-keyout", directory / "key.pem", "-out", directory / "cert.pem", "-days", "2",
             "-subj", "/CN=localhost"],
            check=True, capture_output=True,
        )
        user = "user root;" if os.geteuid() == 0 else ""
        conf = NGINX.format(user=user, dir=directory, port=self.port, root=file.parent)
        (directory / "conf").write_text(conf)
        self.child = subprocess.Popen([self.program, "-p", directory, "-c", directory / "conf"], stderr=subprocess.PIPE)
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        self.stop()
        give_up(f"nginx did not start: {self.child.stderr.read().decode()}")

    def cpu_s(self):
        """Of the master and its worker."""
        children = Path(f"/proc/{self.child.pid}/task/{self.child.pid}/children").read_text().split()
        return cpu_s(self.child.pid) + sum(cpu_s(pid) for pid in children)

    def run(self):
        target = self.dir / "curl.bin"
        before = self.cpu_s()
        url = f"https://127.0.0.1:{self.port}/{self.file.name}"
        seconds, cpu = timed([self.curl, "-sk", "--fail", "-o", target, url])
        cpu += self.cpu_s() - before
        if target.stat().st_size != self.file.stat().st_size:
            raise Failure("curl got another size")
        sync_s = synced(target)
        target.unlink()
        return {"seconds": seconds, "synced_seconds": seconds + sync_s, "cpu_s": cpu}

    def stop(self):
        if self.child.poll() is None:
            self.child.send_signal(signal.SIGTERM)
            self.child.wait(30)


class Process:
    """A program that says JSON lines and takes orders on its standard input, until that ends."""

    def __init__(self, command, log):
        self.name = Path(command[0]).name
        with open(log, "ab") as errors:
            self.child = subprocess.Popen(
                [str(part) for part in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
            )
        self.log = log

    @property
    def pid(self):
        return self.child.pid

    def hear(self):
        line = self.child.stdout.readline()
        if not line:
            raise Failure(f"{self.name} ended: {Path(self.log).read_text(errors='replace')[-500:]}")
        return json.loads(line)

    def say(self, line):
        self.child.stdin.write(line + "\n")
        self.child.stdin.flush()

    def stop(self):
        self.child.stdin.close()
        try:
            self.child.wait(20)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()
        self.child.stdout.close()


def measured(server, client, order):
    """Gives the client its order and waits for the answer: what it said, with the CPU and memory of both."""
    before = cpu_s(server.pid) + cpu_s(client.pid)
    with Watch(a=server.pid, b=client.pid) as memory:
        client.say(order())
        said = client.hear()
        used = cpu_s(server.pid) + cpu_s(client.pid) - before
    peak = {f"rss_anon_mib_{side}": bytes_ / MIB for side, bytes_ in memory.peak.items()}
    return said, {"cpu_s": used, **peak}


class Torrent:
    """libtorrent at its defaults, one seed and one leech over TCP; version 1 torrents, which cost it the least."""

    label = "libtorrent"

    def __init__(self, directory, file):
        self.dir, self.file = directory, file
        directory.mkdir()
        self.python, reason = libtorrent_python()
        if not self.python:
            give_up(f"libtorrent cannot be installed with pip: {reason}; leave it out with --only")
        self.torrent = directory / "torrent"
        # The torrent names the directory that holds the file.
        content = [self.python, TORRENT, "--dir", file.parent]
        subprocess.run([*content, "--make", self.torrent], check=True)

    def start(self, directory, listen, *more):
        where = ["--dir", directory, "--torrent", self.torrent, "--listen", listen]
        process = Process([self.python, TORRENT, *where, *more], self.dir / "log")
        process.hear()
        return process

    def run(self):
        seed = self.start(self.file.parent.parent, "127.0.0.2", "--seed")
        target = self.dir / "leech"
        leech = self.start(target, "127.0.0.3")
        try:
            leech.say("connect 127.0.0.2")
            if leech.hear()["connected"] != 1:
                raise Failure("the libtorrent clients did not connect")
            said, used = measured(seed, leech, lambda: f"go {time.monotonic()}")
            if "finished" not in said:
                raise Failure(f"libtorrent: {said}")
            return {"seconds": said["finished"], **used}
        finally:
            leech.stop()
            seed.stop()
            shutil.rmtree(target, ignore_errors=True)

    def stop(self):
        pass


def peers_program():
    """The program behind the next two cases, built in release where it is not there."""
    cargo = need("cargo", "cargo, or see rustup.rs")
    build = [cargo, "build", "--release", "--quiet", "--locked", "-p", "weighlock", "--example", "peers"]
    path = Path(os.environ.get("WEIGHLOCK_PEERS_BIN") or REPO / "target/release/examples/peers").absolute()
    if not path.exists() and subprocess.run(build, cwd=REPO).returncode:
        give_up("`cargo build --release -p weighlock --example peers` failed")
    return path


class Iroh:
    """iroh-blobs, file store to file store, over iroh endpoints at their defaults; by address, no relay."""

    label = "iroh-blobs over iroh"

    def __init__(self, directory, file):
        self.dir, self.program = directory, peers_program()
        directory.mkdir()
        self.server = Process([self.program, "iroh-serve", file, directory / "seed"], directory / "log")
        self.at = self.server.hear()
        self.size = file.stat().st_size

    def run(self):
        store = self.dir / "store"
        there = [self.at["hash"], self.at["id"], self.at["addr"]]
        client = Process([self.program, "iroh-fetch", store, *there], self.dir / "log")
        try:
            said, used = measured(self.server, client, lambda: "go")
            if said["bytes"] != self.size:
                raise Failure(f"iroh-blobs fetched {said['bytes']} bytes")
            return {"seconds": said["seconds"], **used}
        finally:
            client.stop()
            shutil.rmtree(store, ignore_errors=True)

    def stop(self):
        self.server.stop()


class Raw:
    """quinn with our TLS and our transport, memory to nowhere: nothing is read, proven or written."""

    label = "raw QUIC"

    def __init__(self, directory, file, packet_bytes):
        self.dir, self.program = directory, peers_program()
        directory.mkdir()
        self.arguments = [file.stat().st_size, packet_bytes]
        self.packet_bytes = None

    def run(self):
        server = Process([self.program, "raw-serve", *self.arguments], self.dir / "log")
        client = None
        try:
            at = server.hear()
            client = Process([self.program, "raw-fetch", *self.arguments, at["host"], at["addr"]], self.dir / "log")
            # Until it is connected.
            time.sleep(0.5)
            said, used = measured(server, client, lambda: "go")
            self.packet_bytes = said["packet_bytes"]
            return {"seconds": said["seconds"], **used}
        finally:
            if client:
                client.stop()
            server.stop()

    def stop(self):
        pass
