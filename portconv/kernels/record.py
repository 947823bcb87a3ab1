"""Records: numbers and addresses by name, which Python writes into memory and a kernel reads."""

from __future__ import annotations

from .values import INTEGER, POINTER, Int, Pointer


class Record:
    """Numbers and addresses of 8 bytes each, by name, that Python writes into memory and a kernel reads."""

    def __init__(self, *names: str) -> None:
        self.names = names
        self.places = {name: place for place, name in enumerate(names)}

    def read(self, memory: Pointer) -> Fields:
        """Read all fields at this point of a function; what is not used costs nothing."""
        return Fields(memory, self.places)

    def packed(self, **values: int) -> list[int]:
        """Return the values in the order of the fields; each field needs one."""
        assert values.keys() == self.places.keys(), values.keys() ^ self.places.keys()
        return [values[name] for name in self.names]


class Fields:
    """The fields of a record, as values of a function."""

    def __init__(self, memory: Pointer, places: dict[str, int]) -> None:
        self._values: dict[str, Int] = {name: memory.of(INTEGER)[place] for name, place in places.items()}
        self._memory, self._places = memory, places

    def __getattr__(self, name: str) -> Int:
        return self._values[name]

    def pointer(self, name: str, element: str) -> Pointer:
        """Return the field of a name as an address; read where the function begins."""
        # LLVM may take addresses that are made of integers for others: it is loaded as an address.
        pointer: Pointer = self._memory.of(POINTER)[self._places[name]]
        return pointer.of(element)
