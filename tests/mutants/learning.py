"""Faults of a study, and of the gate that what it learned speaks through."""

from __future__ import annotations

from tests.mutants.mutant import Edit, Mutant

_STUDY = "hope_server/engine/study.py"
_LEVELS = "hope_server/model/levels.py"
_WRITER = "hope_server/engine/memory_writer.py"
_RECOGNITION = "hope_server/model/recognition.py"

_OF_STUDY = "tests/engine/test_study.py"
_OF_RECOGNITION = "tests/model/test_recognition.py"

LEARNING_MUTANTS = (
    Mutant(
        "every row by the first row's gate",
        "what a session may say depends on who shares its batch",
        (Edit(_RECOGNITION, "(ratio / threshold.clamp_min", "(ratio / threshold[:1].clamp_min"),),
        (_OF_RECOGNITION,),
    ),
    Mutant(
        "gate at the wrong end",
        "a level speaks in general text and keeps silent where it was taught",
        (Edit(_RECOGNITION, "self.lengths[block], share)", "self.lengths[block], 1 - share)"),),
        (_OF_RECOGNITION,),
    ),
    Mutant(
        "studies through the gate",
        "what is not recognised yet cannot be learned",
        (Edit(_LEVELS, ' if name != "threshold"}', "}"),),
        (_OF_STUDY, _OF_RECOGNITION),
    ),
    Mutant(
        "gate left as it was",
        "a level that grew speaks everywhere",
        (Edit(_STUDY, "self._general is not None and self._layout", "self._general is None and self._layout"),),
        (_OF_STUDY,),
    ),
    Mutant(
        "known tokens pull",
        "every step is as long as that of the news",
        (Edit(_STUDY, "losses[losses.detach() > KNOWN].sum()", "losses.sum()"),),
        (_OF_STUDY,),
    ),
    Mutant(
        "what is read through is written like a lesson",
        "gates shut on what was known well while a session reads on",
        (Edit(_WRITER, "reach = reach_of(new, past)", "reach = reach_of(new, new)"),),
        ("tests/engine/test_memory_writer.py",),
    ),
    Mutant(
        "every part is a step",
        "a pass writes several times as much as planned",
        (
            Edit(
                _STUDY,
                "        if following and following[0][0] == number:",
                "        if following and not number + 1:",
            ),
        ),
        (_OF_STUDY,),
    ),
    Mutant(
        "rounded weights of another network",
        "studies learn with weights that the server does not have",
        (Edit(_STUDY, "self._rounded is None or self._exact is not params", "self._rounded is None"),),
        (_OF_STUDY,),
    ),
)
