"""Files that a command leaves, whole or not there, and those that it reads back, sound or refused in one line."""

import contextlib
import errno
import hashlib
import io
import json
import os
import shutil
import socket
import stat
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import yaml

from dino_oct.errors import InputError

try:
    import fcntl
except ImportError:  # not POSIX: without locks, leftovers of killed processes are not removed
    fcntl = None  # type: ignore[assignment]

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_PARTIAL, _BUILDING = ".partial", ".building"
_LONGEST = 120  # bytes of a name made of another: file systems end at 255, and endings come behind it


@contextlib.contextmanager
def replacing(file: str | Path) -> Iterator[Path]:
    """A path to write to, which takes the place of ``file`` at the end: flushed to disk, then renamed.

    On failure it is removed and ``file`` stays as it was. What killed writers left beside ``file`` is removed first.

    Raises:
        OSError: the disk is full, or the place cannot be written, whatever the library that wrote made of it.
    """
    file = Path(file)
    _remove_leftovers(file.parent, f"{file.name}.", _PARTIAL)
    partial, handle = _new(file, _PARTIAL, is_folder=False)
    try:
        yield partial
        if not is_at(handle, partial):  # safetensors puts a file of its own in its place
            mode = stat.S_IMODE(os.fstat(handle).st_mode)
            at_first, handle = handle, os.open(partial, os.O_RDWR)
            os.close(at_first)
            os.fchmod(handle, mode)
        os.fsync(handle)
        os.replace(partial, file)
    except BaseException as error:
        refused = _refused(error, partial, file)
        partial.unlink(missing_ok=True)
        if refused is None:
            raise
        raise refused from error
    finally:
        os.close(handle)


def write_whole(file: str | Path, content: str | bytes) -> None:
    """Write text (UTF-8) or bytes; see ``replacing``."""
    with replacing(file) as partial:
        partial.write_bytes(content if isinstance(content, bytes) else content.encode(errors="surrogateescape"))


@contextlib.contextmanager
def scratch_folder(final: Path) -> Iterator[Path]:
    """A new folder beside ``final``, to be renamed when it is complete; removed at the end where it still is.

    What killed processes of this machine left in the same place is removed first; of another one, whose locks may not
    be seen here, it stays.
    """
    _remove_leftovers(final.parent, ".", f"-{socket.gethostname()}{_BUILDING}")
    building, handle = _new(final.with_name(f".{final.name}"), f"-{socket.gethostname()}{_BUILDING}", is_folder=True)
    try:
        yield building
    finally:
        shutil.rmtree(building, ignore_errors=True)
        os.close(handle)


def _new(file: Path, ending: str, is_folder: bool) -> tuple[Path, int]:
    """A new file or folder of a name of its own, and its handle, locked as long as this process lives."""
    while True:
        new = file.with_name(f"{file.name}.{uuid.uuid4().hex[:8]}{ending}")
        if is_folder:
            new.mkdir(mode=0o700)
        else:
            os.close(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        with contextlib.suppress(OSError):  # one that was taken for a leftover, just now
            handle = os.open(new, os.O_RDONLY if is_folder else os.O_RDWR)
            if lock_now(handle) and is_at(handle, new):
                return new, handle
            os.close(handle)


def lock_now(handle: int) -> bool:
    """Lock for this process alone; False if another one has it. Some network file systems have no locks."""
    if fcntl is not None:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            pass
    return True


def lock_later(handle: int) -> None:
    """Wait until no other process has the lock that ``lock_now`` did not get."""
    fcntl.flock(handle, fcntl.LOCK_EX)


def is_at(handle: int, path: Path) -> bool:
    """Whether an open file still is the one of this name."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except OSError:
        return False


def _remove_leftovers(folder: Path, start: str, end: str) -> None:
    """Remove files or folders named so that no living process holds."""
    if fcntl is None:
        return
    try:
        names = [name for name in os.listdir(folder) if name.startswith(start) and name.endswith(end)]
    except OSError:
        return
    for path in (folder / name for name in names):
        with contextlib.suppress(OSError):
            handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                remove(path)
            finally:
                os.close(handle)


def remove(path: Path) -> None:
    """Remove a file, link or folder, if it is there and may be removed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def _refused(error: BaseException, partial: Path, file: Path) -> OSError | None:
    """What the system said when a file was written; None where it said nothing, or named another file."""
    if not isinstance(error, Exception):
        return None
    cause: BaseException | None = error
    while cause is not None:  # torch raises RuntimeError behind it
        if isinstance(cause, OSError) and cause.errno:
            if cause.filename not in (None, str(partial)):
                return None
            return OSError(cause.errno, os.strerror(cause.errno), str(file))
        cause = cause.__context__
    if isinstance(error, (OSError, RuntimeError)) or type(error).__name__ == "SafetensorError":
        try:  # numpy and safetensors hide the system's reason, which another write gives
            with partial.open("ab") as stream:
                stream.write(bytes(1 << 20))
        except OSError as full:
            return OSError(full.errno, os.strerror(full.errno or 0), str(file))
    return None


@contextlib.contextmanager
def naming(place: str | Path) -> Iterator[None]:
    """Give errors of the system that name no file the name of this place."""
    try:
        yield
    except OSError as error:
        if not error.errno or error.filename is not None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(place)) from error


