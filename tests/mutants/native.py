"""Faults of the compiled operators: slips that leave plausible numbers, in every stage of a chunk."""

from __future__ import annotations

from tests.mutants.mutant import Edit, Mutant

_FOLDER = "kernels/hope_kernels/csrc/"
_T_FUSED = "tests/model/test_titans_fused.py"
_T_CALLS = "tests/kernels/test_self_modifying.py"
_T_EDGES = "tests/kernels/test_edges.py"
_T_DECODING = "tests/kernels/test_decoding.py"


def _one(name: str, meaning: str, path: str, old: str, new: str, *tests: str) -> Mutant:
    """A fault of one edit."""
    return Mutant(name, meaning, (Edit(_FOLDER + path, old, new),), tests)


NATIVE_MUTANTS = (
    _one(
        "compiled: coupling one token late",
        "what token j wrote is weighed by what is left after token t, not before it",
        "linear_write.h",
        "t ? alike * load(kept + (t - 1) * ld + j)",
        "t ? alike * load(kept + t * ld + j)",
        _T_CALLS,
    ),
    _one(
        "compiled: prediction left out",
        "the delta rule acts on the chunk's own writes only",
        "dgd_memory.cpp",
        "is_predicted ? o.delta * kept : 0.0f",
        "is_predicted ? 0.0f * kept : 0.0f",
        _T_CALLS,
    ),
    _one(
        "compiled: stale prediction in later tiles",
        "every tile predicts from the chunk's start instead of the memory that moved",
        "linear_write.h",
        "if (found && first == 0) {",
        "if (found) {",
        _T_FUSED,
    ),
    _one(
        "compiled: reads before the token's own forgetting",
        "a query finds what the chunk's start held before its own token, not after it",
        "linear_write.h",
        "scaled[t * key_size + i] = shares[t + 1] * q",
        "scaled[t * key_size + i] = shares[t] * q",
        _T_FUSED,
    ),
    _one(
        "compiled: residual paths forgotten",
        "gradients are those of memories without a residual path",
        "dgd_memory.cpp",
        "const float key_share = is_residual ? squared : 0.0f;",
        "const float key_share = 0.0f * squared * is_residual;",
        _T_CALLS,
    ),
    _one(
        "compiled: momentum carried one token early",
        "a pull sees what the token's own step left of earlier ones",
        "linear_write.h",
        "t ? alike * load(carried + (t - 1) * ld + j)",
        "t ? alike * load(carried + t * ld + j)",
        _T_CALLS,
    ),
    _one(
        "compiled: the guard passes NaN",
        "a memory that is no number is not refused",
        "dgd_memory.cpp",
        "return !(next_size <= call.options.max_growth * std::fmax(size, std::sqrt(double(M))));",
        "return next_size > call.options.max_growth * std::fmax(size, std::sqrt(double(M)));",
        _T_FUSED,
    ),
    _one(
        "compiled: a guard that remembers the first norm",
        "a memory that has forgotten itself may grow as if it had not",
        "dgd_memory.cpp",
        "size = next_size, next_size = -1;",
        "next_size = -1;",
        _T_CALLS,
    ),
    _one(
        "compiled: later tiles go on from the chunk's start",
        "of a chunk of several tiles the last alone is kept",
        "linear_write.h",
        "const float* weights = first ? memory.weights_out : memory.weights;",
        "const float* weights = memory.weights;",
        _T_CALLS,
    ),
    _one(
        "compiled: momentum is left behind by the next chunk",
        "the surprise of the first chunk is used again",
        "dgd_memory.cpp",
        "std::swap(weights, weights_next), std::swap(surprise, surprise_next);",
        "std::swap(weights, weights_next);",
        _T_CALLS,
    ),
    _one(
        "compiled: the second attempt is the first",
        "a write that explodes is repeated at its full step size",
        "layer.h",
        "lr[t] *= 0.5f;",
        "lr[t] *= 1.0f;",
        _T_FUSED,
    ),
    _one(
        "compiled: NaN becomes a number",
        "a bad rate turns into an ordinary one and is written",
        "activation.h",
        "x = x < low ? low : x;",
        "x = x > low ? x : low;",
        _T_CALLS,
    ),
    _one(
        "compiled: rates of the generated key",
        "rate memories are read with the key that was made, not with the projection",
        "layer.h",
        "      make_rates(b, h, start, n, is_sum);\n      if (!is_sum) own(key, call.place_k, n), own",
        "      if (!is_sum) own(key, call.place_k, n);\n      make_rates(b, h, start, n, is_sum);\n"
        "      if (!is_sum) own",
        _T_CALLS,
    ),
    _one(
        "compiled: sums make their own keys",
        "heads that count move what they count",
        "layer.h",
        "const bool is_sum = h < call.options.num_sums;",
        "const bool is_sum = h < 0 * call.options.num_sums;",
        _T_FUSED,
    ),
    _one(
        "compiled: the second layer at the first one's rate",
        "hidden activations are taken for unit vectors",
        "mlp_memory.cpp",
        "rates[t] = gates.lr[t] / (1 + dot(",
        "rates[t] = gates.lr[t] / (1 + 0 * dot(",
        _T_FUSED,
    ),
    _one(
        "compiled: gelu's slope without its bell",
        "the gradient through the hidden layer is that of a gate",
        "activation.h",
        "*slope = share + x * bell * 0.3989422804f;",
        "*slope = share;",
        _T_FUSED,
    ),
    _one(
        "compiled: the convolution turned around",
        "the oldest token has the newest one's weight",
        "edges.cpp",
        "load(inputs + w * channels + i) * load(conv + w * channels + i)",
        "load(inputs + w * channels + i) * load(conv + (window - 1 - w) * channels + i)",
        _T_EDGES,
    ),
    _one(
        "compiled: sinks seen from near",
        "past the window the first tokens are seen at a distance that the model was never trained on",
        "decoding.cpp",
        "score<G>(p < sinks ? far : near,",
        "score<G>(p < sinks ? near : near,",
        _T_DECODING,
    ),
    _one(
        "compiled: keys and values kept exact",
        "a decoded token is remembered otherwise than the same token read in a prompt",
        "decoding.cpp",
        "  if (c.is_rounded)\n",
        "  if (false)\n",
        _T_DECODING,
    ),
    _one(
        "compiled: unseen places count",
        "a token attends to what has left its window, or to another session's leftovers",
        "decoding.cpp",
        "for (int g = 0; g < G; g++) scores[g * whole + p] = mask[p];",
        "for (int g = 0; g < G; g++) scores[g * whole + p] = 0;",
        _T_DECODING,
    ),
    _one(
        "compiled: the block's ring is the first one's",
        "every block reads and writes the keys of the first",
        "decoding.cpp",
        "const int64_t skipped = c.offset + u",
        "const int64_t skipped = u",
        _T_DECODING,
    ),
    _one(
        "compiled: a sum that is not kept",
        "a block's input is normalised but not passed on",
        "decoding.cpp",
        "hidden[i] += c.added[r * c.row + i * c.column];",
        "hidden[i] = c.added[r * c.row + i * c.column];",
        _T_DECODING,
    ),
)
