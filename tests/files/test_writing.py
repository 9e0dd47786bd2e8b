"""The one writer of files: whole or not at all, through links, to pipes, with the owner's permissions."""

import os
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import bpgpu
from bpgpu.files.writing import atomic_file

posix = pytest.mark.skipif(os.name != "posix", reason="POSIX only")


def write(path, content=b"new"):
    with atomic_file(path) as file:
        file.write(content)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def target(tmp_path):
    return tmp_path / "file"


@pytest.mark.parametrize("old", [None, b"old"])
@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt, SystemExit])
def test_an_error_in_the_block_leaves_no_trace(target, old, error):
    if old is not None:
        target.write_bytes(old)
    with pytest.raises(error), atomic_file(target) as file:
        file.write(b"half")
        file.flush()
        raise error
    assert names(target.parent) == ([] if old is None else ["file"])
    assert old is None or target.read_bytes() == old


def test_the_old_file_is_there_until_the_end(target):
    target.write_bytes(b"old")
    with atomic_file(str(target)) as file:
        file.write(b"n" * 100_000)
        file.flush()
        assert target.read_bytes() == b"old"
    assert target.read_bytes() == b"n" * 100_000
    assert names(target.parent) == ["file"]


def test_a_wrapper_that_closes_the_file_is_harmless(target):
    with atomic_file(target) as file:
        file.write(b"new")
        file.close()
    assert target.read_bytes() == b"new"


def test_the_working_directory_may_change_in_the_block(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    with atomic_file("file") as file:
        os.chdir("elsewhere")
        file.write(b"new")
    assert (tmp_path / "file").read_bytes() == b"new"


# Links


@posix
@pytest.mark.parametrize("exists", [True, False], ids=["to a file", "to nothing"])
@pytest.mark.parametrize("relative", [True, False], ids=["relative", "absolute"])
def test_links_stay(tmp_path, exists, relative):
    """A chain of two links, in another folder than the file."""
    real, link = tmp_path / "real" / "file", tmp_path / "links" / "link"
    real.parent.mkdir()
    link.parent.mkdir()
    if exists:
        real.write_bytes(b"old")
        real.chmod(0o640)
    link.with_name("next").symlink_to("../real/file" if relative else real)
    link.symlink_to("next" if relative else link.with_name("next"))
    with pytest.raises(ZeroDivisionError), atomic_file(link) as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert real.exists() == exists
    write(link)
    assert link.is_symlink() and link.with_name("next").is_symlink()
    assert real.read_bytes() == b"new"
    assert not exists or stat.S_IMODE(real.stat().st_mode) == 0o640
    assert (names(real.parent), names(link.parent)) == (["file"], ["link", "next"])


@posix
def test_folders_that_are_links(tmp_path):
    """``..`` after a link is the parent of what it points to."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "link").symlink_to("a/b")
    write(tmp_path / "link" / ".." / "file")
    assert (tmp_path / "a" / "file").read_bytes() == b"new"


# What cannot be replaced


@posix
def test_a_pipe_is_written_to(target):
    os.mkfifo(target)
    got = []
    reader = threading.Thread(target=lambda: got.append(target.read_bytes()))
    reader.start()
    write(target, b"x" * 1_000_000)
    reader.join()
    assert got == [b"x" * 1_000_000]
    assert stat.S_ISFIFO(target.stat().st_mode)


@posix
def test_devices_stay_devices():
    write("/dev/null")
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has it")
def test_a_full_device_is_named():
    with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
        write("/dev/full")


TO_STDOUT = "from bpgpu.files.writing import atomic_file\nwith atomic_file({!r}) as file: file.write(b'b')"


@posix
@pytest.mark.parametrize("path", ["/dev/stdout", "/dev/fd/1"])
def test_standard_output_is_appended_to(tmp_path, path):
    """A file that the shell has opened is neither replaced nor cut: what it has of other commands stays."""
    log = tmp_path / "log"
    with log.open("wb") as file:
        file.write(b"a")
        file.flush()
        subprocess.run([sys.executable, "-c", TO_STDOUT.format(path)], check=True, stdout=file)
        file.write(b"c")
    assert log.read_bytes() == b"abc"
    through_a_pipe = subprocess.run([sys.executable, "-c", TO_STDOUT.format(path)], check=True, capture_output=True)
    assert through_a_pipe.stdout == b"b"


@posix
def test_a_socket_is_refused(tmp_path, monkeypatch):
    import socket

    monkeypatch.chdir(tmp_path)  # because the path of a socket must be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s")
        with pytest.raises(OSError, match="'s'"):
            write("s")
    assert stat.S_ISSOCK(Path("s").stat().st_mode)


# Errors


@posix
@pytest.mark.parametrize("path", ["missing/file", ".", "x" * 300, "file/below", "loop", "loop/file"])
def test_errors_name_the_path(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    write("file", b"old")
    Path("loop").symlink_to("loop")
    with pytest.raises(OSError) as caught:
        write(path)
    assert caught.value.filename == path
    assert names(tmp_path) == ["file", "loop"]


@posix
def test_the_longest_name_that_a_file_may_have(tmp_path):
    write(tmp_path / ("n" * 255))
    write(tmp_path / ("n" * 255), b"newer")
    assert (tmp_path / ("n" * 255)).read_bytes() == b"newer"


def test_a_full_disk_names_the_path(target, monkeypatch):
    def full(handle):
        raise OSError(28, "No space left on device")

    target.write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*file'"):
        write(target)
    assert names(target.parent) == ["file"] and target.read_bytes() == b"old"


def test_an_error_about_another_file_is_left_as_it_is(target):
    with pytest.raises(FileNotFoundError, match="another"), atomic_file(target):
        Path("another").read_bytes()
    with pytest.raises(OSError, match=r"^no errno$"), atomic_file(target):
        raise OSError("no errno")


@posix
@pytest.mark.skipif(hasattr(os, "getuid") and os.getuid() == 0, reason="root may write everywhere")
def test_a_file_that_may_not_be_written_is_not_replaced(target):
    target.write_bytes(b"old")
    target.chmod(0o444)
    with pytest.raises(PermissionError, match="file"):
        write(target)
    assert target.read_bytes() == b"old"


# Permissions


@posix
@pytest.mark.parametrize("umask", [0o022, 0o077, 0o027])
def test_permissions(target, umask):
    before = os.umask(umask)
    try:
        write(target)
        assert stat.S_IMODE(target.stat().st_mode) == 0o666 & ~umask
        for mode in (0o604, 0o600, 0o777):
            target.chmod(mode)
            write(target)
            assert stat.S_IMODE(target.stat().st_mode) == mode
    finally:
        os.umask(before)


@posix
def test_the_umask_is_never_set(make_net, target, monkeypatch):
    """It is the whole process's: files of other threads would be open to all for a moment."""
    monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("the umask was set"))
    make_net().save(target)


