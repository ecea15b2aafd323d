"""Which groups the method leaves whole, and why."""

from __future__ import annotations

from fxcompress.analysis.groups import ChannelGroup
from fxcompress.passes.projective.pairs import pairs_of
from fxcompress.passes.projective.vectors import check_relu
from fxcompress.passes.structured.method import refusal
from fxcompress.passes.structured.readers import readers, takes_no_constant
from fxcompress.passes.structured.unweighted import scores_pairs, unweighted
from fxcompress.program import Program


def stays_whole(
    program: Program, group: ChannelGroup, reconstruction: str, joint: bool, kernel: str | None
) -> str | None:
    """Why a group stays whole; None where it need not.

    Args:
        program: Whose group.
        group: The group.
        reconstruction: What becomes of the part of units that go.
        joint: Whether dims of heads are units of query and key together.
        kernel: As in `Projective`.
    """
    if kernel and (reason := refusal(lambda: check_relu(program, group))) is not None:
        return reason
    if reconstruction == "none":
        return None
    if scores_pairs(program, group):
        given = reconstruction == "redistribute" or (joint and pairs_of(program, group) is not None)
        return None if given else "no weight reads it that could make up for the units that go"
    reason = unweighted(program, group)
    if reason is None and reconstruction == "linear" and not group.nonlinearities and not kernel:
        own = [one for one in readers(program, group) if not one.tied]
        reason = takes_no_constant(program, own)
    return reason
