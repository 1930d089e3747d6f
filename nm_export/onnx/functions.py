"""Function bodies: what the custom operators do, in standard ONNX operators.

A runtime that has no kernel for an operator of the domain `ai.nm_export` executes the model-local function of the same
name instead, so that an exported file runs wherever ONNX runs. The body of `NMTopK` states docs/semantics.md once more:

    z      = float32(x) - e           e: the static shift, or the token's mean or median
    values = T(nu * where(k, z, 0))   k: top n of every m by |z| * score, neighbours or strided
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from nm_export.onnx.extras import require

if TYPE_CHECKING:
    from onnx import FunctionProto, NodeProto

DOMAIN = "ai.nm_export"
"""Domain of the custom operators."""
DOMAIN_VERSION = 1
"""Version of the domain that this package writes."""
NM_TOPK = "NMTopK"
"""Name of the operator that keeps n of every m neighbouring channels."""

# A branch is chosen by an attribute, so that a runtime which folds constants keeps one branch only. The exception is
# the phase, which looks at the number of tokens of the call.
#
# Scores are ordered in float64, where NaN and infinity become two finite numbers above the whole float32 range:
# runtimes disagree on the place of NaN in TopK. TopK itself prefers the lower index among equal numbers, by its
# specification.
#
# Attributes are read once, outside of the branches.
_NM_TOPK = """
<domain: "ai.nm_export", opset_import: ["" : 22]>
NMTopK <n, m, shift_mode, variance_correction, phase, strided> (x, score, shift) => (values, token_shift)
{
    keep = Constant <value_int: int = @n> ()
    group_size = Constant <value_int: int = @m> ()
    shift_kind = Constant <value_int: int = @shift_mode> ()
    correct = Constant <value_int: int = @variance_correction> ()
    phase_kind = Constant <value_int: int = @phase> ()
    strided_kind = Constant <value_int: int = @strided> ()

    zero_f = Constant <value_float: float = 0.0> ()
    zero_d = Constant <value = double {0.0}> ()
    inf_d = Constant <value = double {inf}> ()
    zero_i = Constant <value_int: int = 0> ()
    one_i = Constant <value_int: int = 1> ()
    one_1d = Constant <value_ints: ints = [1]> ()
    last_axis = Constant <value_ints: ints = [-1]> ()

    xf = Cast <to: int = 1> (x)
    x_shape = Shape (xf)

    is_static = Equal (shift_kind, zero_i)
    is_mean = Equal (shift_kind, one_i)
    z, token_shift = If (is_static) <
        then_branch = static_shift () => (float z_static, float e_static) {
            z_static = Sub (xf, shift)
            leading = Shape <start: int = 0, end: int = -1> (xf)
            e_shape = Concat <axis: int = 0> (leading, one_1d)
            e_static = Expand (zero_f, e_shape)
        },
        else_branch = dynamic_shift () => (float z_dynamic, float e_dynamic) {
            e_dynamic = If (is_mean) <
                then_branch = token_mean () => (float e_mean) {
                    x64 = Cast <to: int = 11> (xf)
                    mean64 = ReduceMean <keepdims: int = 1> (x64, last_axis)
                    e_mean = Cast <to: int = 1> (mean64)
                },
                else_branch = token_median () => (float e_median) {
                    channels = Shape <start: int = -1> (xf)
                    channels_plus_one = Add (channels, one_1d)
                    two_i = Constant <value_int: int = 2> ()
                    smaller_half = Div (channels_plus_one, two_i)
                    x_nan = IsNaN (xf)
                    x_number = Where (x_nan, zero_f, xf)
                    ascending, ascending_index = TopK <axis: int = -1, largest: int = 0> (x_number, smaller_half)
                    median = Gather <axis: int = -1> (ascending, last_axis)
                    x_nan_f = Cast <to: int = 1> (x_nan)
                    nan_count = ReduceSum <keepdims: int = 1> (x_nan_f, last_axis)
                    has_nan = Greater (nan_count, zero_f)
                    nan_f = Constant <value = float {nan}> ()
                    e_median = Where (has_nan, nan_f, median)
                }
            >
            z_dynamic = Sub (xf, e_dynamic)
        }
    >

    is_both = Equal (phase_kind, zero_i)
    is_strided = Equal (strided_kind, one_i)
    is_pruned = If (is_both) <
        then_branch = every_call () => (bool prune_always) {
            prune_always = Equal (zero_i, zero_i)
        },
        else_branch = by_tokens () => (bool prune_by_tokens) {
            rank_2_shape = Concat <axis: int = 0> (one_1d, x_shape)
            second_to_last = Constant <value_int: int = -2> ()
            tokens = Gather <axis: int = 0> (rank_2_shape, second_to_last)
            one_token = Equal (tokens, one_i)
            is_prefill = Equal (phase_kind, one_i)
            prune_by_tokens = Xor (one_token, is_prefill)
        }
    >

    p = If (is_pruned) <
        then_branch = prune () => (float p_pruned) {
            magnitude = Abs (z)
            s = Mul (magnitude, score)
            s64 = Cast <to: int = 11> (s)
            s_nan = IsNaN (s64)
            above_finite = Constant <value = double {1e300}> ()
            above_inf = Constant <value = double {2e300}> ()
            finite_or_nan = Min (s64, above_finite)
            key = Where (s_nan, above_inf, finite_or_nan)
            group_size_1d = Reshape (group_size, one_1d)
            channels_1d = Shape <start: int = -1> (z)
            group_count_1d = Div (channels_1d, group_size_1d)
            groups_shape = Concat <axis: int = 0> (last_axis, group_count_1d, group_size_1d)
            dealt_shape = Concat <axis: int = 0> (last_axis, group_size_1d, group_count_1d)
            groups = If (is_strided) <
                then_branch = strided_groups () => (double g_strided) {
                    dealt = Reshape (key, dealt_shape)
                    g_strided = Transpose <perm: ints = [0, 2, 1]> (dealt)
                },
                else_branch = neighbours () => (double g_neighbours) {
                    g_neighbours = Reshape (key, groups_shape)
                }
            >
            keep_1d = Reshape (keep, one_1d)
            kept, kept_index = TopK <axis: int = -1, sorted: int = 0> (groups, keep_1d)
            false_b = Constant <value = bool {0}> ()
            true_b = Constant <value = bool {1}> ()
            all_shape = Shape (groups)
            none = Expand (false_b, all_shape)
            kept_shape = Shape (kept_index)
            marks = Expand (true_b, kept_shape)
            k_groups = ScatterElements <axis: int = -1> (none, kept_index, marks)
            k_dealt = If (is_strided) <
                then_branch = undo_strides () => (bool k_strided) {
                    k_strided = Transpose <perm: ints = [0, 2, 1]> (k_groups)
                },
                else_branch = keep_order () => (bool k_neighbours) {
                    k_neighbours = Identity (k_groups)
                }
            >
            k = Reshape <allowzero: int = 1> (k_dealt, x_shape)
            p_pruned = Where (k, z, zero_f)
        },
        else_branch = keep_all () => (float p_all) {
            p_all = Identity (z)
        }
    >

    is_corrected = Equal (correct, one_i)
    scaled = If (is_corrected) <
        then_branch = correct_variance () => (float nu_p) {
            z64 = Cast <to: int = 11> (z)
            z_mean = ReduceMean <keepdims: int = 1> (z64, last_axis)
            z_centred = Sub (z64, z_mean)
            z_squares = Mul (z_centred, z_centred)
            z_var = ReduceMean <keepdims: int = 1> (z_squares, last_axis)
            p64 = Cast <to: int = 11> (p)
            p_mean = ReduceMean <keepdims: int = 1> (p64, last_axis)
            p_centred = Sub (p64, p_mean)
            p_squares = Mul (p_centred, p_centred)
            p_var = ReduceMean <keepdims: int = 1> (p_squares, last_axis)
            z_positive = Greater (z_var, zero_d)
            z_finite = Less (z_var, inf_d)
            p_positive = Greater (p_var, zero_d)
            p_finite = Less (p_var, inf_d)
            z_usable = And (z_positive, z_finite)
            p_usable = And (p_positive, p_finite)
            usable = And (z_usable, p_usable)
            one_d = Constant <value = double {1.0}> ()
            z_safe = Where (usable, z_var, one_d)
            p_safe = Where (usable, p_var, one_d)
            ratio = Div (z_safe, p_safe)
            nu64 = Sqrt (ratio)
            nu = Cast <to: int = 1> (nu64)
            nu_p = Mul (nu, p)
        },
        else_branch = leave_variance () => (float p_only) {
            p_only = Identity (p)
        }
    >
    values = CastLike (scaled, x)
}
"""


def nm_topk_function() -> "FunctionProto":
    """The model-local function `ai.nm_export::NMTopK`: inputs `x`, `score`, `shift`; outputs `values`, `token_shift`.

    Shapes, dtypes and attributes are those of docs/semantics.md. Every input and every attribute must be given.
    """
    return parse_body(_NM_TOPK)


def parse_body(text: str) -> "FunctionProto":
    """The model-local function that is written in ONNX's textual form."""
    require("onnx", "onnx")
    import onnx.parser

    function = onnx.parser.parse_function(text)
    _forget_shapes(function.node)
    return function


def _forget_shapes(nodes: "Iterable[NodeProto]") -> None:
    """Drop the shapes of branch outputs: the textual form can only say "scalar", never "any shape"."""
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                for output in attribute.g.output:
                    output.type.tensor_type.ClearField("shape")
                _forget_shapes(attribute.g.node)
