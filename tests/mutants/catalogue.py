"""Every fault that is planted, by the part of the way that it is planted in."""

from __future__ import annotations

from tests.mutants.commits import COMMIT_MUTANTS
from tests.mutants.keys import KEY_MUTANTS
from tests.mutants.turns import TURN_MUTANTS

MUTANTS = (*COMMIT_MUTANTS, *KEY_MUTANTS, *TURN_MUTANTS)
