"""What multiplies a pruned input where the recipe says `onnx.kernel: auto`: from measured crossovers.

Time of MatMul over that of NMSparseMatMul, without the selection that both need (as `nm-export bench ops
--shared-selection --threads 1 --clock cpu` measures it; float32 weights from memory, those of the first three lines in
cache; Intel Xeon with AVX-512, ONNX Runtime 1.32), at one token by what is kept, and at 8:16 by tokens:

    K x O        8:16   12:16  14:16  15:16      4     16    64    128   512 tokens
    64 x 64      0.77                                  0.59
    128 x 128    0.99                                  0.81
    256 x 256    1.45                                  0.94
    576 x 192    1.55                            1.02  0.96  1.05  1.06  1.04
    576 x 576    1.65   1.13   0.97   0.92       1.01  0.94  1.10  1.13  1.05
    1536 x 576   1.63                            0.89  0.91  1.12  1.14  1.14
    576 x 1536   1.92                            1.16  1.10  1.32  1.22
    4096 x 2048         1.26   1.10   1.02

At one token the operator takes the kept share of the dense time and some more, the less the larger the weight: it wins
where the kept share is below its efficiency, half of the first column. At 64 tokens and more it wins on all these. At
4 to 16 tokens, which need nearly every row and are few to share what packing it costs, it may lose 10 % on narrow
weights. A graph serves all lengths, so single tokens, where there is most to gain, decide.

Calls that `phase` exempts take the operator too. The same ratio where nothing is pruned, by tokens, and where little is
(`--pattern 16:16` and so on; AMD EPYC, Zen 4):

    K x O          16:16, 1   8     64    128 tokens     12:16, 128   14:16, 128
    576 x 192      0.80       1.16  0.82  0.82           0.90         0.84
    576 x 576      1.03       1.22  0.83  0.87           0.97         0.86
    1536 x 576     0.97       1.40  0.83  0.87           0.96         0.87
    576 x 1536     1.15       1.27  0.84  0.87           1.00         0.87
    4096 x 1024    1.15       1.52        0.96           1.10         0.98
    4096 x 4096    1.22       1.28        0.97           1.13         0.99
    4096 x 14336   1.16       1.26        0.97           1.10         0.95
    14336 x 4096   1.18       1.25        0.98           1.12         0.98

So a product that prunes single tokens only loses up to a fifth of the time of prompts and gains what the first table
says, and one that prunes prompts only pays where weights are large.
"""

from nm_export.modeling.modeling_nm_sparse import PHASES

# Numbers in a weight, and the largest share of its rows that may be kept. The last pair is for models that are tests:
# whatever is chosen there, it is a matter of half a microsecond.
_MOST_KEPT = ((1 << 20, 0.94), (1 << 18, 0.82), (1 << 16, 0.7), (0, 0.5))
_MOST_KEPT_OF_PROMPTS = ((1 << 20, 0.8), (0, 0.0))


def fused_product_pays(K: int, O: int, kept: float, phase: int) -> bool:  # noqa: E741
    """Whether `NMSparseMatMul` should compute a product of one of the two, rather than MatMul on the pruned values.

    Args:
        K: input channels.
        O: output channels.
        kept: share of the input channels that a token keeps, 0 to 1.
        phase: of the selection, a value of `PHASES`.
    """
    shares = _MOST_KEPT_OF_PROMPTS if phase == PHASES["prefill"] else _MOST_KEPT
    return kept <= next(share for numbers, share in shares if numbers <= K * O)
