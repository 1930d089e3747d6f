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
"""

from nm_export.modeling.modeling_nm_sparse import PHASES

# Numbers in a weight, and the largest share of its rows that may be kept. The last pair is for models that are tests:
# whatever is chosen there, it is a matter of half a microsecond.
_MOST_KEPT = ((1 << 20, 0.94), (1 << 18, 0.82), (1 << 16, 0.7), (0, 0.5))


def fused_product_pays(K: int, O: int, kept: float, phase: int) -> bool:  # noqa: E741
    """Whether `NMSparseMatMul` should compute a product of one of the two, rather than MatMul on the pruned values.

    Args:
        K: input channels.
        O: output channels.
        kept: share of the input channels that a token keeps, 0 to 1.
        phase: of the selection, a value of `PHASES`. In calls that are not pruned there is no row to skip, and MatMul
            is faster (0.93 at one token, 0.8 at 128): a product that has any such calls stays dense.
    """
    most = next(share for numbers, share in _MOST_KEPT if numbers <= K * O)
    return phase == PHASES["both"] and kept <= most
