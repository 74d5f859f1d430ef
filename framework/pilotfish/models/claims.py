"""Claims: what a decoder says of its rows' bits, and how it finds out.

Knows: which parts are probed by themselves and which in whole passes. Does not know: how.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import attrs
import torch

from pilotfish.invariance.own_operations import ElsewhereCall
from pilotfish.invariance.own_parts import own_parts
from pilotfish.invariance.padding import RowPadding
from pilotfish.invariance.probe_cache import ProbeCache
from pilotfish.invariance.whole_pass import PassProbe, probe_passes
from pilotfish.kernels import KernelBackend
from pilotfish.layers.layer import KeepsBits, Written
from pilotfish.models.decoder import Decoder
from pilotfish.models.native_pass import NativePass
from pilotfish.models.shallow import shallow
from pilotfish.parallel.group import Groups


class Claims(Written):
    """The part of a DecoderModel that answers for its arithmetic."""

    backend: KernelBackend
    device: torch.device
    dtype: torch.dtype
    network: Decoder
    groups: Groups

    keeps_bits: ClassVar[KeepsBits] = False
    """What the author of a class says, of a model, a network or a layer alike. True: what the
    methods of this very class compute gives a row bits of its own on one machine, which is believed
    where it cannot be tried. "portable": besides, with native kernels the same ones on every
    processor, which no machine can try. A subclass with methods of its own says it again."""

    padding: RowPadding = RowPadding()
    """To how many rows a pass is padded: found by `probe_padding`."""
    _is_loaded: bool = False
    _pass_probe: PassProbe | None = None

    if TYPE_CHECKING:

        def build_network(self) -> Decoder:
            """The network of the model, without weights."""

    @property
    def row_multiple(self) -> int:
        """Rows of a pass are padded to this multiple; the head's rows to one of their own."""
        return self.padding.body

    @property
    def is_invariant(self) -> bool:
        """Whether a row's bits are its own: asked for, and found to hold on this machine."""
        return self.backend.invariant and not self.why_not_invariant

    @property
    def why_not_invariant(self) -> str:
        """What gives a row other bits beside other rows, here; "" where nothing was found to."""
        if not self.backend.invariant:
            return self.backend.why_not_invariant
        return self.padding.failed or self.probe_own_parts().why_not_invariant

    @property
    def why_not_portable(self) -> str:
        """What may have other bits on another processor; "" where every part speaks for itself.

        The library's parts do as they were written, and those whose author says so; others where
        all that they are seen to call is the library's, or rounds once.
        """
        if not self.backend.portable:
            return f"the kernels are {self.backend.name!r}"
        return self.probe_own_parts().why_not_portable

    @property
    def silent_parts(self) -> tuple[str, ...]:
        """The classes that are not the library's, and of which no author says that they keep bits.

        A model is believed where there are none.
        """
        return tuple(part.name for part in own_parts(self) if not part.keeps_bits)

    def probe_own_parts(self) -> PassProbe:
        """What whole passes show of the parts that are not the library's; weights may be unread.

        One layer of each kind is tried, at its real widths (see `shallow.py`), once; nothing
        is where every part is the library's, or believed and run by native calls alone.
        """
        if self._pass_probe is None:
            try:
                self._pass_probe = self._try_passes()
            except Exception as error:  # a plugin's parts may raise anything; the run will, too
                told = f"what tries it raised {type(error).__name__}: {error}"
                self._pass_probe = PassProbe(unlike=told)
        return self._pass_probe

    def _try_passes(self) -> PassProbe:
        parts, silent = own_parts(self), self.silent_parts
        if not parts:
            return PassProbe()
        is_portable = all(part.is_portable for part in parts)
        is_watched = self.backend.portable and not is_portable
        # Parts of several ranks answer together only: whole ones are made in their place.
        made = shallow(self, is_loaded=self._is_loaded and self.groups.is_whole)
        if made is None:
            names = ", ".join(part.name for part in parts)
            where = "the weights" if self.groups.is_whole else "the weights of one device"
            return PassProbe(unlike=f"{names} can be tried with {where} only")
        few, vocab_size = made
        if not silent and not is_watched and is_all_native(few):
            return PassProbe()
        build = self.build_network if is_watched else None
        found = probe_passes(few, vocab_size, believed=not silent, silent=silent, build=build)
        if is_portable:
            return attrs.evolve(found, elsewhere=())
        if is_watched and hasattr(self, "encode_images"):
            images = tuple(
                ElsewhereCall(part=part.name, told="what images become, which no text shows")
                for part in parts
                if not part.is_portable
            )
            return attrs.evolve(found, elsewhere=found.elsewhere + images)
        return found

    def probe_padding(self, known: ProbeCache | None = None) -> RowPadding:
        """Finds and keeps it; weights may be unread. known: what other probes found, filled."""
        known = known or ProbeCache()
        self.padding = RowPadding.probe(
            self.network,
            self.network.lm_head,
            backend=self.backend,
            dtype=self.dtype,
            known=known,
            own=self.probe_own_rows(known),
        )
        return self.padding

    def probe_own_rows(self, known: ProbeCache) -> int | None:
        """The row multiple of products that are not `Linear`s; a subclass that has some says it.

        known: asked first, and filled. Weights need not be there. None: no multiple holds.
        """
        del known
        return 1


def is_all_native(model: Claims) -> bool:
    """Whether a pass is native calls alone, whoever planned them: those keep every row's bits."""
    if model.backend.name != "native":
        return False
    planned = NativePass.of(
        model.network, model.backend, dtype=model.dtype, cache_dtype=model.dtype
    )
    return isinstance(planned, NativePass) and planned.num_torch_steps == 0
