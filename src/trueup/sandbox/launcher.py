"""Builds the sandbox from inside, then becomes the program. A script, not a module.

`run.py` feeds this file to a bare interpreter, so it stands alone: standard library only, nothing
of trueup. It takes three processes, because a process cannot move itself into a new pid namespace:

    guard     outside; makes the namespace, waits for init, ends with the caller
    init      process 1 inside: builds the root, gives up every power, then keeps watch over time
              and memory. When it ends, the kernel kills whatever is left inside.
    program   process 2: limits, then exec of a fresh interpreter on the generated code

Init may not be touched by the program, which has the same user id. It is not dumpable, so
/proc/1/exe (a door to the host's interpreter), /proc/1/fd and /proc/1/mem are closed; as process 1
it ignores signals from inside; whatever else is done to it ends the run.

Started by root or by an ordinary user, the result is the same: one user id is mapped, `NOBODY`, and
no process holds a capability. For root it stands for nobody outside, too: the kernel does not count
the processes of the real root, so a fork bomb would not stop. For a user it stands for that user.

The promise: fail closed. The first step that does not work is written to the report pipe as
"refused" and nothing is run. The report pipe is not inherited by the program.
"""

import contextlib
import ctypes
import json
import os
import resource
import signal
import sys
import time
from typing import Any, NoReturn

NOBODY = 65534
STAGING = "/tmp"  # only covered inside the new mount namespace
PROGRAM = "/program.py"
REFUSED = 125  # exit code; the report pipe says why
WATCH_EVERY_S = 0.05

CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS = 0x00020000, 0x02000000, 0x04000000
CLONE_NEWIPC, CLONE_NEWUSER = 0x08000000, 0x10000000
CLONE_NEWPID, CLONE_NEWNET = 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_BIND, MS_REC, MS_PRIVATE, MNT_DETACH = 1 << 12, 1 << 14, 1 << 18, 2
SYS_MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE = 442, -100, 0x8000  # the number is the same everywhere
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_CAPBSET_DROP = 1, 4, 22, 24
PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL = 38, 47, 4
SECCOMP_MODE_FILTER = 2
CAPABILITY_VERSION_3 = 0x20080522

libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Be the guard: make the pid namespace, start init in it, wait."""
    plan_fd, report_fd = int(sys.argv[1]), int(sys.argv[2])
    os.set_inheritable(report_fd, False)
    os.umask(0o022)
    # Where the caller ignores it, the kernel would reap our children and keep their exit codes.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with open(plan_fd, encoding="ascii") as file:
        plan = json.load(file)
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")  # if the machine runs out of memory, let it be us
        as_root = os.geteuid() == 0
        enter_pid_namespace(as_root)
        check("prctl", libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL))
        init, gate = fork_init(plan, report_fd, as_root)
        if as_root and os.read(gate.asked, 1):
            map_user(str(init), NOBODY, NOBODY)
            os.write(gate.answer, b"1")
    except OSError as error:
        refuse(report_fd, error)
    os.waitpid(init, 0)


def enter_pid_namespace(as_root: bool) -> None:
    """Make the next fork process 1. A user needs a user namespace first, to be allowed that."""
    if as_root:
        check("unshare pid", libc.unshare(CLONE_NEWPID))
        return
    user, group = os.geteuid(), os.getegid()
    check("unshare user", libc.unshare(CLONE_NEWUSER | CLONE_NEWPID))
    map_user("self", user, group)


class Gate:
    """Two pipes, for the one thing init cannot do as root: map its own user namespace."""

    def __init__(self) -> None:
        self.asked, self.ask = os.pipe()
        self.answered, self.answer = os.pipe()

    def keep(self, *mine: int) -> None:
        """Close the other side's ends, so that the death of one is the end of file of the other."""
        for fd in {self.asked, self.ask, self.answered, self.answer} - set(mine):
            os.close(fd)


def fork_init(plan: dict[str, Any], report_fd: int, as_root: bool) -> tuple[int, Gate]:
    """Start process 1, which never comes back from here."""
    gate = Gate()
    init = os.fork()
    if init == 0:
        gate.keep(gate.ask, gate.answered)
        try:
            run_init(plan, report_fd, gate, as_root)
        except BaseException as error:
            refuse(report_fd, error)
    gate.keep(gate.asked, gate.answer)
    return init, gate


