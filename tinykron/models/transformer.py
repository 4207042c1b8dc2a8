"""What the model families share: attention with its key/value cache, the MLP, the block, the output, the name table.

Letters: B batch, T query time, S key time, H heads, G key/value heads, K head width, D model width, F MLP width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self, cast

import numpy as np

from tinykron import fused
from tinykron.attention import attention, rotary
from tinykron.backend import Array, xp_of
from tinykron.errors import ShapeError, TinykronError
from tinykron.kron.nested import part
from tinykron.models.checks import Config, check_exit, check_exits, check_ids, check_mask
from tinykron.nn import Dropout, Embedding, Generator, LayerNorm, Linear, Module, RMSNorm, sharing_copy
from tinykron.tensor import Tensor

Angles = tuple[Array, Array]  # cosines and sines of rotary positions, (T, K/2) or (B, 1, T, K/2)

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {  # the names that config.json uses
    "gelu_new": fused.gelu_tanh,
    "gelu_pytorch_tanh": fused.gelu_tanh,
    "gelu": fused.gelu_erf,
    "silu": fused.silu,
    "swish": fused.silu,
}


@dataclass
class Output:
    """What a model returns. L is the number of blocks that ran: all of them, or those up to the deepest exit."""

    logits: Tensor  # (B, T, V); of BERT's heads (B, T, V), (B, T, C), (B, C); None where no head is read
    hidden: tuple[Tensor, ...]  # L + 1 of (B, T, D): the embedding, then each block; the last one after the final norm
    attention_scores: tuple[Tensor, ...] | None  # L of (B, H, T, S), before mask and softmax, when asked for
    pooled: Tensor | None = None  # (B, D): what BERT's pooler makes of the first position
    exits: dict[int, Tensor] | None = None  # when asked for: the logits after so many blocks, shallow to deep
    attention_heads: tuple[Heads, ...] | None = None  # L, without their scores, when asked for
    states: dict[int, Tensor] | None = None  # of a pass that reads no head: what leaves so many blocks, (B, T, D)


class Heads(NamedTuple):
    """What one layer's attention works with."""

    queries: Tensor  # (B, H, T, K), turned where positions are rotary
    keys: Tensor  # (B, G, T, K), likewise
    values: Tensor  # (B, G, T, K)
    scores: Tensor | None  # (B, H, T, S), when asked for


@dataclass(frozen=True)
class Name:
    """A tensor of a checkpoint, and the parameters that it holds side by side along its last axis."""

    file: str
    ours: tuple[str, ...]
    axes: tuple[str, ...] = ()  # what in config.json each axis comes from, for an error to say
    transposed: bool = False  # torch's Linear holds (out, in), ours (in, out)
    alias: str | None = None  # another name for the same tensor: read where `file` is absent, dropped beside it
    note: str = ""  # said when the tensor is missing


