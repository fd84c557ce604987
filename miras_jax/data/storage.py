"""Files and folders, on this machine or behind a URL that fsspec knows (gs://, s3://, memory://).

Local files are opened without fsspec. What is written appears under its name when it is complete:
on this machine by a rename, elsewhere because an upload is not visible before its end.
"""

import contextlib
import fcntl
import hashlib
import io
import os
import tempfile
from collections.abc import Iterator
from glob import glob
from pathlib import Path
from typing import BinaryIO

import numpy as np

from miras_jax.data.errors import DataError, need


def is_remote(path: str) -> bool:
    """Whether `path` is a URL and not a path of this machine."""
    return "://" in path


def _remote(url: str) -> tuple:
    """Returns fsspec's file system and the path in it."""
    fsspec = need("fsspec")
    try:
        return fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:  # gcsfs or s3fs, or no such protocol
        raise DataError(f"{url}: {error}") from None


def open_file(path: str) -> BinaryIO:
    """Opens for reading; the file can be sought in."""
    if not is_remote(path):
        return open(path, "rb")
    system, inside = _remote(path)
    return system.open(inside, "rb")


@contextlib.contextmanager
def local_copy(path: str) -> Iterator[str]:
    """A path of this machine with the content of `path`, for libraries that open files themselves.

    A remote file is copied and the copy removed at the end.
    """
    if not is_remote(path):
        yield path
        return
    system, inside = _remote(path)
    with tempfile.TemporaryDirectory() as folder:
        copy = str(Path(folder, os.path.basename(inside)))
        system.get_file(inside, copy)
        yield copy


def size_and_stamp(path: str) -> tuple[int, str]:
    """Size in bytes, and what changes when the file is written again."""
    if not is_remote(path):
        status = os.stat(path)
        return status.st_size, str(status.st_mtime_ns)
    system, inside = _remote(path)
    return system.size(inside) or 0, str(system.ukey(inside))


def full_name(path: str) -> str:
    """One name for one file or folder, however it is reached."""
    if not is_remote(path):
        return os.path.realpath(os.path.expanduser(path))
    system, inside = _remote(path)
    return system.unstrip_protocol(inside)


def sha256_of(path: str) -> str:
    """sha256 of a file, read in blocks."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_below(path: str) -> tuple[list[str], bool]:
    """The files that `path` names, sorted, and whether it is a folder.

    They are the file itself; all files below a folder but hidden ones; or all that match a pattern.
    What exists is never read as a pattern.
    """
    if is_remote(path):
        system, inside = _remote(path)
        if system.isfile(inside):
            return [system.unstrip_protocol(inside)], False
        is_folder = system.isdir(inside)
        found = system.find(inside) if is_folder else system.glob(inside)
        names = [name for name in found if system.isfile(name)]
        root, url = inside, system.unstrip_protocol
    else:
        path = os.path.expanduser(path)
        if os.path.isfile(path):
            return [path], False
        is_folder = os.path.isdir(path)
        found = map(str, Path(path).rglob("*")) if is_folder else glob(path, recursive=True)
        names = [name for name in found if os.path.isfile(name)]
        root, url = path, str
    if is_folder:
        names = [name for name in names if not _hidden(os.path.relpath(name, root))]
    return sorted(map(url, names)), is_folder


def _hidden(path: str) -> bool:
    return any(part.startswith(".") for part in Path(path).parts)


class Folder:
    """A folder of files that are written whole or not at all."""

    def __init__(self, path: str):
        self.path = path if is_remote(path) else os.path.expanduser(path)

    def __repr__(self) -> str:
        return self.path

    def _at(self, name: str) -> str:
        return f"{self.path.rstrip('/')}/{name}"

    def make(self) -> None:
        """Makes the folder and those above it, where they are missing."""
        if is_remote(self.path):
            system, inside = _remote(self.path)
            system.makedirs(inside, exist_ok=True)
        else:
            os.makedirs(self.path, exist_ok=True)

    def names(self) -> set[str]:
        """The names of the files in it; empty where there is no such folder."""
        if not is_remote(self.path):
            return set(os.listdir(self.path)) if os.path.isdir(self.path) else set()
        system, inside = _remote(self.path)
        if not system.isdir(inside):
            return set()
        return {os.path.basename(name) for name in system.ls(inside, detail=False)}

    def size(self, name: str) -> int:
        """Size of a file in bytes."""
        return size_and_stamp(self._at(name))[0]

    def read(self, name: str) -> bytes:
        """All of a file."""
        with open_file(self._at(name)) as file:
            return file.read()

    def sha256(self, name: str) -> str:
        """sha256 of a file."""
        return sha256_of(self._at(name))

    @contextlib.contextmanager
    def create(self, name: str) -> Iterator[BinaryIO]:
        """A file to write to, which gets its name when the block ends without an exception."""
        remote = is_remote(self.path)
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory()) if remote else self.path
            temporary = os.path.join(folder, f".{name}.{os.getpid()}.tmp")
            try:
                with open(temporary, "wb") as file:
                    yield file
                    file.flush()
                    os.fsync(file.fileno())
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise
            if remote:
                system, inside = _remote(self._at(name))
                system.put_file(temporary, inside)
            else:
                os.replace(temporary, self._at(name))

    def remove(self, name: str) -> None:
        """Removes a file, if it is there."""
        if is_remote(self.path):
            system, inside = _remote(self._at(name))
            if system.exists(inside):
                system.rm_file(inside)
        else:
            Path(self._at(name)).unlink(missing_ok=True)

    @contextlib.contextmanager
    def locked(self, wait: bool = False) -> Iterator[None]:
        """Keeps other processes out, where the file system can: not behind a URL, nor on some
        network disks. A lock ends with its process, even killed.

        Args:
          wait: whether to wait while another process holds it.

        Raises:
          DataError: another process holds it, without `wait`.
        """
        if is_remote(self.path):
            yield
            return
        handle = os.open(self.path, os.O_RDONLY)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                raise DataError(f"another process is writing in {self.path}") from None
            except OSError:
                pass  # NFS locks no folder
            yield
        finally:
            os.close(handle)

    def array(self, name: str, dtype: np.dtype, size: int) -> "np.ndarray | RemoteArray":
        """The `size` numbers in a file, read where they are asked for and not before."""
        if is_remote(self.path):
            return RemoteArray(self._at(name), dtype)
        return np.memmap(self._at(name), dtype, mode="r", shape=(size,))

    def npy(self, name: str) -> np.ndarray:
        """The array in a `.npy` file: mapped into memory where the file is local, else copied."""
        if is_remote(self.path):
            return np.load(io.BytesIO(self.read(name)))
        return np.load(self._at(name), mmap_mode="r")


class RemoteArray:
    """Numbers behind a URL; a slice of them is one request."""

    def __init__(self, url: str, dtype: np.dtype):
        self._url, self._dtype = url, np.dtype(dtype)

    def __getitem__(self, at: slice) -> np.ndarray:
        system, inside = _remote(self._url)
        width = self._dtype.itemsize
        data = system.cat_file(inside, start=at.start * width, end=at.stop * width)
        return np.frombuffer(data, self._dtype)
