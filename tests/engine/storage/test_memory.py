"""What is special about the memory storage: it never leaves its process."""

from __future__ import annotations

import gc
import os
import pickle
import subprocess
import sys
from collections.abc import Callable

import pytest

from icechunk_engine.errors import ErrorKind, StorageError
from icechunk_engine.storage import MemoryStorage, in_memory_storage


def test_each_storage_is_its_own_place() -> None:
    first, second = in_memory_storage(), in_memory_storage()
    first.put("a", b"1")
    assert second.info("a") is None
    assert first != second
    assert not first.is_remote


def test_pickles_are_the_same_object() -> None:
    storage = MemoryStorage()
    assert pickle.loads(pickle.dumps(storage)) is storage


def test_names_are_shared_in_the_process() -> None:
    MemoryStorage.named("shared").put("a", b"1")
    gc.collect()
    assert MemoryStorage.named("shared").get("a") == b"1"
    assert MemoryStorage.named("shared").identity == "memory://shared"
    assert MemoryStorage.named("other") != MemoryStorage.named("shared")


@pytest.mark.parametrize("make", [MemoryStorage, lambda: MemoryStorage.named("elsewhere")])
def test_unpickling_elsewhere_is_refused(make: Callable[[], MemoryStorage]) -> None:
    storage = make()
    code = (
        "import pickle, sys\n"
        "from icechunk_engine.errors import StorageError\n"
        "try:\n"
        "    pickle.loads(bytes.fromhex(sys.argv[1]))\n"
        "except StorageError as error:\n"
        "    print(error.kind, error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, pickle.dumps(storage).hex()],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stdout.startswith("storage-config")
    assert "one process only" in done.stdout
    assert storage.identity in done.stdout


def test_a_dead_storage_cannot_be_unpickled() -> None:
    pickled = pickle.dumps(MemoryStorage())
    gc.collect()
    with pytest.raises(StorageError, match="one process only") as caught:
        pickle.loads(pickled)
    assert caught.value.kind == ErrorKind.STORAGE_CONFIG


def test_a_forked_child_may_read_but_not_write() -> None:
    code = (
        "import os\n"
        "from icechunk_engine.errors import StorageError\n"
        "from icechunk_engine.storage import MemoryStorage\n"
        "storage = MemoryStorage()\n"
        "storage.put('a', b'1')\n"
        "with storage._lock:\n"  # as if another thread held it
        "    pid = os.fork()\n"
        "    if pid == 0:\n"
        "        assert storage.get('a') == b'1'\n"
        "        assert [info.key for info in storage.list()] == ['a']\n"
        "        for write in (lambda: storage.put('a', b'2'), lambda: storage.delete(['a'])):\n"
        "            try:\n"
        "                write()\n"
        "            except StorageError as error:\n"
        "                assert 'one process only' in str(error)\n"
        "            else:\n"
        "                os._exit(1)\n"
        "        MemoryStorage().put('b', b'1')\n"
        "        os._exit(0)\n"
        "assert os.waitpid(pid, 0)[1] == 0\n"
        "storage.put('a', b'3')\n"
        "print('fine')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stdout == "fine\n", done.stderr