@posix
def test_what_replaces_a_private_file_is_private_from_the_start(target):
    target.write_bytes(b"old")
    target.chmod(0o600)
    with atomic_file(target):
        assert {stat.S_IMODE(path.stat().st_mode) for path in target.parent.iterdir()} == {0o600}


# Processes that end in the middle

HALF = """
import os, sys, time
from bpgpu.files.writing import atomic_file
with atomic_file({path!r}) as file:
    file.write(b"half")
    file.flush()
    print("written", flush=True)
    time.sleep(60)
"""


def begin(path):
    """Return a process that has written half of a file."""
    process = subprocess.Popen([sys.executable, "-c", HALF.format(path=str(path))], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"written\n"
    return process


@posix
def test_what_killed_processes_leave_is_deleted_by_the_next(target):
    other = target.with_name("other")
    write(target, b"old")
    running, killed, of_another = begin(target), [begin(target), begin(target)], begin(other)
    try:
        for process in (*killed, of_another):
            process.send_signal(signal.SIGKILL)
            process.wait(30)
            process.stdout.close()
        assert len(names(target.parent)) == 5
        write(target)
        left = names(target.parent)
        assert len(left) == 3, "that of the running process and that of the other file stay"
        assert target.read_bytes() == b"new"
    finally:
        running.terminate()
        running.wait(30)
        running.stdout.close()
    write(target)
    write(other)
    assert names(target.parent) == ["file", "other"]


@posix
def test_many_writers_of_one_file(target):
    """None deletes the temporary file of another, and a reader always finds one whole file."""
    write(target, b"0" * 50_000)
    failed, ended = [], threading.Event()

    def write_often(content):
        try:
            for _ in range(60):
                write(target, content * 50_000)
        except BaseException as error:
            failed.append(error)

    def read_often():
        while not ended.is_set():
            content = target.read_bytes()
            if len(content) != 50_000 or len(set(content)) != 1:
                failed.append(content)

    reader = threading.Thread(target=read_often)
    writers = [threading.Thread(target=write_often, args=(b"%d" % i,)) for i in range(4)]
    for thread in (reader, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    ended.set()
    reader.join()
    assert not failed
    assert names(target.parent) == ["file"]


@posix
def test_a_temporary_file_that_is_taken_for_stale_before_it_is_locked(target, monkeypatch):
    """Another process may see it in between: then another is made."""
    from bpgpu.files import writing

    lock, taken = writing._lock, []

    def late(handle, *, wait):
        if wait and not taken:
            taken.extend(target.parent.iterdir())
            taken[0].unlink()
        lock(handle, wait=wait)

    monkeypatch.setattr(writing, "_lock", late)
    write(target)
    assert taken and names(target.parent) == ["file"] and target.read_bytes() == b"new"


# Little memory

LITTLE_MEMORY = """
import resource
import numpy as np
import bpgpu
net = bpgpu.MLP((2000, 6000, 1), "tanh", "squared_error", dtype="float64", init="zeros", backend="numpy")
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**26,) * 2)  # 64 MiB more, for a file of 96
net.save({path!r})
"""


@pytest.mark.skipif(sys.platform != "linux", reason="its /proc")
def test_a_file_larger_than_the_free_memory(target):
    started = time.perf_counter()
    run = subprocess.run([sys.executable, "-c", LITTLE_MEMORY.format(path=str(target))], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert time.perf_counter() - started < 60
    assert bpgpu.MLP.load(target, backend="numpy").architecture.sizes == (2000, 6000, 1)
