"""Memory stays with the process."""

import ctypes
import sys

# From malloc.h of the GNU C library.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def keep_memory() -> None:
    """Tells the GNU C library to keep memory that is freed; other libraries are left as they are.

    An iteration allocates and frees the same hundreds of megabytes many times over. The library would return
    blocks of 32 MB and more, and what is free at the end of its heap, to the system each time, and the pages of
    the next block would come one fault after the other: half of an outer step's time was spent on them.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)
