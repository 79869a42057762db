"""The system calls that generated code may not make, as a seccomp filter.

The namespaces already hide the machine; this list shrinks the part of the kernel that the code can
talk to, and closes what namespaces leave open. It forbids rather than permits, because CPython and
libc use some two hundred calls that differ with every version, and a filter that breaks programs at
random would be switched off. The three gaps that a list like this has are closed separately: calls
newer than the list do not exist, another architecture's numbers kill, and `clone3`, whose arguments
a filter cannot read, does not exist either (libc falls back to `clone`, whose arguments it can).

The promise: no new namespaces, no mounts, no look into another process, no kernel keyrings, no
memory outside the accounts, no socket families but unix and internet. The last one matters: network
namespaces do not cover AF_VSOCK, which reaches the hypervisor of a virtual machine. What sockets
hold is kernel memory that no account sees, so their buffers stay at the machine's default.
"""

import errno
import platform
import struct
from typing import NamedTuple

from trueup.errors import SandboxUnavailable

__all__ = ["build_filter"]


class Machine(NamedTuple):
    """How one processor names itself to the filter, and its column in the table below."""

    audit_arch: int
    column: int


MACHINES = {"x86_64": Machine(0xC000003E, 0), "aarch64": Machine(0xC00000B7, 1)}

# name: (x86_64, aarch64)
DENIED = {
    # Other worlds: a nested user namespace would bring capabilities back.
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    # Other processes.
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "pidfd_getfd": (438, 438),
    "kcmp": (312, 272),
    # The scheduling of other processes: the one that keeps the limits must not be starved.
    "setpriority": (141, 140),
    "sched_setaffinity": (203, 122),
    "sched_setattr": (314, 274),
    "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119),
    "ioprio_set": (251, 30),
    # Keyrings are inherited, namespaces or not, and may hold the caller's secrets.
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    # Memory that no process's address space accounts for.
    "memfd_create": (319, 279),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),
    # The host's kernel log.
    "syslog": (103, 116),
    # Large, young or privileged parts of the kernel that no exercise needs.
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "fanotify_init": (300, 262),
    "quotactl": (179, 60),
    "kexec_load": (246, 104),
    "init_module": (175, 105),
    "finit_module": (313, 273),
}

CLONE3 = (435, 435)
CLONE, PRLIMIT64 = (56, 220), (302, 261)
SOCKET, SETSOCKOPT = (41, 198), (54, 208)
NEWEST_KNOWN = 441  # Linux 5.11; both machines count alike from 424 on, and x32 is far above

# CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
CLONE_NAMESPACES = 0x7E020000
SOCKET_FAMILIES = (1, 2, 10)  # AF_UNIX, AF_INET, AF_INET6
SO_SNDBUF = 7

LOAD, EQUAL, ABOVE, ANY_BIT, RETURN = 0x20, 0x15, 0x25, 0x45, 0x06
NUMBER_AT, ARCH_AT, ARGUMENTS_AT = 0, 4, 16  # struct seccomp_data; the low half comes first
ALLOW, KILL = 0x7FFF0000, 0x80000000


def build_filter() -> bytes:
    """The filter for this processor, as an array of struct sock_filter.

    Raises:
        SandboxUnavailable: the processor is not in the table, so nothing can be filtered.
    """
    machine = MACHINES.get(platform.machine())
    if machine is None:
        raise SandboxUnavailable(
            "The sandbox has no system call table for this processor",
            got=platform.machine(),
            expected=f"one of {', '.join(MACHINES)}",
            next="evaluate generated code on a machine of that kind",
        )
    program = [
        _op(LOAD, ARCH_AT),
        _op(EQUAL, machine.audit_arch, skip_true=1),
        _op(RETURN, KILL),
        _op(LOAD, NUMBER_AT),
        _op(ABOVE, NEWEST_KNOWN, skip_false=1),
        _op(RETURN, _refuse(errno.ENOSYS)),
        *_deny(CLONE3[machine.column], errno.ENOSYS),
    ]
    for numbers in DENIED.values():
        program += _deny(numbers[machine.column], errno.EPERM)
    for rule in (_clone, _prlimit64, _socket, _setsockopt):
        program += rule(machine.column)
    program.append(_op(RETURN, ALLOW))
    return b"".join(program)


def _op(code: int, value: int, *, skip_true: int = 0, skip_false: int = 0) -> bytes:
    """One instruction; a comparison skips that many instructions on either outcome."""
    return struct.pack("<HBBI", code, skip_true, skip_false, value)


def _refuse(error: int) -> int:
    return 0x00050000 | error


def _deny(number: int, error: int) -> list[bytes]:
    return [_op(EQUAL, number, skip_false=1), _op(RETURN, _refuse(error))]


def _look_at(number: int, argument: int, tests: list[bytes], error: int) -> list[bytes]:
    """One call that depends on an argument. The tests fall through to refuse, or skip that."""
    return [
        _op(EQUAL, number, skip_false=len(tests) + 3),
        _op(LOAD, ARGUMENTS_AT + 8 * argument),
        *tests,
        _op(RETURN, _refuse(error)),
        _op(RETURN, ALLOW),
    ]


def _clone(column: int) -> list[bytes]:
    """Processes and threads, but no namespaces."""
    return _look_at(CLONE[column], 0, [_op(ANY_BIT, CLONE_NAMESPACES, skip_false=1)], errno.EPERM)


def _prlimit64(column: int) -> list[bytes]:
    """The limits of the caller, which it calls 0, and of no other process."""
    return _look_at(PRLIMIT64[column], 0, [_op(EQUAL, 0, skip_true=1)], errno.EPERM)


def _socket(column: int) -> list[bytes]:
    """The three families."""
    count = len(SOCKET_FAMILIES)
    tests = [_op(EQUAL, SOCKET_FAMILIES[i], skip_true=count - i) for i in range(count)]
    return _look_at(SOCKET[column], 0, tests, errno.EAFNOSUPPORT)


def _setsockopt(column: int) -> list[bytes]:
    """No option 7 at any level: SO_SNDBUF is the one that matters, the others are exotic."""
    return _look_at(SETSOCKOPT[column], 2, [_op(EQUAL, SO_SNDBUF, skip_false=1)], errno.EPERM)
