"""The stories260K LLaMA in the class of transformers, its tokenizer, and its stories."""

from __future__ import annotations

import gzip
import importlib.util
import struct
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

LONGEST = 512  # what the model was trained on
BOS, IGNORED = 1, -100
_FIRST_BYTE = 3  # after unknown, start and end of a text


class Tokenizer:
    """Pieces with scores: of all neighbours that form a piece, the best are merged first."""

    def __init__(self, path: Path) -> None:
        data, place = path.read_bytes(), 4  # the first number is the length of the longest piece
        self.pieces: list[bytes] = []
        self.scores: list[float] = []
        while place < len(data):
            score, length = struct.unpack_from("<fi", data, place)
            place += 8 + length
            self.pieces.append(data[place - length : place])
            self.scores.append(score)
        self._ids = {piece: number for number, piece in reversed(list(enumerate(self.pieces)))}

    def encode(self, text: str) -> list[int]:
        """Tokens of a text, with the one that starts it."""
        tokens: list[int] = []
        for letter in f" {text}":
            known = self._ids.get(letter.encode())
            spelled = [byte + _FIRST_BYTE for byte in letter.encode()]
            tokens += spelled if known is None else [known]
        while (best := self._best_merge(tokens)) is not None:
            tokens = _merged(tokens, *best)
        return [BOS, *tokens]

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of tokens, up to a second start of a text."""
        data = b""
        for place, token in enumerate(tokens):
            if token == BOS and place:
                break
            data += b"" if token == BOS else self._bytes(token)
        return data.decode("utf8", "replace").removeprefix(" ")

    def _bytes(self, token: int) -> bytes:
        piece = self.pieces[token]
        is_byte = _FIRST_BYTE <= token < _FIRST_BYTE + 256
        return bytes([token - _FIRST_BYTE]) if is_byte else piece

    def _best_merge(self, tokens: Sequence[int]) -> tuple[int, int, int] | None:
        pairs = set(pairwise(tokens))
        joined = ((self._ids.get(self.pieces[a] + self.pieces[b]), a, b) for a, b in pairs)
        known = [(self.scores[new], new, a, b) for new, a, b in joined if new is not None]
        return max(known)[1:] if known else None


def _merged(tokens: Sequence[int], new: int, left: int, right: int) -> list[int]:
    """Every such pair of neighbours as one token, from the left."""
    out: list[int] = []
    place = 0
    while place < len(tokens):
        pair = tuple(tokens[place : place + 2]) == (left, right)
        out.append(new if pair else tokens[place])
        place += 2 if pair else 1
    return out


def read_stories(path: Path) -> list[str]:
    """The stories of a text file, packed or not."""
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    parts = data.decode("utf8").split("<|endoftext|>")
    return [story for part in parts if (story := part.strip())]


class Stories:
    """Batches of encoded stories, filled up on the right, with the token that follows each."""

    def __init__(self, encoded: Sequence[Sequence[int]], batch: int) -> None:
        self.encoded, self.batch = [list(story[:LONGEST]) for story in encoded], batch

    def __len__(self) -> int:
        return -(-len(self.encoded) // self.batch)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, len(self.encoded), self.batch):
            chosen = [torch.tensor(story) for story in self.encoded[start : start + self.batch]]
            inputs = torch.nn.utils.rnn.pad_sequence(chosen, batch_first=True)
            labels = torch.nn.utils.rnn.pad_sequence(chosen, True, IGNORED)[:, 1:]
            yield inputs[:, :-1], labels  # what fills up is never looked back at


def load_llama(weights: Path) -> Any:
    """The checkpoint in `transformers.LlamaForCausalLM`, in evaluation mode."""
    transformers = import_transformers()
    config = transformers.LlamaConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=172,
        num_hidden_layers=5,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=LONGEST,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=BOS,
        eos_token_id=BOS,  # a text ends where the next would start
        pad_token_id=0,
        use_cache=False,  # one forward pass; `generate` asks for a cache itself
    )
    model = transformers.LlamaForCausalLM(config)
    missing, unexpected = model.load_state_dict(load_file(weights), strict=False)
    if set(missing) - {"lm_head.weight"} or unexpected:
        raise SystemExit(f"{weights} does not fit: {missing} are missing, {unexpected} too many")
    return model.eval()


def import_transformers() -> Any:
    """transformers, also beside a torchvision that was built for another torch."""
    if importlib.util.find_spec("torchvision"):
        try:
            importlib.import_module("torchvision")
        except RuntimeError:
            # Its operators do not load. A model of language needs none, so it counts as absent.
            sys.modules["torchvision"] = None  # type: ignore[assignment]
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise SystemExit(
            "this example needs transformers: pip install 'fxcompress[models]'"
        ) from error
    return transformers