class LayerCache:
    """The keys and values that one layer has seen: (B, G, capacity, K), of which `length` positions are filled."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.length = capacity, 0
        self.keys: Array = None
        self.values: Array = None

    def append(self, k_BGTK: Array, v_BGTK: Array) -> tuple[Array, Array]:
        """Store T more positions; return all keys and values so far, (B, G, S, K)."""
        stop = self.length + k_BGTK.shape[2]
        if stop > self.capacity:
            raise ShapeError(f"key/value cache: {stop} positions, made for {self.capacity}")
        if self.keys is None:
            shape = (*k_BGTK.shape[:2], self.capacity, k_BGTK.shape[3])
            self.keys, self.values = (xp_of(k_BGTK).empty(shape, dtype=k_BGTK.dtype) for _ in range(2))
        self.keys[:, :, self.length : stop] = k_BGTK
        self.values[:, :, self.length : stop] = v_BGTK
        self.length = stop
        return self.keys[:, :, :stop], self.values[:, :, :stop]

    def realign(self, moves: Sequence[tuple[int, int, int, int]], length: int) -> None:
        """Move positions within rows, (row, from, to, how many) each, then keep the first `length` positions.

        From and to may overlap, hence the copy: on a GPU the order of an assignment is open.
        """
        for array in (self.keys, self.values) if self.length else ():
            for row, source, target, count in moves:
                array[row, :, target : target + count] = array[row, :, source : source + count].copy()
        self.length = length


class KVCache:
    """One LayerCache per layer, for a whole generation of at most `capacity` positions."""

    def __init__(self, layers: int, capacity: int) -> None:
        self.layers = [LayerCache(capacity) for _ in range(layers)]

    @property
    def length(self) -> int:
        return self.layers[0].length


class Attention(Module):
    """Multi-head attention with separate query, key, value and output matrices."""

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        groups: int | None = None,
        head_width: int | None = None,
        bias: bool = True,
        causal: bool = True,
        dropout: float = 0.0,
        generator: Generator = None,
    ) -> None:
        self.heads, self.groups = heads, groups or heads
        self.head_width = head_width or width // heads
        self.causal = causal
        self.attend: Callable[..., Any] = attention  # bit-exact decoding puts its own in its place
        self.query = Linear(width, heads * self.head_width, bias, generator)
        self.key = Linear(width, self.groups * self.head_width, bias, generator)
        self.value = Linear(width, self.groups * self.head_width, bias, generator)
        self.output = Linear(heads * self.head_width, width, bias, generator)
        self.dropout = Dropout(dropout)

    def forward(
        self,
        x_BTD: Tensor,
        mask_BS: Array | None,
        cache: LayerCache | None = None,
        return_scores: bool = False,
        angles: Angles | None = None,
    ) -> tuple[Tensor, Heads]:
        """Return the mixed values (B, T, D), and the heads with, when asked for, their scores.

        With `angles`, queries and keys are turned by their positions; the cache holds turned keys.
        """
        batch, time, _ = x_BTD.shape
        q_BHTK = self._split(self.query(x_BTD), self.heads)
        k_BGTK = self._split(self.key(x_BTD), self.groups)
        v_BGTK = self._split(self.value(x_BTD), self.groups)
        if angles is not None:
            q_BHTK, k_BGTK = rotary(q_BHTK, *angles), rotary(k_BGTK, *angles)
        keys, values = (k_BGTK, v_BGTK) if cache is None else cache.append(k_BGTK.data, v_BGTK.data)
        mixed = self.attend(
            q_BHTK,
            keys,
            values,
            mask_BS,
            causal=self.causal,
            return_scores=return_scores,
            dropout=self.dropout.active,
            generator=self.dropout.generator,
        )
        mixed_BHTK, scores_BHTS = mixed if return_scores else (mixed, None)
        mixed_BTHK = mixed_BHTK.swapaxes(1, 2) if time > 1 else mixed_BHTK
        mixed_BTD = mixed_BTHK.reshape(batch, time, -1)  # the heads side by side again
        return self.output(mixed_BTD), Heads(q_BHTK, k_BGTK, v_BGTK, scores_BHTS)

    def remember(self, x_BTD: Tensor, cache: LayerCache, angles: Angles | None = None) -> None:
        """Store the keys and values of T more positions without attending: for positions that left below this layer."""
        k_BGTK = self._split(self.key(x_BTD), self.groups)
        v_BGTK = self._split(self.value(x_BTD), self.groups)
        cache.append((k_BGTK if angles is None else rotary(k_BGTK, *angles)).data, v_BGTK.data)

    def _split(self, x_BTD: Tensor, heads: int) -> Tensor:
        """Cut the width into heads: (B, heads, T, K)."""
        batch, time, _ = x_BTD.shape
        if time == 1:  # decoding: a single position need not be swapped past the heads
            return x_BTD.reshape(batch, heads, 1, self.head_width)
        return x_BTD.reshape(batch, time, heads, self.head_width).swapaxes(1, 2)


class Mlp(Module):
    """Two matrices with an activation between them."""

    def __init__(self, width: int, inner: int, activation: str, generator: Generator = None) -> None:
        self.up = Linear(width, inner, generator=generator)
        self.down = Linear(inner, width, generator=generator)
        self.activation = activation

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.down(ACTIVATIONS[self.activation](self.up(x_BTD)))


class GatedMlp(Module):
    """down(silu(gate(x)) * up(x)), LLaMA's. Shazeer 2020."""

    def __init__(self, width: int, inner: int, bias: bool = False, generator: Generator = None) -> None:
        self.gate = Linear(width, inner, bias, generator)
        self.up = Linear(width, inner, bias, generator)
        self.down = Linear(inner, width, bias, generator)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.down(fused.swiglu(self.gate(x_BTD), self.up(x_BTD)))


