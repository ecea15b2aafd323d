"""The essential line or two of an error raised deep inside torch or a runtime."""

from __future__ import annotations

import re

_NOISE = re.compile(
    r"for more |for extended|for c\+\+|torch_logs|torchdynamo|draft_export|the error above"
    r"|if you suspect|consider using data-dependent|next steps|refer to the full"
    r"|size-like symbols|^caused by|if you're using|tried overloads|overload name|declaration:"
    r"|^position:|^value:|cast error",
    re.IGNORECASE,
)
_NODE = re.compile(r"translating node (%?\w+)")
_SENTENCE = re.compile(r"(?<=[.!)]) +|\n+")
_SENTENCES, _WIDTH = 5, 600


def essential_reason(error: BaseException) -> str:
    """What went wrong first, and at which node, without stack traces and advice to torch's authors.

    Example:
        >>> try:
        ...     cause = ValueError("No svd. For more information, see here")
        ...     raise RuntimeError("Step 3 failed") from cause
        ... except RuntimeError as error:
        ...     essential_reason(error)
        'ValueError: No svd.'
    """
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    root = chain[-1]
    sentences = [part.strip(" -\t") for part in _SENTENCE.split(str(root))]
    told = [part for part in sentences if part and not _NOISE.search(part)][:_SENTENCES]
    nodes = [match.group(1) for link in chain if (match := _NODE.search(str(link)))]
    where = f" (at node {nodes[-1].lstrip('%')})" if nodes else ""
    return f"{type(root).__name__}: {' '.join(told)}"[:_WIDTH] + where
