"""Fire drills: faults planted on purpose, which the loop must stop, and honest candidates, which
it must not."""

from trueup.drill.faults import CONTROL, FAULTS, Fault
from trueup.drill.run import Drill, run, run_on
from trueup.drill.trial import Outcome

__all__ = ["CONTROL", "FAULTS", "Drill", "Fault", "Outcome", "run", "run_on"]
