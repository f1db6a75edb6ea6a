"""Faults of the memory operators: wrong forms that look right, each of which a derivation got wrong once."""

from __future__ import annotations

from tests.mutants.mutant import Edit, Mutant

_CHUNK = "kernels/hope_kernels/dgd_memory/chunk.py"
_STEP = "kernels/hope_kernels/dgd_memory/step.py"
_TRIANGLE = "kernels/hope_kernels/dgd_memory/triangle.py"
_GATED_DELTA = "kernels/hope_kernels/dgd_memory/gated_delta.py"
_MLP = "kernels/hope_kernels/mlp_memory/chunk.py"

_T_CHUNK = "tests/kernels/test_dgd_chunk.py"
_T_GRADIENTS = "tests/kernels/test_dgd_gradients.py"
_T_STEP = "tests/kernels/test_dgd_step.py"
_T_THEORY = "tests/kernels/test_dgd_theory.py"
_T_TRIANGLE = "tests/kernels/test_triangle.py"
_T_USES = "tests/kernels/test_dgd_uses.py"
_T_MLP = "tests/kernels/test_mlp_chunk.py"


def _one(name: str, meaning: str, path: str, old: str, new: str, *tests: str) -> Mutant:
    """A fault of one edit."""
    return Mutant(name, meaning, (Edit(path, old, new),), tests)


_LINEAR_MUTANTS = (
    _one(
        "decay of the coupling one token late",
        "what token j wrote is weighed by what is left after token t, not before it",
        _CHUNK,
        "        steps = solve(_coupling(keys, pull, decay), torch",
        "        steps = solve(_coupling(keys, delta * gates.lr, decay), torch",
        _T_CHUNK,
    ),
    _one(
        "chunk's start not pulled out",
        "the delta rule acts on the chunk's own writes only",
        _CHUNK,
        "        predicted = (-(pull * kept)[..., None] * keys) @ weights",
        "        predicted = torch.zeros_like(residuals)",
        _T_CHUNK,
    ),
    _one(
        "a token's forgetting in its prediction",
        "the prediction is taken after the token's own forgetting",
        _CHUNK,
        "        predicted = (-(pull * kept)[..., None] * keys) @ weights",
        "        predicted = (-(delta * gates.lr * kept)[..., None] * keys) @ weights",
        _T_CHUNK,
    ),
    _one(
        "beta is lr",
        "another library's gated delta rule computes something else",
        _GATED_DELTA,
        "gates.lr / retention, gates.log_retention)",
        "gates.lr, gates.log_retention)",
        _T_THEORY,
    ),
    _one(
        "read before the token's own write",
        "what a token wrote is not found by its own query",
        _CHUNK,
        "        out = (scores * self.carried[..., rows, :]) @ self.steps",
        "        out = (scores * self.carried[..., rows, :].tril(start - 1)) @ self.steps",
        _T_CHUNK,
    ),
    _one(
        "reads see later tokens",
        "an answer depends on text that is not written yet",
        _CHUNK,
        ".masked_fill_(later, -torch.inf).exp_()",
        ".masked_fill_(later, 0.0).exp_()",
        _T_CHUNK,
    ),
    _one(
        "gradient of the whole squared error",
        "a factor of 2 that makes large chunks diverge",
        _CHUNK,
        "gates.lr[..., None], value=-1)",
        "gates.lr[..., None], value=-2)",
        _T_CHUNK,
    ),
    _one(
        "no forgetting of the chunk's start",
        "retention acts on the chunk's writes, not on what was there before",
        _CHUNK,
        "        weights = torch.addcmul(gathered, self.kept[..., -1, None, None], self.weights)",
        "        weights = gathered + self.weights",
        _T_CHUNK,
    ),
    _one(
        "rows share a memory",
        "a session reads what another one was told",
        _CHUNK,
        "        out = torch.addcmul(out, self.kept[..., rows, None], queries @ self.weights)",
        "        out = torch.addcmul(out, self.kept[..., rows, None], queries @ self.weights[:1])",
        _T_USES,
        _T_CHUNK,
    ),
    _one(
        "a token without the delta rule",
        "a chunk of one token is written by another rule than longer chunks",
        _STEP,
        "        change = change - (delta * lr) * (keys @ weights)\n",
        "        pass\n",
        _T_STEP,
    ),
    _one(
        "a token's decay after its step",
        "the delta rule pulls out what the token has just written",
        _STEP,
        "        kept = kept - column * ((delta * lr) * (keys @ weights))",
        "        kept = kept - column * ((delta * lr) * (keys @ (kept + after)))",
        _T_STEP,
    ),
)