def run_init(plan: dict[str, Any], report_fd: int, gate: Gate, as_root: bool) -> NoReturn:
    """Process 1. The order is forced: mounts need the powers that the later steps give up."""
    check("prctl", libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL))
    spaces = CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP
    check("unshare", libc.unshare(spaces))
    check("sethostname", libc.sethostname(b"sandbox", 7))
    build_root(plan)
    if as_root:
        leave_root(gate)
    drop_capabilities()
    install_filter(bytes.fromhex(plan["filter"]))
    check_sealed()

    # SIGCHLD is blocked so that it waits for the watch; SIGINT would raise in Python's handler.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    report(report_fd, event="started")
    program = os.fork()
    if program == 0:
        try:
            become_program(plan, helpers=1 if as_root else 2)
        except BaseException as error:
            refuse(report_fd, error)
    try:
        ended = watch(program, plan["limits"])
    except Exception:  # the program may shrink our limits; that ends its run and nothing else
        ended = {"why": "watch"}
    report(report_fd, event="ended", **ended)
    os._exit(0)


# --- the private root


def build_root(plan: dict[str, Any]) -> None:
    """Replace the machine's file system by a read-only one that holds what the plan names."""
    mount(None, "/", None, MS_REC | MS_PRIVATE)
    # Opened before STAGING is covered: the interpreter may be installed below it.
    sources = {path: os.open(path, os.O_PATH) for path in plan["unreadable"] + plan["devices"]}
    code = plan["code"].encode("utf-8", "surrogatepass")
    mount_tmpfs(STAGING, f"size={len(code) + (1 << 20)},mode=0755")
    os.chdir(STAGING)
    add_writable_folder(plan["limits"])  # first, for an interpreter that is installed below /tmp
    for path, fd in sources.items():
        attach(path, fd, MS_NOEXEC if path in plan["devices"] else MS_NODEV)
    for path in plan["covered"]:
        mount_tmpfs("." + path, "size=4k,nr_inodes=1,mode=0755", MS_RDONLY)
    for path, target in plan["links"].items():
        os.makedirs(os.path.dirname("." + path), exist_ok=True)
        os.symlink(target, "." + path)
    with open("." + PROGRAM, "wb") as file:
        file.write(code)
    os.mkdir("./proc")
    # subset=pid: processes only; no /proc/sys, /proc/keys, /proc/meminfo of the host.
    mount("proc", "./proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, "subset=pid")
    make_it_the_root()


def attach(path: str, fd: int, flags: int) -> None:
    """Show a folder or file of the machine at the same path, read-only, with all below it."""
    source, target = f"/proc/self/fd/{fd}", "." + path
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        open(target, "x").close()
    mount(source, target, None, MS_BIND | MS_REC)
    restrict_mount(target, MS_RDONLY | MS_NOSUID | flags, AT_RECURSIVE)
    os.close(fd)


def add_writable_folder(limits: dict[str, Any]) -> None:
    """/tmp, and /dev/shm as another name for it, which is where multiprocessing keeps its locks."""
    os.mkdir("./tmp")
    os.mkdir("./dev")
    size = 4 * limits["max_file_mb"] << 20
    mount_tmpfs("./tmp", f"size={size},nr_inodes=4096,mode=1777")
    os.symlink("../tmp", "./dev/shm")


def make_it_the_root() -> None:
    """Pivot, drop the old root, and close the new one for writing."""
    check("pivot_root", libc.pivot_root(b".", b"."))
    check("umount old root", libc.umount2(b".", MNT_DETACH))  # it lies on top of the new one
    os.chdir("/")
    restrict_mount("/", MS_RDONLY | MS_NOSUID | MS_NODEV, 0)


def mount_tmpfs(target: str, options: str, flags: int = 0) -> None:
    mount("tmpfs", target, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC | flags, options)


def mount(
    source: str | None, target: str, kind: str | None, flags: int, options: str | None = None
) -> None:
    encoded = [None if text is None else os.fsencode(text) for text in (source, target, kind)]
    data = None if options is None else options.encode()
    check(f"mount {target}", libc.mount(*encoded, ctypes.c_ulong(flags), data))


def restrict_mount(target: str, flags: int, recursive: int) -> None:
    """Add flags to a mount, and with AT_RECURSIVE to what is mounted below it.

    A remount would need the flags that are there already, and would miss the mounts below. In
    struct mount_attr the four flags have the same values as in mount(2).
    """
    attributes = (ctypes.c_uint64 * 4)(flags, 0, 0, 0)
    number, folder, path = ctypes.c_long(SYS_MOUNT_SETATTR), AT_FDCWD, os.fsencode(target)
    size = ctypes.c_size_t(ctypes.sizeof(attributes))
    done = libc.syscall(number, folder, path, recursive, ctypes.byref(attributes), size)
    check(f"mount_setattr {target}", done)


# --- giving up power


def leave_root(gate: Gate) -> None:
    """Become nobody, in a user namespace that has nobody else. The guard writes the map."""
    os.setgroups([])
    check("unshare user", libc.unshare(CLONE_NEWUSER))
    os.write(gate.ask, b"1")
    if os.read(gate.answered, 1) != b"1":
        raise OSError("the user namespace could not be mapped")
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)


