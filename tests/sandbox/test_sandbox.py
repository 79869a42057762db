"""The sandbox, attacked: every test runs real code in the real thing."""

import contextlib
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import trueup
from trueup.errors import ConfigError, SandboxUnavailable
from trueup.sandbox import SandboxLimits, SandboxResult, check_available, launcher, run, run_python
from trueup.sandbox.seccomp import CLONE, DENIED, MACHINES, build_filter

PACKAGE = Path(trueup.__file__).parent
ORDINARY_USER = 54321

# Asked of another program: if it may make namespaces and we may not, that is a failure, not a skip.
NAMESPACES = [
    "unshare",
    "--user",
    "--map-root-user",
    "--mount",
    "--pid",
    "--fork",
    "--mount-proc",
    "--net",
    "--ipc",
    "--uts",
    "--cgroup",
    "true",
]
if subprocess.run(NAMESPACES, capture_output=True).returncode != 0:
    pytest.skip("this machine does not allow namespaces", allow_module_level=True)


def run_code(code: str, **limits: Any) -> SandboxResult:
    return run_python(textwrap.dedent(code), limits=SandboxLimits(**limits))


def answers(code: str, **limits: Any) -> list[str]:
    """The lines a program printed, which must have ended well."""
    result = run_code(code, **limits)
    assert result.status == "ok", result
    return result.stdout.splitlines()


def tries(*attempts: str) -> list[str]:
    """Runs each expression inside; its exception's name, or "worked" and the value."""
    lines = answers(f"""
        import ctypes, os, resource, socket
        libc = ctypes.CDLL(None, use_errno=True)
        for attempt in {list(attempts)!r}:
            try:
                print("worked", repr(eval(attempt)))
            except BaseException as error:
                print(type(error).__name__)
        """)
    assert len(lines) == len(attempts)
    return lines


