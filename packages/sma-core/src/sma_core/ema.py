"""Multi-head exponential moving average: the linear state space model that every step takes.

Ma et al., "Mega: Moving Average Equipped Gated Attention", arXiv 2209.10655. Axes: B batch, T
time, D channels, N states per channel, C steps of a chunk.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from sma_core.products import by_channel, by_time, held, sum_of_products
from sma_core.tracing import autocasts_to_bfloat16, is_compiling, is_exporting

# Steps of a chunk: long ones suit matrix units, short ones do less work.
CHUNK = 64
CHUNK_ON_GPU = 128
# An exported graph has a fixed number of doublings: states reach back 2^10 chunks, 65,536 steps.
EXPORTED_DOUBLINGS = 10


class Coefficients(NamedTuple):
    """The recurrence ``h = q h + write x``, ``y = sum_n read h``, per channel and state.

    The decay travels as its logarithm: powers ``q^l = exp(l log q)`` then keep their precision
    when q is close to 1 and l is large.
    """

    log_q: Float[Tensor, "D N"]
    write: Float[Tensor, "D N"]
    read: Float[Tensor, "D N"]


class MultiHeadEMA(nn.Module):
    """EMA layer over one or both directions of time.

    Parameters
    ----------
    width
        D.
    states
        N.
    bidirectional
        Add a second EMA over the reversed sequence; both include the step itself.
    method
        ``chunked`` or ``fft``, for whole sequences. Continuing from a state is always chunked.
    """

    def __init__(
        self, width: int, states: int, *, bidirectional: bool = False, method: str = "chunked"
    ) -> None:
        super().__init__()
        self.bidirectional = bidirectional
        self.method = method
        shape = (2 * width if bidirectional else width, states)
        self.delta = nn.Parameter(torch.empty(shape))
        self.alpha = nn.Parameter(torch.empty(shape))
        self.beta = nn.Parameter(torch.empty(shape))
        self.gamma = nn.Parameter(torch.empty(shape))
        self.omega = nn.Parameter(torch.empty(width))
        self._step_key: list[tuple[int, int]] | None = None
        self._step_coefficients: tuple[Tensor, Tensor, Tensor, Tensor] | None = None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the start values of the published code."""
        nn.init.normal_(self.delta, std=0.2)
        nn.init.normal_(self.alpha, std=0.2)
        nn.init.normal_(self.beta, std=0.02)
        with torch.no_grad():
            self.beta[:, ::2] += 1
            self.beta[:, 1::2] -= 1
        nn.init.normal_(self.gamma)
        nn.init.normal_(self.omega)

    def coefficients(self) -> Coefficients:
        """Recurrence of the present weights, in float32 at least."""
        wide = torch.promote_types(self.delta.dtype, torch.float32)
        p = torch.sigmoid(self.delta.to(wide))
        # At a decay of exactly 0 the logarithm has neither a value nor a gradient.
        loss = (p * torch.sigmoid(self.alpha.to(wide))).clamp_max(1 - torch.finfo(wide).eps)
        log_q = torch.log1p(-loss)
        scale = 1 / math.sqrt(self.gamma.shape[1])
        return Coefficients(log_q, p * self.beta, self.gamma.to(wide) * scale)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: Float[Tensor, "B D N"] | None = None,
        lengths: Int[Tensor, "B"] | None = None,
    ) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B D N"] | None]:
        """Run over a batch of sequences.

        Coefficients, and the states that chunks hand on, are float32 at least, also under
        autocast. Under autocast to bfloat16 the products within a chunk take bfloat16 operands, and
        the output is bfloat16, as a linear layer's is.

        Parameters
        ----------
        x
            Input; padded steps hold zeros.
        state
            h before the first step; None starts from zero and returns no final state.
        lengths
            Valid steps, at whose end the final state is taken; None when all are valid.
        """
        wide = torch.promote_types(self.delta.dtype, torch.float32)
        narrow = autocasts_to_bfloat16(x.device.type)
        with torch.autocast(x.device.type, enabled=False):
            z = x.to(wide)
            both = torch.cat((z, z.flip(1)), dim=-1) if self.bidirectional else z
            fft = self.method == "fft" and not is_exporting()
            if fft and state is None:
                y, final = ema_fft(both, self.coefficients(), self.omega.to(wide)), None
            else:
                y, final = ema_chunked(
                    both,
                    self.coefficients(),
                    state,
                    lengths,
                    skip=self.omega.to(wide),
                    chunk=CHUNK_ON_GPU if x.is_cuda else CHUNK,
                    operands=torch.bfloat16 if narrow else wide,
                )
            if self.bidirectional:
                forth, back = y.chunk(2, dim=-1)
                y = forth + back.flip(1)
            return y.to(torch.bfloat16 if narrow else x.dtype), final

    def step(self, x: Float[Tensor, "B D"], state: Float[Tensor, "B D N"]) -> Tensor:
        """One step; `state` is updated in place. No gradient."""
        q, write, read, omega = self.prepared()
        z = x.to(q.dtype)
        state.mul_(q).addcmul_(write, z.unsqueeze(-1))
        return torch.addcmul(torch.linalg.vecdot(state, read), omega, z).to(x.dtype)

    def init_state(self, batch: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Make the state before the first step: zeros, in float32 at least."""
        self._step_key = None
        wide = torch.promote_types(dtype, torch.float32)
        return torch.zeros(batch, *self.delta.shape, device=device, dtype=wide)

    def prepared(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Give what `step` reads: q, write, read, omega; anew only when a weight has changed."""
        if is_exporting():  # its tensors must not outlive the trace
            log_q, write, read = self.coefficients()
            return log_q.exp(), write, read, self.omega.to(read.dtype)
        weights = [w for w in self._parameters.values() if w is not None]
        key = [(w.data_ptr(), 0 if w.is_inference() else w._version) for w in weights]
        if key != self._step_key or self._step_coefficients is None:
            log_q, write, read = self.coefficients()
            self._step_coefficients = (log_q.exp(), write, read, self.omega.to(read.dtype))
            self._step_key = key
        return self._step_coefficients


def ema_chunked(
    x: Float[Tensor, "B T D"],
    coefficients: Coefficients,
    state: Float[Tensor, "B D N"] | None = None,
    lengths: Int[Tensor, "B"] | None = None,
    *,
    skip: Float[Tensor, "S"] | None = None,
    chunk: int,
    operands: torch.dtype | None = None,
) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B D N"] | None]:
    """EMA by matrix products: a Toeplitz block within a chunk, the state between chunks.

    Parameters
    ----------
    x
        Input.
    coefficients
        The recurrence.
    state
        h before the first step; None starts from zero and returns no final state.
    lengths
        Steps of each sequence after which the final state is taken; None means T.
    skip
        Weight of a step's own input, omega, of the first S channels; None for 0.
    chunk
        C. Work per channel and step grows as C + 2N, the number of chunks falls as T / C.
    operands
        What the factors of products are rounded to; None keeps the dtype of `x`.

    Returns
    -------
    tuple
        The weighted sum of the states at each step, and the final state.
    """
    batch, steps, width = x.shape
    exporting = is_exporting()  # one graph then serves any number of steps
    size = chunk if exporting else min(chunk, steps)
    count = (steps + size - 1) // size  # rounded up by no negative number: ONNX cuts off there
    log_q, write, read = coefficients
    exponent = torch.arange(size + 1, device=x.device, dtype=log_q.dtype)
    powers = torch.exp(log_q.unsqueeze(-1) * exponent)  # [D, N, C + 1]
    kernel = ((write * read).unsqueeze(1) @ powers[..., :size]).squeeze(1)

    if skip is not None:  # on the diagonal of the Toeplitz block it costs nothing
        kernel = kernel + functional.pad(skip, (0, width - skip.shape[0])).unsqueeze(1) * (
            exponent[:size] == 0
        )

    padded = functional.pad(x, (0, 0, 0, count * size - steps)) if exporting or steps % size else x
    xs = by_channel(padded.to(operands or x.dtype).view(-1, size, width))
    ys = torch.bmm(xs, _toeplitz(kernel).to(xs.dtype))
    if not exporting and count == 1 and state is None:
        return by_time(ys).view(batch, steps, width), None

    # Weight of step j in the state at its chunk's end: write * q^(C - 1 - j).
    absorb = (write.unsqueeze(-1) * powers[..., :size].flip(-1)).mT
    gained = torch.bmm(xs, absorb.to(xs.dtype)).unflatten(1, (batch, count)).to(x.dtype)
    if state is None:
        gained = functional.pad(gained[:, :, :-1], (0, 0, 1, 0))
    else:
        gained = torch.cat((state.permute(1, 0, 2).unsqueeze(2), gained), dim=2)
    entering = _scan(gained, log_q * size)  # [D, B, count, N]; one more with a state: the last
    emit = read.unsqueeze(-1) * powers[..., 1:]
    carried = entering[:, :, :count].flatten(1, 2).to(xs.dtype)
    if is_compiling() and torch.is_grad_enabled():  # then the product above is left out
        ys = sum_of_products(xs, _toeplitz(kernel).to(xs.dtype), carried, emit.to(xs.dtype))
    else:  # not `baddbmm`: it first copies what it adds to
        ys = torch.bmm(carried, emit.to(xs.dtype)).add_(ys)
    y = by_time(ys).view(batch, count * size, width)[:, :steps]
    if state is None:
        return y, None

    # The final state lies inside a chunk: decay the state that enters it, add the steps before
    # the end, pushed to the right so that one matrix serves every remainder.
    if lengths is None:
        lengths = torch.full((batch,), steps, device=x.device)
    rest = lengths % size
    behind = torch.arange(size, device=x.device) - size + lengths[:, None]  # [B, C]
    inside = behind >= (lengths - rest)[:, None]
    tail = x[torch.arange(batch, device=x.device)[:, None], behind.clamp_min(0)]
    tail = tail.where(inside.unsqueeze(-1), 0.0).permute(2, 0, 1)
    rows = torch.arange(batch, device=x.device)
    entered = entering[:, rows, lengths // size]  # [D, B, N]
    decay = torch.exp(log_q.unsqueeze(1) * rest.to(log_q.dtype)[:, None])
    final = torch.baddbmm(entered * decay, tail, absorb)
    return y, final.permute(1, 0, 2)


def ema_fft(
    x: Float[Tensor, "B T D"],
    coefficients: Coefficients,
    skip: Float[Tensor, "S"] | None = None,
) -> Float[Tensor, "B T D"]:
    """EMA as a causal convolution by FFT, from a zero state; `skip` as in `ema_chunked`."""
    steps = x.shape[1]
    log_q, write, read = coefficients
    # q^(a C + b) = q^(a C) q^b: the kernel in O(D N sqrt(T)) memory instead of O(D N T).
    size = math.isqrt(steps - 1) + 1
    near = torch.arange(size, device=x.device, dtype=log_q.dtype)
    weight = (write * read).unsqueeze(1) * torch.exp(log_q.unsqueeze(1) * near[:, None] * size)
    kernel = (weight @ torch.exp(log_q.unsqueeze(-1) * near)).flatten(1)[:, :steps]
    spectrum = torch.fft.rfft(x.mT, n=2 * steps) * torch.fft.rfft(kernel, n=2 * steps)
    y = torch.fft.irfft(spectrum, n=2 * steps)[..., :steps].mT
    if skip is None:
        return y
    return torch.addcmul(y, x, functional.pad(skip, (0, x.shape[2] - skip.shape[0])))


def _toeplitz(kernel: Float[Tensor, "D C"]) -> Float[Tensor, "D C C"]:
    """Matrix whose row j, column i is ``kernel[i - j]``, zero below the diagonal.

    Rows are read from one periodic sequence with a period one short of the kernel's padded
    length, so each starts one element earlier than the last: copies and views, no gather.
    """
    size = kernel.shape[1]
    period = functional.pad(kernel, (0, size))
    rows = period.unsqueeze(1).expand(-1, size, -1).reshape(-1, 2 * size * size)
    return rows[:, : size * (2 * size - 1)].view(-1, size, 2 * size - 1)[..., :size]


def _scan(gained: Float[Tensor, "D B K N"], log_decay: Float[Tensor, "D N"]) -> Tensor:
    """Run ``h_k = decay h_(k-1) + gained_k`` along K by doubling: log2(K) steps."""
    if is_exporting():
        return _scan_exported(gained, log_decay)
    distances = [2**i for i in range((gained.shape[2] - 1).bit_length())]
    if not distances:
        return gained
    # Laid out, as a compiler would compute each decay anew for every row.
    decays = held(torch.stack([torch.exp(log_decay * distance) for distance in distances]))
    for distance, decay in zip(distances, decays.unbind(), strict=True):
        earlier = functional.pad(gained[:, :, :-distance], (0, 0, distance, 0))
        gained = torch.addcmul(gained, earlier, decay[:, None, None])
    return gained


def _scan_exported(gained: Float[Tensor, "D B K N"], log_decay: Float[Tensor, "D N"]) -> Tensor:
    """As `_scan`, by the same steps for every K: a graph cannot count them."""
    place = torch.arange(gained.shape[2], device=gained.device)
    for distance in (2**i for i in range(EXPORTED_DOUBLINGS)):
        earlier = gained.index_select(2, (place - distance).clamp_min(0))
        decay = torch.exp(log_decay * distance)[:, None, None]
        gained = gained + earlier * decay * (place >= distance)[:, None]
    return gained
