"""What the client's tests share."""

import gc
import os
import tempfile
import unittest
from pathlib import Path
from unittest import mock

REF = "test/model:1.0.0"


def open_fds():
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


class Case(unittest.TestCase):
    """A directory to serve, and a check that no descriptor is left open."""

    def setUp(self):
        directory = tempfile.TemporaryDirectory(prefix="weighlock-test-")
        self.addCleanup(directory.cleanup)
        self.root = Path(directory.name)
        environment = mock.patch.dict(os.environ)
        environment.start()
        self.addCleanup(environment.stop)
        os.environ["WEIGHLOCK_CONNECT_PATIENCE"] = "0"
        for name in ("WEIGHLOCK_CLIENT", "WEIGHLOCK_SOCKET", "WEIGHLOCK_DATA_DIR", "XDG_DATA_HOME"):
            os.environ.pop(name, None)

    def put(self, path, data):
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