def map_user(process: str, user: int, group: int) -> None:
    """In that process's user namespace NOBODY stands for `user` outside; no other id exists."""
    for name, line in (
        ("setgroups", "deny"),
        ("uid_map", f"{NOBODY} {user} 1"),
        ("gid_map", f"{NOBODY} {group} 1"),
    ):
        with open(f"/proc/{process}/{name}", "w") as file:
            file.write(line)


def drop_capabilities() -> None:
    """No capability now, none to gain by exec, and no look into this process from inside."""
    capability = 0
    while libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) == 0:
        capability += 1
    check("prctl ambient", libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0))
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    check("capset", libc.capset(header, (ctypes.c_uint32 * 6)()))
    check("no_new_privs", libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    check("prctl", libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0))
    # Changing the user id has cleared it.
    check("prctl", libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL))


def install_filter(instructions: bytes) -> None:
    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))

    program = Program(len(instructions) // 8, instructions)
    mode, address = ctypes.c_ulong(SECCOMP_MODE_FILTER), ctypes.byref(program)
    check("seccomp", libc.prctl(PR_SET_SECCOMP, mode, address, 0, 0))


def check_sealed() -> None:
    """Ask the kernel, rather than believe the steps above."""
    with open("/proc/self/status") as file:
        status = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
    wanted = {"Uid": "\t".join([str(NOBODY)] * 4), "NoNewPrivs": "1", "Seccomp": "2"}
    wanted |= {name: "0" * 16 for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")}
    wrong = {name: status.get(name) for name in wanted if status.get(name) != wanted[name]}
    if wrong:
        raise OSError(f"power left after giving it up: {wrong}")


# --- the program, and the watch over it


def become_program(plan: dict[str, Any], helpers: int) -> NoReturn:
    """Be process 2. Environment, files, terminal and session of the caller are left behind."""
    os.setsid()
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)
    os.dup2(open_input(plan["stdin"]), 0)
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2:
            close_on_exec(int(name))
    os.chdir("/tmp")
    interpreter = plan["interpreter"]
    # -u: what was printed before a timeout is seen. -X utf8: there is no locale to take it from.
    arguments = [interpreter, "-I", "-S", "-B", "-u", "-X", "utf8", PROGRAM]
    set_limits(plan["limits"], helpers)
    os.execve(interpreter, arguments, {})


def open_input(text: str) -> int:
    """The program's input: /dev/null, or a file that has no name any more, which nobody but this
    process can find. A pipe would have to be fed while the program runs."""
    if not text:
        return os.open("/dev/null", os.O_RDONLY)
    path = "/tmp/input"
    with open(path, "wb") as file:
        file.write(text.encode("utf-8", "surrogatepass"))
    given = os.open(path, os.O_RDONLY)
    os.unlink(path)
    return given


def close_on_exec(fd: int) -> None:
    with contextlib.suppress(OSError):  # the listing's own descriptor is closed by now
        os.set_inheritable(fd, False)


def set_limits(limits: dict[str, Any], helpers: int) -> None:
    """Per process, except NPROC, which counts this user in this user namespace: this run.

    Cores are limited to one byte, not zero: at exactly 1 the kernel does not start the machine's
    crash handler either. `helpers` are our own processes in the same user namespace.
    """
    for kind, value in (
        (resource.RLIMIT_FSIZE, limits["max_file_mb"] << 20),
        (resource.RLIMIT_NPROC, limits["max_processes"] + helpers),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 1),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
        (resource.RLIMIT_NICE, 0),
        (resource.RLIMIT_RTPRIO, 0),
        (resource.RLIMIT_SIGPENDING, 256),
        (resource.RLIMIT_CPU, limits["cpu_s"] + 1),
        (resource.RLIMIT_AS, limits["memory_mb"] << 20),
    ):
        inherited = resource.getrlimit(kind)[1]  # cannot be raised, only lowered
        value = value if inherited == resource.RLIM_INFINITY else min(value, inherited)
        resource.setrlimit(kind, (value, value))
    # SIGXCPU first, and a second later SIGKILL for those who ignore it.
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (min(limits["cpu_s"], hard), hard))