def processes_named(name: str) -> int:
    """Processes of the whole machine; the code inside names itself through /proc/self/comm."""
    count = 0
    for path in Path("/proc").glob("[0-9]*/comm"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            count += path.read_text().strip() == name
    return count


@pytest.fixture
def name() -> str:
    return f"t-{uuid.uuid4().hex[:10]}"  # comm keeps 15 characters


# --- results


def test_a_program_prints_what_it_computes() -> None:
    result = run_python("print(6 * 7)")
    assert (result.status, result.exit_code, result.stdout) == ("ok", 0, "42\n")
    assert result.passed and result.stderr == "" and 0 < result.duration_s < 3


def test_an_exception_is_an_error_with_its_traceback() -> None:
    result = run_python("def f():\n    return 1 / 0\nf()")
    assert (result.status, result.exit_code, result.passed) == ("error", 1, False)
    assert "line 2, in f" in result.stderr and "return 1 / 0" in result.stderr
    assert "ZeroDivisionError" in result.stderr


def test_the_exit_code_is_kept() -> None:
    assert run_python("raise SystemExit(7)").exit_code == 7
    assert run_python("raise SystemExit(0)").status == "ok"


@pytest.mark.parametrize("code", ["x = '\udc80'", "a\x00b", "def", "\ufeffimport nothing"])
def test_a_text_that_is_no_program_is_an_error_and_not_a_crash(code: str) -> None:
    assert run_python(code).status == "error"


def test_a_signal_is_reported_as_killed() -> None:
    result = run_code("import os; os.kill(os.getpid(), 11)")
    assert (result.status, result.exit_code) == ("killed", None)
    assert result.stderr.endswith("sandbox: signal 11\n")


def test_the_standard_library_works_inside() -> None:
    lines = answers("""
        import asyncio, ctypes, datetime, hashlib, multiprocessing, sqlite3, ssl, subprocess, sys
        import tempfile, threading, zoneinfo

        def square(x):
            return x * x

        async def later():
            await asyncio.sleep(0.01)
            return "later"

        if __name__ == "__main__":
            print(asyncio.run(later()))
            print(hashlib.sha256(b"x").hexdigest()[:8])
            print(sqlite3.connect("a.db").execute("select 1").fetchone())
            print(subprocess.run([sys.executable, "-c", "print(5)"], capture_output=True).stdout)
            print(datetime.datetime(2024, 7, 1, tzinfo=zoneinfo.ZoneInfo("Europe/Paris")).tzname())
            thread = threading.Thread(target=print, args=("thread",))
            thread.start(), thread.join()
            with multiprocessing.Pool(2) as pool:
                print(pool.map(square, [1, 2, 3]))
            callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)(square)
            print(callback(4), "\N{SNOWMAN}")
        """)
    assert lines == ["later", "2d711642", "(1,)", r"b'5\n'", "CEST", "thread", "[1, 4, 9]", "16 ☃"]


def test_runs_from_several_threads_do_not_disturb_each_other() -> None:
    results: dict[int, str] = {}

    def one(number: int) -> None:
        results[number] = run_python(f"print({number} ** 2)").stdout

    threads = [threading.Thread(target=one, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {number: f"{number**2}\n" for number in range(6)}


def test_a_limit_that_is_no_limit_is_refused() -> None:
    with pytest.raises(ConfigError, match="timeout_s"):
        SandboxLimits(timeout_s=0)
    with pytest.raises(ConfigError, match="timeout_s"):
        SandboxLimits(timeout_s=float("inf"))
    with pytest.raises(ConfigError, match="whole number"):
        SandboxLimits(memory_mb=0.5)  # type: ignore[arg-type]


# --- time, memory, processes, output


def test_a_sleeping_program_times_out_within_a_second_of_its_limit() -> None:
    began = time.monotonic()
    result = run_code("import time; print('so far'); time.sleep(60)", timeout_s=0.5)
    assert (result.status, result.exit_code, result.stdout) == ("timeout", None, "so far\n")
    assert time.monotonic() - began < 1.5


def test_an_infinite_loop_uses_up_its_cpu_time() -> None:
    result = run_code("while True: pass", cpu_s=1, timeout_s=60)
    assert result.status == "timeout" and "CPU time" in result.stderr
    assert result.duration_s < 50


def test_ignoring_the_cpu_signal_gains_one_second() -> None:
    code = "import signal; signal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass"
    result = run_code(code, cpu_s=1, timeout_s=60)
    assert result.status == "timeout" and "CPU time" in result.stderr


def test_an_infinite_loop_in_another_process_times_out_too(name: str) -> None:
    result = run_code(
        f"""
        import os
        open("/proc/self/comm", "w").write({name!r})
        for _ in range(3):
            if os.fork() == 0:
                os.setsid()
                while True: pass
        os.wait()
        """,
        timeout_s=0.7,
    )
    assert result.status == "timeout"
    assert processes_named(name) == 0


def test_a_fork_bomb_is_contained(name: str) -> None:
    began = time.monotonic()
    result = run_code(
        f"""
        import os
        open("/proc/self/comm", "w").write({name!r})
        while True:
            try:
                os.fork()
            except OSError:
                pass
        """,
        timeout_s=1.0,
        max_processes=12,
    )
    assert result.status == "timeout"
    assert time.monotonic() - began < 3
    assert processes_named(name) == 0


@pytest.mark.parametrize("limit", [3, 16])
def test_as_many_processes_as_allowed_and_not_one_more(limit: int) -> None:
    lines = answers(
        """
        import os, time
        count = 1
        try:
            while count < 100:
                if os.fork() == 0:
                    time.sleep(60)
                count += 1
        except BlockingIOError:
            print(count)
        """,
        max_processes=limit,
    )
    assert lines == [str(limit)]


def test_threads_count_as_processes() -> None:
    lines = answers(
        """
        import os, threading, time
        count = 1
        try:
            while count < 100:
                threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
                count += 1
        except RuntimeError:
            print(count, flush=True)
            os._exit(0)
        """,
        max_processes=5,
    )
    assert lines == ["5"]


def test_ten_gigabytes_are_not_given() -> None:
    result = run_python("x = bytearray(10 << 30)")
    assert result.status == "error" and "MemoryError" in result.stderr


def test_many_processes_together_stay_within_the_memory_of_one(name: str) -> None:
    result = run_code(
        f"""
        import os, time
        open("/proc/self/comm", "w").write({name!r})
        for _ in range(6):
            if os.fork() == 0:
                block = b"x" * (60 << 20)
                time.sleep(60)
        time.sleep(60)
        """,
        memory_mb=200,
        timeout_s=8,
    )
    assert result.status == "killed" and "200 MB" in result.stderr
    assert processes_named(name) == 0


def test_kernel_buffers_cannot_be_grown() -> None:
    [held] = answers("""
        import contextlib, socket
        held, pairs = 0, []
        try:
            while True:
                pairs.append(socket.socketpair())
                for end in pairs[-1]:
                    end.setblocking(False)
                    with contextlib.suppress(PermissionError):
                        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 30)
                    with contextlib.suppress(BlockingIOError):
                        while True:
                            held += end.send(bytes(1 << 16))
        except OSError:
            print(held)
        """)
    assert int(held) < 32 << 20


def test_a_file_over_the_limit_cannot_be_written() -> None:
    result = run_code("open('/tmp/big', 'wb').write(bytes(3 << 20))", max_file_mb=2)
    assert result.status == "error" and "File too large" in result.stderr


def test_many_small_files_fill_the_folder_and_not_the_machine() -> None:
    result = run_code(
        """
        for number in range(100):
            open(f"/tmp/{number}", "wb").write(bytes(1 << 20))
        """,
        max_file_mb=2,
    )
    assert result.status == "error" and "No space left" in result.stderr


def test_printing_for_ever_is_cut_and_ends() -> None:
    code = "import sys\nwhile True: print('x' * 999); print('y' * 999, file=sys.stderr)"
    result = run_code(code, timeout_s=1.0, max_output_bytes=5000)
    assert result.status == "timeout"
    assert len(result.stdout) == 5000 and len(result.stderr) == 5000
    assert result.stdout.startswith("xxx") and result.stderr.startswith("yyy")


def test_printing_too_much_does_not_fail_a_program() -> None:
    result = run_code("print('x' * 500_000); print('done')", max_output_bytes=100)
    assert (result.status, result.stdout) == ("ok", "x" * 100)


def test_orphans_die_with_the_run(name: str) -> None:
    result = run_code(f"""
        import os, time
        open("/proc/self/comm", "w").write({name!r})
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                time.sleep(60)
            os._exit(0)
        print("left one behind")
        """)
    assert (result.status, result.stdout) == ("ok", "left one behind\n")
    assert result.duration_s < 3 and processes_named(name) == 0


def test_the_run_ends_when_its_caller_is_killed(name: str) -> None:
    code = f"open('/proc/self/comm', 'w').write({name!r})\nimport time; time.sleep(60)"
    script = f"""
        from trueup.sandbox import SandboxLimits, run_python
        run_python({code!r}, limits=SandboxLimits(timeout_s=30))
        """
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    caller = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], env=environment)
    assert wait_until(lambda: processes_named(name) == 1)
    caller.kill()
    caller.wait()
    assert wait_until(lambda: processes_named(name) == 0)


def wait_until(condition: Callable[[], bool], timeout_s: float = 8.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


# --- the file system


@pytest.fixture
def host_file() -> Iterator[Path]:
    """A file that everybody on the machine may read, write and delete."""
    folder = Path(tempfile.mkdtemp(prefix="trueup-"))
    folder.chmod(0o777)
    path = folder / "host.txt"
    path.write_text("of the host")
    path.chmod(0o666)
    yield path
    shutil.rmtree(folder)


def test_the_files_of_the_machine_are_invisible(host_file: Path) -> None:
    paths = [
        "/etc/passwd",
        "/etc/shadow",
        "/root/.ssh",
        "/root/.bashrc",
        "/var",
        "/sys",
        "/boot",
        "/usr/bin/env",
        "/bin/sh",
        "/dev/shm/x",
        "/dev/tty",
        "/proc/sys",
        "/proc/keys",
        os.path.expanduser("~/.ssh"),
        str(host_file),
        __file__,
        str(PACKAGE),
    ]
    assert set(tries(*(f"os.stat({path!r})" for path in paths))) == {"FileNotFoundError"}


def test_the_root_folder_holds_only_what_was_planned() -> None:
    inside = set(eval(answers("import os; print(os.listdir('/'))")[0]))
    interpreter = Path(sys.base_prefix).resolve().parts[1]
    assert inside <= {"dev", "etc", "lib", "lib64", "proc", "program.py", "tmp", "usr", interpreter}
    assert answers("import os; print(os.listdir('/tmp'))") == ["[]"]


def test_the_packages_of_the_machine_are_invisible() -> None:
    lines = answers("""
        import glob, importlib.util, sys
        print([importlib.util.find_spec(name) for name in ("trueup", "pip", "pytest")])
        for path in sys.path:
            print(glob.glob(path + "/*-packages/*"))
        """)
    assert set(lines) == {"[None, None, None]", "[]"}


def test_the_environment_and_the_arguments_of_the_host_are_invisible(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOST_SECRET", "hunter2")
    lines = answers("""
        import glob, os
        print(sorted(os.environ))
        for path in sorted(glob.glob("/proc/[0-9]*/environ") + glob.glob("/proc/[0-9]*/cmdline")):
            try:
                print(open(path).read())
            except PermissionError:
                print("closed")
        """)
    assert lines[0] in ("[]", "['LC_CTYPE']")  # the interpreter sets LC_CTYPE itself
    everything = "\n".join(lines)
    assert "hunter2" not in everything and str(PACKAGE) not in everything


def test_nothing_outside_tmp_can_be_written(host_file: Path) -> None:
    library = os.__file__
    attempts = [
        f"open({path!r}, 'w')"
        for path in (
            "/x",
            "/etc/x",
            "/dev/x",
            "/usr/lib/x",
            "/proc/x",
            library,
            library + ".x",
            "/program.py",
        )
    ]
    attempts += [f"os.remove({path!r})" for path in (library, "/program.py", "/dev/null")]
    attempts += [
        "os.chmod('/dev/null', 0)",
        f"os.chmod({library!r}, 0o777)",
        "os.mkdir('/x')",
        "os.rename('/program.py', '/tmp/x')",
        "os.link('/program.py', '/tmp/x')",
        "os.mknod('/tmp/sda', 0o60666, 0x800)",
        "open('/proc/sys/kernel/hostname', 'w')",
        f"os.remove({str(host_file)!r})",
        f"open({str(host_file)!r}, 'w')",
    ]
    allowed = {"OSError", "PermissionError", "FileNotFoundError"}
    assert set(tries(*attempts)) <= allowed
    assert host_file.read_text() == "of the host"


def test_links_lead_nowhere_outside(host_file: Path) -> None:
    lines = answers(f"""
        import os
        os.symlink({str(host_file)!r}, "/tmp/a")
        os.symlink("/proc/1/root" + {str(host_file)!r}, "/tmp/b")
        os.symlink("/proc/self/root/../../../../.." + {str(host_file)!r}, "/tmp/c")
        os.symlink("/proc/1/cwd", "/tmp/d")
        for name in "abcd":
            try:
                print(os.listdir("/tmp/d") if name == "d" else open("/tmp/" + name).read())
            except (FileNotFoundError, PermissionError):
                print("nothing")
        """)
    assert lines == ["nothing"] * 4


def test_files_do_not_survive_into_the_next_run() -> None:
    answers("open('/tmp/left', 'w').write('x'); open('/dev/shm/left2', 'w').write('x')")
    assert answers("import os; print(os.listdir('/tmp'))") == ["[]"]


def test_open_files_of_the_caller_are_not_inherited(host_file: Path) -> None:
    with host_file.open() as secret:
        os.set_inheritable(secret.fileno(), True)
        lines = answers("""
            import os
            print(sorted(int(fd) for fd in os.listdir("/proc/self/fd"))[:3])
            for fd in range(3, 200):
                try:
                    print(fd, os.fstat(fd))
                except OSError:
                    pass
            print(os.read(0, 10), os.readlink("/proc/self/fd/0"))
            """)
    assert lines == ["[0, 1, 2]", "b'' /dev/null"]


# --- the network


def test_a_listener_of_the_host_cannot_be_reached() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        port = server.getsockname()[1]
        lines = tries(
            f"socket.create_connection(('127.0.0.1', {port}), 2)",
            f"socket.create_connection(('localhost', {port}), 2)",
            "socket.create_connection(('1.1.1.1', 53), 2)",
            "socket.getaddrinfo('example.com', 80)",
            "socket.socket(2, 2).sendto(b'x', ('8.8.8.8', 53))",
        )
        assert set(lines) <= {"OSError", "gaierror"}
        with pytest.raises(BlockingIOError):
            server.accept()


def test_abstract_sockets_of_the_host_cannot_be_reached(name: str) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("\0" + name)
        server.listen()
        assert tries(f"socket.socket(socket.AF_UNIX).connect('\\0{name}')") == [
            "ConnectionRefusedError"
        ]


def test_there_is_no_interface_that_is_up_and_no_way_around_the_internet_families() -> None:
    lines = tries(
        "[open('/sys/class/net')]",
        "socket.socket(socket.AF_VSOCK)",
        "socket.socket(socket.AF_NETLINK, 3, 0)",
        "socket.socket(socket.AF_PACKET, 3)",
        "socket.socket(38, 5)",
        "socket.socket(2, 3, 1)",
    )
    assert "worked" not in " ".join(lines)
    assert tries(
        "socket.create_server(('127.0.0.1', 0)).getsockname() and "
        "socket.create_connection(('127.0.0.1', 1), 1)"
    ) == ["OSError"]


# --- powers


def test_the_program_has_no_capability_and_cannot_gain_one() -> None:
    lines = answers("print(open('/proc/self/status').read())")
    status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    for field in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[field], 16) == 0, field
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert status["Uid"].split() == status["Gid"].split() == ["65534"] * 4


def test_the_kernel_refuses_what_only_power_allows() -> None:
    attempts = [
        "os.setuid(0)",
        "os.setgid(0)",
        "os.setgroups([0])",
        "os.chroot('/tmp')",
        "socket.sethostname('x')",
        "os.nice(-5)",
        "os.sched_setscheduler(0, 1, os.sched_param(1))",
        "os.write(os.open('/proc/self/uid_map', os.O_WRONLY), b'0 0 1')",
        "os.write(os.open('/proc/self/oom_score_adj', os.O_WRONLY), b'-1000')",
    ]
    assert "worked" not in " ".join(tries(*attempts))
    calls = [
        "libc.unshare(0x10000000)",
        "libc.unshare(0x20000)",
        "libc.setns(0, 0)",
        "libc.mount(b'x', b'/tmp', b'tmpfs', 0, None)",
        "libc.umount2(b'/tmp', 2)",
        "libc.ptrace(16, os.getppid(), 0, 0)",
        "libc.shmget(0, 4096, 0o1600)",
        "libc.memfd_create(b'x', 0)",
        "libc.syscall(9999)",
        "libc.klogctl(3, b' ' * 9, 9)",
    ]
    assert set(tries(*calls)) == {"worked -1"}


def test_every_call_of_the_list_is_refused() -> None:
    column = MACHINES[platform.machine()].column
    refused = {name: numbers[column] for name, numbers in DENIED.items()}
    lines = answers(f"""
        import ctypes
        libc = ctypes.CDLL(None, use_errno=True)
        for name, number in {refused!r}.items():
            ctypes.set_errno(0)
            if libc.syscall(number, 0, 0, 0, 0, 0) != -1 or ctypes.get_errno() != 1:
                print(name)
        print(libc.syscall({CLONE[column]}, 0x10000011, 0, 0, 0, 0), ctypes.get_errno())
        """)
    assert lines == ["-1 1"]


def test_the_watcher_inside_cannot_be_entered_or_stopped() -> None:
    closed = [
        "os.readlink('/proc/1/exe')",
        "open('/proc/1/exe', 'rb')",
        "open('/proc/1/mem')",
        "os.listdir('/proc/1/fd')",
        "os.listdir('/proc/1/root')",
        "open('/proc/1/environ')",
        "os.listdir('/proc/1/map_files')",
        "open('/proc/1/oom_score_adj', 'w')",
    ]
    assert set(tries(*closed)) == {"PermissionError"}
    result = run_code(
        """
        import os, signal, time
        for number in set(signal.Signals) - {signal.SIGKILL}:
            os.kill(1, number)
        os.kill(1, signal.SIGKILL)
        time.sleep(60)
        """,
        timeout_s=0.7,
    )
    assert result.status == "timeout"


def test_the_watcher_inside_cannot_be_starved() -> None:
    attempts = [
        "resource.prlimit(1, resource.RLIMIT_NOFILE, (0, 0))",
        "resource.prlimit(1, resource.RLIMIT_CPU, (0, 0))",
        "os.setpriority(os.PRIO_PROCESS, 1, 19)",
        "os.sched_setaffinity(1, {0})",
        "os.sched_setscheduler(1, os.SCHED_IDLE, os.sched_param(0))",
    ]
    assert set(tries(*attempts)) == {"PermissionError"}
    assert tries("resource.setrlimit(resource.RLIMIT_NOFILE, (9, 9))") == ["worked None"]


def test_processes_of_the_host_can_neither_be_seen_nor_signalled() -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as victim:
        lines = answers(f"""
            import os, signal
            print([int(name) for name in os.listdir("/proc") if name.isdigit()])
            for pid in ({victim.pid}, {os.getpid()}, {os.getppid()}, -{os.getpgid(0)}):
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    print("no such process")
            print(os.getppid(), os.getpgid(0), os.getsid(0))
            try:
                os.kill(-1, signal.SIGKILL)
            except ProcessLookupError:
                print("alone")
            """)
        assert lines[0] == "[1, 2]"
        assert lines[1:] == ["no such process"] * 4 + ["1 2 2", "alone"]
        assert victim.poll() is None
        victim.send_signal(signal.SIGTERM)


def test_a_crash_leaves_no_core(host_file: Path) -> None:
    result = run_code("""
        import ctypes, resource
        print(resource.getrlimit(resource.RLIMIT_CORE))
        ctypes.string_at(0)
        """)
    assert (result.status, result.stdout) == ("killed", "(1, 1)\n")
    assert not list(Path.cwd().glob("core*"))


# --- no sandbox, no run


@pytest.fixture
def unproven() -> Iterator[None]:
    """Forget that the sandbox works here, and afterwards what the test made it believe."""
    run._probe.cache_clear()
    yield
    run._probe.cache_clear()


def test_a_machine_that_refuses_namespaces_is_refused() -> None:
    script = """
        from trueup.errors import SandboxUnavailable
        from trueup.sandbox import check_available, run_python
        for attempt in (check_available, lambda: run_python("print('ran')")):
            try:
                attempt()
            except SandboxUnavailable as error:
                print(error.got, "|", error)
        """
    forbid = 'echo 0 > /proc/sys/user/max_mnt_namespaces && exec "$@"'
    command = ["unshare", "--user", "--map-root-user", "sh", "-c", forbid, "sh", sys.executable]
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run(
        [*command, "-c", textwrap.dedent(script)], env=environment, capture_output=True, text=True
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 2 and "ran" not in lines, done
    assert lines[0] == lines[1]
    for part in ("unshare: No space left", "not run", "Expected Linux", "Next: run as root"):
        assert part in lines[0]


# From here on the launcher is replaced, because a launcher cannot be made to fail otherwise.


@pytest.mark.parametrize(
    "text",
    [
        "",
        "import os; os._exit(3)",
        "raise RuntimeError('broken')",
        "import os; os.kill(os.getpid(), 9)",
    ],
)
def test_a_launcher_that_says_nothing_is_a_refusal(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unproven: None
) -> None:
    monkeypatch.setattr(run, "LAUNCHER", tmp_path / "launcher.py")
    run.LAUNCHER.write_text(text)
    with pytest.raises(SandboxUnavailable):
        run_python("print('ran')")


def test_a_launcher_that_hangs_is_a_refusal_and_is_killed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unproven: None
) -> None:
    monkeypatch.setattr(run, "LAUNCHER", tmp_path / "launcher.py")
    monkeypatch.setattr(run, "SETUP_TIMEOUT_S", 0.5)
    run.LAUNCHER.write_text(
        f"open('/proc/self/comm', 'w').write({name!r})\nimport time; time.sleep(60)"
    )
    with pytest.raises(SandboxUnavailable, match="in time"):
        check_available()
    assert processes_named(name) == 0


def test_a_watch_that_breaks_ends_the_run_as_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = Path(launcher.__file__).read_text()
    changed = text.replace("    total = 0\n", "    total = 1 / 0\n")
    assert changed != text
    check_available()  # the probe is kept; with the broken launcher it would fail first
    monkeypatch.setattr(run, "LAUNCHER", tmp_path / "launcher.py")
    run.LAUNCHER.write_text(changed)
    result = run_code("import time; time.sleep(60)", timeout_s=5)
    assert result.status == "killed" and "watch" in result.stderr


@pytest.mark.parametrize(
    "step",
    [
        "drop_capabilities()",
        "build_root(plan)",
        "leave_root(gate)",
        'install_filter(bytes.fromhex(plan["filter"]))',
    ],
)
def test_leaving_out_any_step_is_noticed(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unproven: None
) -> None:
    if step.startswith("leave_root") and os.geteuid() != 0:
        pytest.skip("an ordinary user has no root to leave")
    text = Path(launcher.__file__).read_text()
    changed = text.replace(f"    {step}\n", "    pass\n", 1)
    assert changed != text
    monkeypatch.setattr(run, "LAUNCHER", tmp_path / "launcher.py")
    run.LAUNCHER.write_text(changed)
    with pytest.raises(SandboxUnavailable):
        run_python("print('ran')")


def test_an_unknown_processor_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "pdp11")
    with pytest.raises(SandboxUnavailable, match="pdp11"):
        build_filter()


# --- an ordinary user


@pytest.fixture
def readable_package() -> Iterator[Path]:
    """The sandbox where every user can read it."""
    folder = Path(tempfile.mkdtemp(prefix="trueup-"))
    copy = folder / "trueup"
    copy.mkdir()
    (copy / "__init__.py").touch()
    shutil.copy(PACKAGE / "errors.py", copy)
    shutil.copytree(PACKAGE / "sandbox", copy / "sandbox")
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def interpreter_for_others() -> str:
    """A Python new enough that a user other than root can start, or skip."""
    check = "import ctypes, sys; sys.exit(sys.version_info < (3, 11))"
    for path in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"):
        try:
            done = subprocess.run([path, "-I", "-c", check], user=ORDINARY_USER, extra_groups=[])
        except OSError:
            continue
        if done.returncode == 0:
            return path
    pytest.skip("no Python 3.11 that an ordinary user may start")


def test_an_ordinary_user_gets_the_same_sandbox(
    readable_package: Path, host_file: Path, name: str
) -> None:
    if os.geteuid() != 0:
        pytest.skip("every other test was run by an ordinary user already")
    attack = f"""
        import os, socket
        open("/proc/self/comm", "w").write({name!r})
        def attempt(action):
            try:
                action()
            except OSError as error:
                return type(error).__name__
            return "worked"
        status = dict(line[:-1].split(":\\t", 1) for line in open("/proc/self/status")
                      if ":\\t" in line)
        print([status[key] for key in ("CapEff", "CapBnd", "NoNewPrivs", "Seccomp", "Uid")])
        print(sorted(os.listdir("/tmp")), attempt(lambda: open({str(host_file)!r}, "w")))
        print(attempt(lambda: open(os.__file__, "w")), attempt(lambda: open("/x", "w")))
        print(attempt(lambda: open("/proc/1/exe", "rb")), attempt(lambda: os.listdir("/home")))
        print(attempt(lambda: socket.create_connection(("127.0.0.1", 22), 1)))
        count = 1
        try:
            while count < 100:
                if os.fork() == 0:
                    while True: pass
                count += 1
        except BlockingIOError:
            print(count)
        """
    script = f"""
        import json
        from trueup.sandbox import SandboxLimits, run_python
        result = run_python({textwrap.dedent(attack)!r}, limits=SandboxLimits(max_processes=6))
        print(json.dumps([result.status, result.stdout, result.stderr]))
        """
    done = subprocess.run(
        [interpreter_for_others(), "-c", textwrap.dedent(script)],
        user=ORDINARY_USER,
        group=ORDINARY_USER,
        extra_groups=[],
        cwd="/",
        env={"PYTHONPATH": str(readable_package)},
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert done.returncode == 0, done.stderr
    status, stdout, stderr = json.loads(done.stdout)
    assert status == "ok", stderr
    zero = "0" * 16
    assert stdout.splitlines() == [
        str([zero, zero, "1", "2", "\t".join(["65534"] * 4)]),
        "[] FileNotFoundError",
        "OSError OSError",
        "PermissionError FileNotFoundError",
        "OSError",
        "6",
    ]
    assert host_file.read_text() == "of the host" and processes_named(name) == 0
