"""Ceph with its object gateway: S3 that distributes, checks signatures and keeps conditions, on one machine.

Run as a program, with the name of a bucket to make and a file: it sets a cluster up in a temporary directory and in
memory (one monitor, one disk, one gateway), prints the gateway's port, and serves as long as any process has the file
locked, or until it is ended. The kernel unlocks for processes that die, so that the cluster never outlives its users.
"""

from __future__ import annotations

import fcntl
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path

ACCESS_KEY, SECRET_KEY = "key", "secret"
PROGRAMS = ("ceph", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin", "setpriv")
_START_S = 90

# Without `ms mon client mode = crc` nothing may talk to the monitor without keys, and without `tcp_nodelay` each
# answer takes 44 ms. One disk is not a cluster to Ceph unless it is told that one copy will do.
# The monitor collects changes for a second before it agrees on them, and each of the gateway's pools is a change.
_CONFIGURATION = """
[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{monitor}/0]
public addr = 127.0.0.1
cluster addr = 127.0.0.1
run dir = {place}
admin socket =
log file =
mon cluster log file =
log to stderr = false
err to stderr = true
ms bind msgr1 = false
ms mon client mode = crc
ms client mode = crc
auth cluster required = none
auth service required = none
auth client required = none
auth allow insecure global id reclaim = true
mon allow pool size one = true
mon max pg per osd = 1000
mon data avail crit = 1
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
osd objectstore = memstore
osd class load list = *
memstore device bytes = 1073741824

[mon]
paxos propose interval = 0.05
mon data = {place}/mon

[osd]
osd data = {place}/osd

[client]
rgw data = {place}/rgw
rgw frontends = beast endpoint=127.0.0.1:{gateway} tcp_nodelay=1
"""


def free_ports(n: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(n)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


class Cluster:
    """The programs of a cluster, and their files in a directory."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.monitor, self.gateway = free_ports(2)
        self._daemons: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Return when the gateway answers and knows its user."""
        fsid, disk = str(uuid.uuid4()), str(uuid.uuid4())
        for name in ("mon", "osd", "rgw"):
            (self.place / name).mkdir()
        (self.place / "ceph.conf").write_text(
            _CONFIGURATION.format(fsid=fsid, monitor=self.monitor, gateway=self.gateway, place=self.place)
        )
        monmap = str(self.place / "monmap")
        self._run("monmaptool", "--create", "--fsid", fsid, "--addv", "a", f"[v2:127.0.0.1:{self.monitor}]", monmap)
        self._run("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap)
        self._serve("ceph-mon", "-i", "a")
        self._run("ceph", "osd", "new", disk)
        self._run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", disk)
        self._serve("ceph-osd", "-i", "0")
        self._wait("the disk", lambda: b" 1 up" in self._run("ceph", "osd", "stat"))
        self._serve("radosgw", "-n", "client.rgw0")
        keys = (f"--access-key={ACCESS_KEY}", f"--secret-key={SECRET_KEY}")
        self._run("radosgw-admin", "-n", "client.rgw0", "user", "create", "--uid=test", "--display-name=test", *keys)
        self._wait("the gateway", self._answers)

    def end(self) -> None:
        for daemon in reversed(self._daemons):
            daemon.kill()  # in memory, there is nothing to bring to safety
            daemon.wait()

    def make_bucket(self, name: str) -> None:
        import boto3

        client = boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{self.gateway}",
            region_name="us-east-1",
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
        )
        client.create_bucket(Bucket=name)

    def _run(self, program: str, *arguments: str) -> bytes:
        done = subprocess.run(self._command(program, *arguments), capture_output=True, timeout=_START_S, check=False)
        if done.returncode:
            raise SystemExit(f"{program} {' '.join(arguments)}: {done.stderr.decode()}")
        return done.stdout

    def _serve(self, program: str, *arguments: str) -> None:
        self._daemons.append(subprocess.Popen(self._command(program, "-f", *arguments)))

    def _command(self, program: str, *arguments: str) -> list[str]:
        configured = [] if program == "monmaptool" else ["-c", str(self.place / "ceph.conf")]
        # Whatever becomes of this process, its children go with it.
        return ["setpriv", "--pdeathsig", "KILL", program, *configured, *arguments]

    def _wait(self, what: str, is_there: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _START_S
        while not is_there():
            if ended := [daemon.args for daemon in self._daemons if daemon.poll() is not None]:
                raise SystemExit(f"ended: {ended}")
            if time.monotonic() > deadline:
                raise SystemExit(f"{what} of Ceph does not come up")
            time.sleep(0.05)

    def _answers(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.gateway)).close()
        except ConnectionRefusedError:
            return False
        return True


def main() -> None:
    bucket, users = sys.argv[1:]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    with tempfile.TemporaryDirectory(prefix="ceph-", ignore_cleanup_errors=True) as place, open(users, "r+") as used:
        cluster = Cluster(Path(place))
        try:
            cluster.start()
            cluster.make_bucket(bucket)
            print(cluster.gateway, flush=True)
            fcntl.flock(used, fcntl.LOCK_EX)  # when the last user let go
            used.truncate()  # who comes now starts another
        finally:
            cluster.end()


if __name__ == "__main__":
    main()