class Block(Module):
    """Normalise, attend, add; normalise, MLP, add: the block of GPT-2 and of LLaMA."""

    def __init__(
        self,
        norm_1: LayerNorm | RMSNorm,
        attention: Attention,
        norm_2: LayerNorm | RMSNorm,
        mlp: Mlp | GatedMlp,
        dropout: float = 0.0,
    ) -> None:
        self.norm_1, self.attention, self.norm_2, self.mlp = norm_1, attention, norm_2, mlp
        self.dropout = Dropout(dropout)

    def forward(
        self,
        x_BTD: Tensor,
        mask_BS: Array | None,
        cache: LayerCache | None,
        return_scores: bool,
        angles: Angles | None,
    ) -> tuple[Tensor, Heads]:
        mixed_BTD, heads = self.attention(self.norm_1(x_BTD), mask_BS, cache, return_scores, angles)
        x_BTD = x_BTD + self.dropout(mixed_BTD)
        return x_BTD + self.dropout(self.mlp(self.norm_2(x_BTD))), heads

    def remember(self, x_BTD: Tensor, cache: LayerCache, angles: Angles | None) -> None:
        """Store the keys and values that T more positions have here, whatever they are in the end."""
        self.attention.remember(self.norm_1(x_BTD), cache, angles)


class Model(Module):
    """A model of blocks: what it is, what it can do, and the parts of it: model(ids, exit=e, terms=k, width=w)."""

    config: Config
    tokenizer: Any = None  # a tokenizers.Tokenizer, where the folder has one
    embedding: Embedding
    blocks: list[Any]
    exits: tuple[int, ...] = ()  # the depths that were trained to be left at, as the folder says
    exit_parts: Sequence[Any] = ()  # what exits have of their own: see exit_parts.py
    pooler: Any = None  # what BERT reads the first position with
    causal: bool = False  # whether a position sees only those before it

    @property
    def context(self) -> int:
        """The largest number of positions."""
        raise TinykronError(f"{type(self).__name__} defines no context")

    @property
    def writes(self) -> bool:
        """Whether it predicts the next token."""
        return self.causal and self.config.head is None

    @property
    def fills(self) -> bool:
        """Whether it predicts hidden tokens."""
        return self.config.head == "masked_lm"

    @property
    def classifies(self) -> bool:
        """Whether it has a head for labelled tasks: of whole texts, tokens or spans."""
        return self.config.head in ("sequence", "token", "span")

    def __call__(self, *inputs: Any, terms: int | None = None, width: float | None = None, **options: Any) -> Output:
        """Run `forward`, with the first terms (`kron.first_terms`) and MLP units (`kron.first_units`) where asked."""
        return part(self, None, terms, width).forward(*inputs, **options)

    def first_blocks(self, exit: int) -> Self:
        """Return a model of the first `exit` blocks, the final norm and the head, which shares its parameters.

        Raises TinykronError for an exit outside 1..blocks.
        """
        made = sharing_copy(self)
        made.blocks = made.blocks[: check_exit(exit, len(made.blocks))]
        made.config = made.config.with_blocks(len(made.blocks))
        made.exits = tuple(one for one in self.exits if one <= exit)
        return made


