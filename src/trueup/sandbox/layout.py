"""What generated code can see: the plan that the launcher builds its private root from.

The root holds the interpreter, its standard library, the shared libraries of the machine, the time
zones, four devices, the program and an empty /tmp. Everything is found at the same path as outside,
because an interpreter looks for its library where it was installed.

The promise: nothing is in the plan that was not named here. Other people's packages are covered
even where they lie inside the interpreter's folder: the program gets the standard library.
"""

import glob
import os
import sys
import sysconfig
from dataclasses import asdict
from typing import Any, NamedTuple

from trueup.errors import SandboxUnavailable
from trueup.sandbox.seccomp import build_filter
from trueup.sandbox.types import SandboxLimits

__all__ = ["build_plan", "find_interpreter"]

LIBRARY_FOLDERS = ("lib", "lib64")
SYSTEM_PREFIXES = ("/", "/usr")
SYSTEM_FILES = ("/etc/ld.so.cache", "/usr/share/zoneinfo")
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")


class Visible(NamedTuple):
    """Paths to show, and symbolic links to make, path to target."""

    paths: list[str]
    links: dict[str, str]


def build_plan(code: str, limits: SandboxLimits, stdin: str = "") -> dict[str, Any]:
    """Everything the launcher needs, as JSON values."""
    interpreter, shared = find_interpreter(), _shared_libraries()
    standard = _standard_library()
    files = [path for path in SYSTEM_FILES if os.path.exists(path)]
    folders = _without_nested([*standard, *shared.paths, *files, interpreter])
    return {
        "code": code,
        "stdin": stdin,
        "interpreter": interpreter,
        "unreadable": folders,
        "covered": _package_folders(folders),
        "links": shared.links,
        "devices": list(DEVICES),
        "limits": asdict(limits),
        "filter": build_filter().hex(),
    }


def find_interpreter() -> str:
    """The real file of the interpreter that runs us, not the link that a virtual environment has.

    Raises:
        SandboxUnavailable: not Linux, or the interpreter is embedded and has no file.
    """
    path = getattr(sys, "_base_executable", "") or sys.executable
    if sys.platform != "linux" or not path:
        raise SandboxUnavailable(
            "Generated code cannot be isolated here",
            got=f"{sys.platform}, interpreter {path!r}",
            expected="Linux, and a CPython that has a file of its own",
            next="evaluate generated code on a Linux machine",
        )
    return os.path.realpath(path)


def _standard_library() -> list[str]:
    """The standard library, and the shared libraries that an interpreter of its own came with."""
    # In a virtual environment the second would be the environment's, without the override.
    exec_prefix = {"platbase": sys.base_exec_prefix}
    found = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib", vars=exec_prefix)}
    for prefix in {os.path.realpath(sys.base_prefix), os.path.realpath(sys.base_exec_prefix)}:
        if prefix not in SYSTEM_PREFIXES:  # theirs hold the rest of the machine, too
            found |= {os.path.join(prefix, name) for name in LIBRARY_FOLDERS}
    return sorted({os.path.realpath(path) for path in found if os.path.isdir(path)})


def _shared_libraries() -> Visible:
    """The machine's shared libraries and the loader that finds them.

    Where each architecture has its own folder (Debian and its kin) only that is shown, with the
    loader beside it; elsewhere all of lib is libraries.
    """
    architecture = getattr(sys.implementation, "_multiarch", "")
    visible = Visible([], {})
    for prefix in SYSTEM_PREFIXES:
        for folder in (os.path.join(prefix, name) for name in LIBRARY_FOLDERS):
            own = os.path.join(folder, architecture)
            narrow = bool(architecture) and os.path.isdir(own) and not os.path.islink(folder)
            for path in [own, *glob.glob(f"{folder}/ld-*.so*")] if narrow else [folder]:
                if os.path.islink(path):
                    visible.links[path] = os.readlink(path)
                elif os.path.exists(path):
                    visible.paths.append(path)
    return visible


def _package_folders(folders: list[str]) -> list[str]:
    """Folders of installed packages inside those folders, which may be a python3.x itself."""
    found = {
        path
        for folder in folders
        for middle in ("", "python3*/")
        for path in glob.glob(f"{folder}/{middle}*-packages")
        if not os.path.islink(path)
    }
    return sorted(found)


def _without_nested(paths: list[str]) -> list[str]:
    """Shortest first, and without what a folder before it already shows."""
    kept: list[str] = []
    for path in sorted(set(paths), key=len):
        if not any(path.startswith(folder + "/") for folder in kept):
            kept.append(path)
    return kept
