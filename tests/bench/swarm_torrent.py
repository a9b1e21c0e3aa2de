"""One libtorrent client, ordered about by lines on the standard input. Needs the package `libtorrent`.

`--make FILE` writes a torrent of a directory and ends. Otherwise: prints `ready`, then answers
`connect IP...` (dials them, waits until `--peers` are connected), `go AT` (starts to fetch at that moment of the
monotonic clock, which all processes share, and answers when every piece is here and its hash was right) and `stats`.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import libtorrent as lt

PORT = 6881
CONNECT_S_MAX = 30
POLL_S = 0.05
# For peers that are all named to each other; the rest is at libtorrent's defaults.
SETTINGS = {
    "enable_dht": False,
    "enable_lsd": False,
    "enable_upnp": False,
    "enable_natpmp": False,
    # Plain TCP: uTP yields to other traffic, which on a link of one's own only costs.
    "enable_outgoing_utp": False,
    "enable_incoming_utp": False,
    # So that peers which are connected before the start, and want nothing yet, stay connected.
    "close_redundant_connections": False,
}
SHOWN = ["unchoke_slots_limit", "connections_limit", "request_queue_time", "max_out_request_queue",
         "choking_algorithm", "seed_choking_algorithm"]


def make(content, target):
    files = lt.list_files(str(content))
    # Version 1 only: SHA-1 of whole pieces is the least work that libtorrent can be asked for.
    torrent = lt.create_torrent(files, 0, lt.create_torrent.v1_only)
    lt.set_piece_hashes(torrent, str(content.parent))
    target.write_bytes(lt.bencode(torrent.generate()))


def say(**what):
    print(json.dumps(what), flush=True)


class Client:
    def __init__(self, options):
        self.options = options
        alerts = lt.alert.category_t.status_notification | lt.alert.category_t.error_notification
        more = {"listen_interfaces": f"{options.listen}:{PORT}", "alert_mask": alerts}
        self.changed = SETTINGS | {name: int(value) for name, value in (each.split("=") for each in options.set)}
        self.session = lt.session(self.changed | more)
        torrent = lt.add_torrent_params()
        torrent.ti = lt.torrent_info(str(options.torrent))
        torrent.save_path = str(options.dir)
        # A receiver is connected to the others, but asks for nothing until it is told to go.
        torrent.flags = lt.torrent_flags.seed_mode if options.seed else lt.torrent_flags.upload_mode
        self.handle = self.session.add_torrent(torrent)
        self.info = torrent.ti

    def hello(self):
        settings = self.session.get_settings()
        shown = {name: settings[name] for name in [*self.changed, *SHOWN]}
        say(ready=True, version=lt.__version__, pieces=self.info.num_pieces(), piece_bytes=self.info.piece_length(),
            settings=shown)

    def connect(self, addresses):
        until = time.monotonic() + CONNECT_S_MAX
        for address in addresses:
            self.handle.connect_peer((address, PORT))
        while self.connected() < self.options.peers and time.monotonic() < until:
            time.sleep(POLL_S)
        say(connected=self.connected())

    def connected(self):
        quiet = lt.peer_info.connecting | lt.peer_info.handshake
        return sum(not peer.flags & quiet for peer in self.handle.get_peer_info())

    def go(self, at):
        time.sleep(max(0, at - time.monotonic()))
        self.handle.unset_flags(lt.torrent_flags.upload_mode)
        half = None
        while True:
            self.session.wait_for_alert(int(POLL_S * 1000))
            # Finished is when the last piece was hashed and is right.
            for alert in self.session.pop_alerts():
                if isinstance(alert, lt.torrent_finished_alert):
                    now = time.monotonic()
                    return say(half=(half or now) - at, finished=now - at)
                if isinstance(alert, (lt.torrent_error_alert, lt.file_error_alert)):
                    return say(error=alert.message())
            if half is None:
                status = self.handle.status()
                if status.total_wanted_done * 2 >= status.total_wanted:
                    half = time.monotonic()

    def stats(self):
        status = self.handle.status()
        say(payload_sent=status.total_payload_upload, payload_received=status.total_payload_download,
            redundant=status.total_redundant_bytes, failed=status.total_failed_bytes)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--make", type=Path, help="write a torrent of --dir to this file")
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--torrent", type=Path)
    parser.add_argument("--listen")
    parser.add_argument("--seed", action="store_true")
    parser.add_argument("--set", action="append", default=[], help="NAME=NUMBER")
    parser.add_argument("--peers", type=int, default=1)
    options = parser.parse_args()
    if options.make:
        make(options.dir, options.make)
        return
    client = Client(options)
    client.hello()
    for line in sys.stdin:
        order, *rest = line.split()
        if order == "connect":
            client.connect(rest)
        elif order == "go":
            client.go(float(rest[0]))
        elif order == "stats":
            client.stats()


if __name__ == "__main__":
    main()