class Decoder(Model):
    """A causal language model: embedding, blocks, final norm, and a head of its own or tied to the embedding.

    A family sets the attributes below, and says where positions enter: in `embed`, or as `angles` of the attention.
    """

    blocks: list[Block]
    norm: LayerNorm | RMSNorm
    head: Embedding | None  # None: tied to the embedding
    causal = True

    def embed(self, ids_BT: np.ndarray, positions_BT: np.ndarray) -> Tensor:
        """Return what enters the first block, (B, T, D)."""
        return self.embedding(ids_BT)

    def angles(self, positions_BT: np.ndarray) -> Angles | None:
        """Return the rotary angles of positions on the host, (B, T) or (1, T); None without rotary positions."""
        return None

    def cache(self, capacity: int) -> KVCache:
        """Return an empty key/value cache for `capacity` positions."""
        return KVCache(len(self.blocks), capacity)

    def part(self, exit: int | None) -> Any:
        """Return what an exit has of its own, None for most: the final norm and the head serve every exit."""
        return next((part for part in self.exit_parts if part.exit == exit), None)

    def first_blocks(self, exit: int) -> Self:
        """Return a model of the first `exit` blocks and of what that exit reads with; it shares its parameters."""
        made, part = super().first_blocks(exit), self.part(exit)
        if part is not None and part.block is not None:
            made.blocks, made.norm = [*made.blocks, sharing_copy(part.block)], part.norm
            made.config = made.config.with_blocks(len(made.blocks))
        if part is not None and part.head is not None:
            made.head, made.config = part.head, made.config.changed(tie_word_embeddings=False)
        made.exits, made.exit_parts = (() if self.exit_parts else made.exits), []
        return made

    def read(self, x_BTD: Tensor, exit: int | None = None) -> Tensor:
        """Return the logits (B, T, V) of what leaves a block, or an exit's own block."""
        norm, head = self.reader(exit)
        return self._project(norm(x_BTD), head)

    def reader(self, exit: int | None = None) -> tuple[Module, Any]:
        """Return the norm and the head that an exit reads with: the model's, or what the exit has of its own."""
        part = self.part(exit)
        return (part and part.norm) or self.norm, (part and part.head) or self.head or self.embedding

    def check_cached(self, exit: int) -> None:
        """Raise TinykronError for an exit with a block of its own: the cache has no room for its keys and values."""
        part = self.part(exit)
        if part is not None and part.block is not None:
            raise TinykronError(f"exit {exit}: has a block of its own, which no cache holds; kron.cut makes it a model")

    def _project(self, x_BTD: Tensor, head: Any = None) -> Tensor:
        return (head or self.head or self.embedding).project(x_BTD)

    def forward(
        self,
        ids_BT: Any,
        mask_BS: Any = None,
        *,
        positions_BT: np.ndarray | None = None,
        cache: KVCache | None = None,
        last_only: bool = False,
        attention_scores: bool = False,
        exit: int | None = None,
        exits: Sequence[int] | None = None,
        attention_heads: bool = False,
        read: bool = True,
    ) -> Output:
        """Return the logits (B, T, V) of the next token at each position, and what lies behind them.

        ids_BT            whole numbers, on the host or the model's device
        mask_BS           nonzero where a position counts, over all S = cached + T positions
        positions_BT      places in the sequence; by default cached length, +1, +2, ...
        cache             earlier keys and values; these T positions are added to it (use under no_grad)
        last_only         compute the logits of the last position only
        attention_scores  keep each layer's scores before mask and softmax
        exit              run so many blocks only, then the final norm and the head. Sorted LLaMA, section 3
        exits             several of them from one pass up to the deepest: `out.exits[n]` holds the logits of each
        attention_heads   keep each layer's queries, keys and values
        read              False: no logits; `out.states[n]` of each exit is what `model.read(state)` makes them of
        Raises DataError for an id outside the vocabulary, TinykronError beyond the context or for a wrong exit.
        """
        depths = check_exits(exit, exits, len(self.blocks))
        ids_BT = check_ids(ids_BT)
        batch, time = ids_BT.shape
        past = cache.length if cache else 0
        if past + time > self.context:
            raise TinykronError(f"{past + time} tokens are more than the model's context of {self.context}")
        mask_BS = check_mask(mask_BS, (batch, past + time), self.norm.weight.device)
        positions_BT = np.arange(past, past + time)[None] if positions_BT is None else positions_BT
        x_BTD, angles = self.embed(ids_BT, positions_BT), self.angles(positions_BT)
        heads: list[Any] = []
        hidden, scores = [x_BTD], []
        for index, block in enumerate(self.blocks[: depths[-1]]):
            layer_cache = cache.layers[index] if cache else None
            x_BTD, used = block(x_BTD, mask_BS, layer_cache, attention_scores, angles)
            hidden.append(x_BTD)
            scores.append(used.scores)
            heads.append(used._replace(scores=None) if attention_heads else None)
        states = {depth: self._leave(depth, hidden[depth], mask_BS, cache, angles) for depth in depths}
        hidden[-1] = self.norm(x_BTD)
        if not read:
            return Output(cast(Tensor, None), tuple(hidden), tuple(scores) if attention_scores else None, states=states)
        places = slice(-1, None) if last_only else slice(None)
        inner = {depth: self.read(states[depth][:, places], depth) for depth in depths[:-1]}
        if self.part(depths[-1]) is None:
            logits = self._project(hidden[-1][:, places] if last_only else hidden[-1])
        else:
            logits = self.read(states[depths[-1]][:, places], depths[-1])
        served = None if exits is None else inner | {depths[-1]: logits}
        out = Output(logits, tuple(hidden), tuple(scores) if attention_scores else None, exits=served)
        out.attention_heads = tuple(heads) if attention_heads else None
        return out

    def _leave(
        self, exit: int, x_BTD: Tensor, mask_BS: Array | None, cache: KVCache | None, angles: Angles | None
    ) -> Tensor:
        """Return what an exit reads: what left the trunk, sent through the exit's own block where it has one."""
        part = self.part(exit)
        if part is None or part.block is None:
            return x_BTD
        if cache is not None:
            self.check_cached(exit)
        return part.block(x_BTD, mask_BS, None, False, angles)[0]
