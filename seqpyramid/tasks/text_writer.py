"""A language model that goes on by itself: its alphabet, how a symbol is drawn, and the loop over its own draws.

Shapes: B sequences, V symbols.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from seqpyramid.contracts import Model
from seqpyramid.data.streams import one_hot
from seqpyramid.data.text import Units
from seqpyramid.errors import UserError
from seqpyramid.tasks.base import Drawn, Request

END_OF_LINE = "\n"


@dataclass(frozen=True)
class Alphabet:
    """The symbols of a text; a symbol's code is its place among them."""

    symbols: tuple[int, ...]
    """(V,) code points or bytes, ascending."""
    units: Units

    def encode(self, written: str, what: str) -> list[int]:
        """Return the codes of some text.

        Raises:
            UserError: a character is none of the symbols; ``what`` begins the sentence.
        """
        codes = {symbol: code for code, symbol in enumerate(self.symbols)}
        values = list(written.encode()) if self.units == "bytes" else [ord(letter) for letter in written]
        for value in values:
            if value not in codes:
                shown = f"byte {value}" if self.units == "bytes" else repr(chr(value))
                raise UserError(
                    f"{what} has {shown}, which is none of the {len(codes)} symbols of this model's text; "
                    f"use {self._some()}"
                )
        return [codes[value] for value in values]

    def decode(self, codes: Sequence[int]) -> str:
        """Undo :meth:`encode`; bytes that are no UTF-8 become replacement characters."""
        values = [self.symbols[code] for code in codes]
        if self.units == "bytes":
            return bytes(values).decode(errors="replace")
        return "".join(map(chr, values))

    def stop(self, written: str) -> int:
        """Return the code of the symbol that ends a text; ``eos`` is an end of line.

        Raises:
            UserError: it is not exactly one of the symbols.
        """
        codes = self.encode(END_OF_LINE if written in ("eos", "\\n") else written, "the stop symbol")
        if len(codes) != 1:
            raise UserError(
                f"the stop symbol is {len(codes)} symbols long; give one, or eos for an end of line"
            )
        return codes[0]

    def start(self) -> int:
        """Return the code that an unprimed text goes on behind: an end of line, else a space, else the first."""
        return next((self.symbols.index(ord(c)) for c in (END_OF_LINE, " ") if ord(c) in self.symbols), 0)

    def _some(self) -> str:
        """A few of the symbols, for a message."""
        shown = "".join(chr(s) for s in self.symbols if s < 0x7F and chr(s).isprintable())
        return f"characters like {shown[:100]!r}" if shown else "others"


def go_on(
    model: Model, alphabet: Alphabet, request: Request, *, carry_state: bool, read_most: int
) -> list[Drawn]:
    """Let the model go on behind ``prime``, each step from its own last draw; the text begins with the prime.

    A model that carries no state reads the last ``read_most`` symbols anew at each step. ``stop`` is one symbol, or
    ``eos`` for an end of line; it is left out of the text.

    Raises:
        UserError: the prime or the stop has a character that the text never had.
    """
    device = request.generator.device
    prime = alphabet.encode(request.prime, "the prime")
    stop = None if request.stop is None else alphabet.stop(request.stop)
    codes = torch.tensor(prime or [alphabet.start()], device=device).expand(request.count, -1)
    going = torch.ones(request.count, dtype=torch.bool, device=device)
    lengths = torch.full((request.count,), request.steps)
    drawn = torch.empty((request.count, 0), dtype=torch.int64, device=device)
    state = None
    with torch.inference_mode():
        for step in range(request.steps):
            read = codes if carry_state else codes[:, -read_most:]
            output = model(one_hot(read, len(alphabet.symbols)), None, state)
            new = draw(output.outputs[:, -1], temperature=request.temperature, generator=request.generator)
            drawn = torch.cat([drawn, new[:, None]], dim=1)
            if stop is not None:
                lengths[((new == stop) & going).cpu()] = step
                going &= new != stop
                if not going.any():
                    break
            state = output.state if carry_state else None
            codes = new[:, None] if carry_state else torch.cat([codes, new[:, None]], dim=1)
    return [
        Drawn(request.prime + alphabet.decode(row[:length]), length, not on)
        for row, length, on in zip(drawn.tolist(), lengths.tolist(), going.tolist(), strict=True)
    ]


def draw(logits: Tensor, *, temperature: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
    """Draw a symbol for each row of logits (B, V); temperature 0 takes the likeliest.

    Returns:
        (B,) int64, without a gradient.
    """
    logits = logits.detach()
    if temperature == 0:
        return logits.argmax(dim=1)
    logits = logits.double()
    # the likeliest at 0, so that a small temperature drives the others to minus infinity and nothing to plus
    probabilities = ((logits - logits.amax(dim=1, keepdim=True)) / temperature).softmax(dim=1)
    return torch.multinomial(probabilities, 1, generator=generator).squeeze(1)
