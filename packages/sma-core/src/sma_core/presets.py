"""Models sized as in the published training scripts of SeqBoat, one configuration each.

Ren et al., arXiv 2306.11197; sizes of github.com/renll/SeqBoat (``experiment/*.sh``, the language
model's README, and the architectures that these name). The layers are the published ones. Around
them ours differ: one linear map for a head, no absolute positions for images, EMA kernels that
are not cut off. To change one, ``dataclasses.replace(PRESETS["image"], dropout=0.1)``.
"""

from collections.abc import Mapping
from types import MappingProxyType

from sma_core.config import (
    GatedAttentionConfig,
    HeadConfig,
    InputConfig,
    ModelConfig,
    Norm,
    Position,
    Score,
    TemperedSoftmaxConfig,
)

_PIXEL = InputConfig(numeric=1)  # a grey value or an audio sample, standardised
_BYTE = InputConfig(categorical=(256,))
_LISTOPS = InputConfig(categorical=(15,))  # ten digits, four operators, the closing bracket


def _classifier(
    inputs: InputConfig,
    classes: int,
    *,
    layers: int,
    width: int,
    query_width: int,
    score: Score,
    norm: Norm,
    prenorm: bool,
    init_scale: float,
    window: int = 128,
    position: Position = "simple",
    max_positions: int = 1024,
    dropout: float = 0.0,
) -> ModelConfig:
    """Make a bidirectional classifier of whole sequences; values are twice as wide as the stream.

    Parameters
    ----------
    inputs, classes
        What goes in, and how many classes come out.
    layers, width, query_width, score, norm, prenorm, window, position, max_positions, dropout
        As in the configurations.
    init_scale
        Of the router's temperature.
    """
    attention = GatedAttentionConfig(
        query_width=query_width,
        value_width=2 * width,
        window=window,
        score=score,
        position=position,
        max_positions=max_positions,
    )
    return ModelConfig(
        inputs=inputs,
        head=HeadConfig(kind="sequence_classification", outputs=classes),
        width=width,
        layers=layers,
        dropout=dropout,
        states=16,
        policy=TemperedSoftmaxConfig(init_scale=init_scale),
        pool=(attention,),
        bidirectional=True,
        prenorm=prenorm,
        norm=norm,
    )


PRESETS: Mapping[str, ModelConfig] = MappingProxyType(
    {
        # Long Range Arena.
        "listops": _classifier(
            _LISTOPS,
            10,
            layers=6,
            width=80,
            query_width=64,
            score="softmax",
            norm="layer",
            prenorm=False,
            init_scale=0.3,
            max_positions=2002,
            dropout=0.1,
        ),
        "text": _classifier(
            _BYTE,
            2,
            layers=4,
            width=128,
            query_width=64,
            score="softmax",
            norm="scale",
            prenorm=False,
            init_scale=0.3,
            position="local",
            dropout=0.1,
        ),
        # The encoder of one document; the published head joins the vectors of two.
        "retrieval": _classifier(
            _BYTE,
            2,
            layers=6,
            width=128,
            query_width=64,
            score="softmax",
            norm="scale",
            prenorm=False,
            init_scale=0.3,
            max_positions=4002,
            dropout=0.1,
        ),
        "image": _classifier(
            _PIXEL,
            10,
            layers=8,
            width=160,
            query_width=96,
            score="relu2",
            norm="batch",
            prenorm=True,
            init_scale=0.4,
        ),
        "pathfinder": _classifier(
            _PIXEL,
            2,
            layers=6,
            width=128,
            query_width=64,
            score="relu2",
            norm="batch",
            prenorm=True,
            init_scale=1.0,
        ),
        # Four layers as in the script; the table of commands beside it says six.
        "path_x": _classifier(
            _PIXEL,
            2,
            layers=4,
            width=128,
            query_width=64,
            score="relu2",
            norm="batch",
            prenorm=True,
            init_scale=1.0,
            window=256,
            max_positions=128 * 128,
        ),
        # Speech Commands, ten classes, the raw wave at 16 kHz.
        "speech": _classifier(
            _PIXEL,
            10,
            layers=8,
            width=60,
            query_width=30,
            score="relu2",
            norm="batch",
            prenorm=True,
            init_scale=1.0,
            position="local",
        ),
        # Next byte; the published model ties its output to its embedding.
        "enwik8": ModelConfig(
            inputs=_BYTE,
            head=HeadConfig(kind="step_classification", outputs=256),
            width=616,
            layers=14,
            dropout=0.15,
            states=16,
            policy=TemperedSoftmaxConfig(init_scale=1.0),
            pool=(
                GatedAttentionConfig(
                    query_width=128,
                    value_width=1232,
                    window=1024,
                    score="softmax",
                    position="rotary",
                ),
            ),
        ),
    }
)