def is_full(error: BaseException) -> bool:
    """Whether an error says that the disk, a quota or the largest size of a file is reached."""
    return isinstance(error, OSError) and error.errno in _FULL


def explain(error: OSError) -> str | None:
    """An error of the system in one line for the user; None where it names no file."""
    place = error.filename if isinstance(error.filename, (str, os.PathLike)) else None
    if is_full(error):
        free = _free(Path(place or "."))
        return (
            f"disk full: {place or 'a file'} could not be written ({error.strerror}, {free} free); free space and run "
            "the same command again"
        )
    if place is None or not error.strerror:
        return None
    return f"{place}: {error.strerror}; check that the path is right and that you may read and write there"


def _free(place: Path) -> str:
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        return f"{shutil.disk_usage(place).free / 1e6:,.0f} MB"
    except OSError:
        return "unknown space"


def check_regular(file: str | Path) -> Path:
    """Return a file's path if a regular file is there: opening a pipe would wait, and a device has no end.

    Raises:
        InputError: nothing there, a folder, a pipe or a device.
    """
    file = Path(file)
    try:
        mode = os.stat(file).st_mode
    except FileNotFoundError:
        missing = "a link to a file that is gone" if file.is_symlink() else "no such file"
        raise InputError(f"{file}: {missing}") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if stat.S_ISDIR(mode):
        raise InputError(f"{file}: a folder where a file is expected")
    if not stat.S_ISREG(mode):
        raise InputError(f"{file}: not a regular file (a pipe, socket or device)")
    return file


def read_text(file: str | Path) -> str:
    """Read UTF-8 text, with or without a byte order mark.

    Raises:
        InputError: missing, no regular file, not readable, or not UTF-8.
    """
    file = check_regular(file)
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{file}: not text in UTF-8: damaged, or another kind of file") from None
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})") from None


def read_json(file: str | Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        InputError: as ``read_text``; not JSON, or not an object.
    """
    try:
        content = json.loads(read_text(file))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: damaged: not valid JSON ({_reason(error)})") from None
    if not isinstance(content, dict):
        raise InputError(f"{file}: damaged: expected names with values, found a {type(content).__name__}")
    return content


def read_yaml(file: str | Path, loader: type = yaml.SafeLoader) -> Any:
    """Read YAML.

    Raises:
        InputError: as ``read_text``, or not YAML.
    """
    try:
        return yaml.load(read_text(file), loader)
    except InputError as error:
        raise InputError(f"{file}: {str(error).removeprefix(f'{file}: ')}") from None
    except Exception as error:  # PyYAML raises anything for a value that its tag does not fit, as a 13th month
        reason = "nested too deeply" if isinstance(error, RecursionError) else _reason(error)
        raise InputError(f"{file}: not valid YAML: {reason}") from None


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def open_lock(file: Path) -> IO[str]:
    """Open a file that is only there to be locked, making it if need be.

    Raises:
        InputError: a folder, pipe or device is in its place.
        OSError: it may not be opened.
    """
    if os.path.lexists(file):
        check_regular(file)
    return file.open("a+", encoding="utf-8")


def private_folder(folder: Path) -> Path:
    """Make a folder, if it is not there, that only its owner may enter: for what shows scans of patients.

    One that is there stays as open as its owner made it. Folders above it are made as usual.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
        return folder
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    return folder


def share_as(path: Path, folder: Path, write: bool = False) -> None:
    """Let those who may read a folder read a file or folder in it, with all that is in that.

    Args:
        write: whether those who may write there may do so too.
    """
    mode = folder.stat().st_mode & (0o7777 if write else 0o755)
    for entry in (path, *path.rglob("*")) if path.is_dir() else (path,):
        entry.chmod(mode if entry.is_dir() else mode & 0o666)


def is_same_path(path: str | Path, other: str | Path) -> bool:
    """Whether two spellings mean one place: relative or absolute, by ``..`` or by a link."""
    return path == other or Path(path).resolve() == Path(other).resolve()


def short_name(name: str, longest: int = _LONGEST) -> str:
    """A name for a file made of another's, of at most so many bytes; different names stay different."""
    name = name.replace("/", "_").replace("\0", "_")
    encoded = os.fsencode(name)
    if len(encoded) <= longest:
        return name
    ending = f"-{hashlib.sha256(encoded).hexdigest()[:10]}"
    return encoded[: longest - len(ending)].decode(errors="ignore") + ending


class _Unhearing(io.FileIO):
    """Output that goes on in silence when nobody reads it any more: what is computed must not be lost by that."""

    def write(self, content: Any) -> int | None:
        try:
            return super().write(content)
        except BrokenPipeError:
            return len(memoryview(content).cast("B"))


def harden_terminal() -> None:
    """Let no print end the program: characters that a terminal cannot show are escaped, a closed pipe is ignored.

    A full disk that a thread meets is told by the one who waits for the thread, not by a traceback beside.
    """
    default_hook = threading.excepthook
    threading.excepthook = lambda args: None if is_full(args.exc_value) else default_hook(args)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None or stream is not getattr(sys, f"__{name}__"):  # redirected by the caller
            continue
        try:
            raw = _Unhearing(stream.fileno(), "w", closefd=False)
            stream.flush()
        except (OSError, ValueError):
            continue
        hardened = io.TextIOWrapper(
            io.BufferedWriter(raw), encoding=stream.encoding, errors="backslashreplace", line_buffering=True
        )
        setattr(sys, name, hardened)