_MOMENTUM_MUTANTS = (
    _one(
        "steps carried one token too far",
        "with momentum, a token's own step is part of the prediction before it",
        _CHUNK,
        "* _shifted(carried)) @ steps",
        "* carried.tril(-1)) @ steps",
        _T_CHUNK,
    ),
    _one(
        "earlier surprise one token late",
        "the surprise before the chunk reaches the prediction with a token's own share",
        _CHUNK,
        "_shifted(kept_surprise[..., None])",
        "kept_surprise[..., None]",
        _T_CHUNK,
    ),
    _one(
        "momentum of the step itself",
        "a step is multiplied by its own token's momentum before it is written",
        _CHUNK,
        "device=momentum.device).tril(-1)",
        "device=momentum.device).tril()",
        _T_CHUNK,
    ),
    _one(
        "steps carried without momentum",
        "a step is written once, not as long as the surprise lasts",
        _CHUNK,
        "    carried = decay @ momentum_decay",
        "    carried = decay",
        _T_CHUNK,
    ),
    _one(
        "surprise starts anew with every chunk",
        "what was surprising at a chunk's end is forgotten",
        _CHUNK,
        "        return weights, torch.addcmul(gathered, self.momentum_kept[..., -1, None, None], self.surprise)",
        "        return weights, gathered",
        _T_CHUNK,
    ),
    _one(
        "earlier surprise not written",
        "the surprise before the chunk changes the momentum, not the memory",
        _CHUNK,
        "        weights = torch.addcmul(weights, self.kept_surprise[..., -1, None, None], self.surprise)\n",
        "",
        _T_CHUNK,
    ),
    _one(
        "pulls carried like steps",
        "the delta rule's part gets momentum too",
        _CHUNK,
        "            gathered = gathered + self._gathered(self.decay, self.pulls)",
        "            gathered = gathered + self._gathered(self.carried, self.pulls)",
        _T_CHUNK,
    ),
)

_TRIANGLE_MUTANTS = (
    _one(
        "rows of blocks without their own block",
        "blocks below the diagonal are inverted to first order only",
        _TRIANGLE,
        "-(inverse[..., rows, rows] @ reached)",
        "-reached",
        _T_TRIANGLE,
    ),
    _one(
        "gradient above the diagonal",
        "what the inverse never looked at gets a gradient",
        _TRIANGLE,
        "@ inverse.mT).tril(-1)",
        "@ inverse.mT)",
        _T_TRIANGLE,
        _T_GRADIENTS,
    ),
)

_MLP_MUTANTS = (
    _one(
        "slope of the nonlinearity missing",
        "the first layer descends another loss",
        _MLP,
        "    inner = through_gelu(before, error @ second.mT)",
        "    inner = error @ second.mT",
        _T_MLP,
    ),
    _one(
        "rate of the hidden layer not normalised",
        "the second layer's steps grow with the hidden activation",
        _MLP,
        "shared.lr / (1 + hidden.square().sum(-1))",
        "shared.lr.expand(hidden.shape[:-1])",
        _T_MLP,
    ),
    _one(
        "residual path missing in the error",
        "the memory aims at the target as if the key were not added to what it finds",
        _MLP,
        " + (keys if is_residual else 0.0)",
        "",
        _T_MLP,
    ),
    _one(
        "scope k_only decays the second layer",
        "scope `k_only` is what `layer_input` says it is not",
        _MLP,
        'float(dgd_scope == "layer_input")',
        'float(dgd_scope != "none")',
        _T_MLP,
    ),
    _one(
        "residual path missing in the read",
        "a query's own part of the answer is lost",
        _MLP,
        "        return found + queries if self.is_residual else found",
        "        return found",
        _T_MLP,
    ),
)

KERNEL_MUTANTS = (*_LINEAR_MUTANTS, *_MOMENTUM_MUTANTS, *_TRIANGLE_MUTANTS, *_MLP_MUTANTS)
