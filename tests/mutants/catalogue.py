"""Every fault that is planted: on a turn's way to the store, in the memory operators, in studies."""

from __future__ import annotations

from tests.mutants.commits import COMMIT_MUTANTS
from tests.mutants.kernels import KERNEL_MUTANTS
from tests.mutants.keys import KEY_MUTANTS
from tests.mutants.learning import LEARNING_MUTANTS
from tests.mutants.native import NATIVE_MUTANTS
from tests.mutants.turns import TURN_MUTANTS

MUTANTS = (
    *COMMIT_MUTANTS,
    *KEY_MUTANTS,
    *TURN_MUTANTS,
    *KERNEL_MUTANTS,
    *NATIVE_MUTANTS,
    *LEARNING_MUTANTS,
)
