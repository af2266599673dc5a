"""What docs/specs/check.py takes for a proof, a refutation and a failure; TLC itself runs in `make spec`."""

import pytest

from docs.specs.check import HERE, Run, configurations, judge, mutants, steps

HELD = "Model checking completed. No error has been found.\n9 states generated, 4 distinct states found, 0 left\n"
FELL = (
    "Error: Invariant Steps is violated.\nState 1: <Initial predicate>\n/\\ bad = \"-\"\n"
    "State 2: <Grant line 30, col 1>\n/\\ bad = \"-\"\nState 3: <Close line 90>\n/\\ bad = \"false 429\"\n"
    "914 states generated, 372 distinct states found, 105 left\n"
)
CLEAN, MUTANT = Run(cfg="recall"), Run(cfg="recall", clause="freeignored", expected="Steps")


@pytest.mark.parametrize(("run", "status", "output", "good"), [
    (CLEAN, 0, HELD, True),
    (CLEAN, 12, FELL, False),
    (CLEAN, -1, "", False),
    (CLEAN, 150, "Parsing or semantic analysis failed.", False),
    (MUTANT, 12, FELL, True),
    (MUTANT, 0, HELD, False),
    (MUTANT, 12, FELL.replace("Steps", "Permits"), False),
    (MUTANT, 150, "Parsing or semantic analysis failed.", False),
    (Run(cfg="live", clause="noack", expected="Liveness"), 13, "Temporal properties were violated.", True),
])
def test_only_the_named_property_refutes_and_only_an_exhausted_search_holds(run, status, output, good):
    assert judge(run, status, output, 1.0).good is good


def test_a_refutation_says_what_happened():
    outcome = judge(MUTANT, 12, FELL, 1.0)
    assert outcome.said == "refuted by Steps (false 429)"
    assert outcome.states == "372"
    assert steps(FELL) == ["Grant", "Close"]


def test_every_mutant_has_a_configuration_that_can_lose_a_clause_and_a_name_of_its_own():
    clean = {run.cfg for run in configurations()}
    runs = mutants()
    assert {run.cfg for run in runs} <= clean
    assert len({(run.cfg, run.clause) for run in runs}) == len(runs)
    for name in clean:
        assert " MUT = {}\n" in (HERE / f"{name}.cfg").read_text(), f"{name}.cfg: check.py finds no place for a mutant"
    model = "".join(path.read_text() for path in HERE.glob("*.tla"))
    for run in runs:
        assert f'M("{run.clause}")' in model, f"the model has no clause {run.clause}"