def watch(program: int, limits: dict[str, Any]) -> dict[str, Any]:
    """Wait for the program, and say why it ended. Returning ends every process inside."""
    deadline = time.monotonic() + limits["timeout_s"]
    memory = limits["memory_mb"] << 20
    while (left := deadline - time.monotonic()) > 0:
        signal.sigtimedwait({signal.SIGCHLD}, min(left, WATCH_EVERY_S))
        ended = reap(program, limits["cpu_s"])
        if ended is not None:
            return ended
        if resident_bytes() > memory:
            return {"why": "memory"}
    return {"why": "timeout"}


def reap(program: int, cpu_s: int) -> dict[str, Any] | None:
    """Collect the dead, orphans too; the program's end if it is among them."""
    while True:
        try:
            pid, status, usage = os.wait4(-1, os.WNOHANG)
        except ChildProcessError:
            return {"why": "lost"}
        if pid == 0:
            return None
        if pid == program:
            break
    if os.WIFEXITED(status):
        return {"why": "exit", "exit_code": os.WEXITSTATUS(status)}
    number = os.WTERMSIG(status)
    used_up = number == signal.SIGKILL and usage.ru_utime + usage.ru_stime >= cpu_s
    if number == signal.SIGXCPU or used_up:
        return {"why": "cpu"}
    return {"why": "signal", "signal": number}


def resident_bytes() -> int:
    """Memory of all processes inside, this one left out. An unreadable /proc ends the run."""
    total = 0
    for name in os.listdir("/proc"):
        if name.isdigit() and name != "1":
            ended = contextlib.suppress(FileNotFoundError, ProcessLookupError)
            with ended, open(f"/proc/{name}/statm") as file:
                total += int(file.read().split()[1])
    return total * resource.getpagesize()


# --- telling the caller


def check(step: str, result: int) -> None:
    """Turn a C function's -1 into an exception that names the step."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{step}: {os.strerror(number)}")


def report(fd: int, **event: Any) -> None:
    """One line of JSON, short enough to be written in one piece."""
    os.write(fd, json.dumps(event).encode() + b"\n")


def refuse(report_fd: int, error: BaseException) -> NoReturn:
    """Say what failed, and run nothing."""
    try:
        detail = f"{type(error).__name__}: {error} ({steps_to(error)})"
        report(report_fd, event="refused", detail=detail[:500])
    finally:
        os._exit(REFUSED)


def steps_to(error: BaseException) -> str:
    """The functions on the way to an exception, because EPERM alone says little."""
    names, step = [], error.__traceback__
    while step is not None:
        names.append(step.tb_frame.f_code.co_name)
        step = step.tb_next
    return " > ".join(names)


if __name__ == "__main__":
    main()
