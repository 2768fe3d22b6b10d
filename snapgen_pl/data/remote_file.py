"""A file on a web server, read over connections that may break."""

import io
import re
import time
import urllib.request
import warnings
from collections.abc import Callable
from http.client import HTTPException, HTTPResponse
from typing import TYPE_CHECKING, TypeVar
from urllib.error import HTTPError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

T = TypeVar("T")

_TIMEOUT_S = 60
_WAITS_S = (0.5, 2.0, 8.0, 32.0)
_PASSING = (408, 425, 429, 500, 502, 503, 504)
_CHUNK = 1 << 16
# Up to this many bytes are read and dropped; a larger step forwards is a new request.
_STEP = 1 << 22


class RemoteFile(io.RawIOBase):
    """A file at an HTTP(S) address, best read forwards.

    A connection that breaks is warned of, and replaced by one that goes on at the byte that was to come next.

    Args:
        url: the address.

    Attributes:
        length: in bytes; None where the server does not tell.

    Raises:
        OSError: naming the address, where it cannot be opened, or read, in five attempts.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.length: int | None = None
        self._position = 0
        self._response: HTTPResponse | None = None
        self._response_position = 0
        self._attempt(self._connected)

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """The next byte to be read."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Goes to a byte, counted from the beginning or from here."""
        if whence not in (io.SEEK_SET, io.SEEK_CUR):
            raise io.UnsupportedOperation("where a remote file ends may be unknown")
        self._position = offset if whence == io.SEEK_SET else self._position + offset
        return self._position

    def readinto(self, buffer: "WriteableBuffer") -> int:
        """Reads at most as many bytes as the buffer takes; 0 at the end."""
        view = memoryview(buffer).cast("B")
        if not view or (self.length is not None and self._position >= self.length):
            return 0
        count = self._attempt(lambda: self._read(view))
        self._position += count
        return count

    def close(self) -> None:
        """Closes the connection."""
        self._disconnect()
        super().close()

    def _read(self, view: memoryview) -> int:
        response = self._connected()
        while (gap := self._position - self._response_position) > 0:
            self._advance(len(response.read(min(gap, _CHUNK))))
        return self._advance(response.readinto(view))

    def _advance(self, count: int) -> int:
        if not count and self.length is not None:  # without a length, this is the end
            raise ConnectionError("the server closed the connection early")
        self._response_position += count
        return count

    def _connected(self) -> HTTPResponse:
        """A response that comes to the position."""
        if self._response is not None and 0 <= self._position - self._response_position <= _STEP:
            return self._response
        self._disconnect()
        ranges = {"Range": f"bytes={self._position}-"} if self._position else {}
        request = urllib.request.Request(self.url, headers=ranges)
        response: HTTPResponse = urllib.request.urlopen(request, timeout=_TIMEOUT_S)
        self._response = response
        # Servers that know no ranges send all of it.
        self._response_position = self._position if response.status == 206 else 0
        length = _length(response)
        if self.length not in (None, length):
            raise OSError(f"it had {self.length} bytes, and now has {length}")
        self.length = length
        return response

    def _disconnect(self) -> None:
        if self._response is not None:
            self._response.close()
            self._response = None

    def _attempt(self, action: Callable[[], T]) -> T:
        for wait_s in (*_WAITS_S, None):
            try:
                return action()
            except (OSError, HTTPException) as error:
                self._disconnect()
                what = f"{self.url} cannot be read from byte {self._position} on ({type(error).__name__}: {error})"
                if wait_s is None or (isinstance(error, HTTPError) and error.code not in _PASSING):
                    raise OSError(what) from error
                warnings.warn(f"{what}; trying again", stacklevel=2)
                time.sleep(wait_s)
        raise AssertionError("the last attempt returns or raises")


def _length(response: HTTPResponse) -> int | None:
    total = re.fullmatch(r"bytes \d+-\d+/(\d+)", response.headers.get("Content-Range", ""))
    length = total[1] if total else response.headers.get("Content-Length")
    return None if length is None else int(length)
