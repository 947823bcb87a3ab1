"""The exceptions that portconv raises, all of them derived from `PortconvError`."""


class PortconvError(Exception):
    """Base class of every exception that portconv raises on purpose."""


class ConvShapeError(PortconvError, ValueError):
    """A shape that does not fit: dimensions, channels, a kernel larger than its input, a wrong `dout`."""


class ConvValueError(PortconvError, ValueError):
    """An option of the right kind with a bad value, such as a stride of 0 or an unknown name."""


class ConvTypeError(PortconvError, TypeError):
    """An argument of the wrong kind: a float for an int, a list for an array, arrays of two libraries."""


class BackendError(PortconvError, RuntimeError):
    """A backend that is missing or has no device, arrays on two devices, a precision it cannot hold.

    Also a call that interrupts the first call of a process, which still loads modules.
    """


def in_a_line(error: Exception) -> str:
    """What an error says, in a line."""
    return " ".join(str(error).split()) or type(error).__name__
