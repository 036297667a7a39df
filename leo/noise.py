"""The random numbers of one pass, drawn before it: everything after them is a function of data and noise."""

from typing import NamedTuple

from jaxtyping import Float, Int, Int16
from torch import Tensor


class Noise(NamedTuple):
    """All random numbers of one pass; None where nothing is sampled, or dropped.

    Standard-normal draws of the codes, and of the decoded parameters at each of S + 1 decodings (shape ``*P``: N M D
    of a classifier, P of a whole model); bits of the dropout masks of the support, at the encoder and at each of T
    inner steps, and of the queries.
    """

    latents: Float[Tensor, "B N M Z"] | None = None
    weights: Float[Tensor, "S_plus_1 B *P"] | None = None
    support_bits: Int16[Tensor, "T_plus_1 B N K D"] | None = None
    query_bits: Int16[Tensor, "B N Q D"] | None = None

    def of_tasks(self, rows: Int[Tensor, " b"]) -> "Noise":
        """The noise of some tasks of the batch."""
        per_task = {"latents": 0, "weights": 1, "support_bits": 1, "query_bits": 0}  # the dimension of tasks
        parts = {name: part for name, part in self._asdict().items() if part is not None}
        return Noise(**{name: part.index_select(per_task[name], rows) for name, part in parts.items()})


NO_NOISE = Noise()
