"""The records of a study's runs, and their means, deviations and differences over seeds.

Means and standard deviations are over seeds; a difference is taken seed by seed, and its standard
error is that of the mean of these differences.
"""

import dataclasses
import math
import statistics
from collections.abc import Callable, Iterable, Sequence

from run_study import Study

MISSING = "-"


class Runs:
    """The records of a study.

    Attributes:
      study: its file.
      records: a dict for each run; see `run_study.execute`.
    """

    def __init__(self, study: Study, records: Sequence[dict]):
        self.study, self.records = study, list(records)

    def values(self, name: str) -> list[str]:
        """The values of a setting, in the order of the study's runs."""
        present = {record["settings"][name] for record in self.records}
        return [x for x in dict.fromkeys(run[name] for run in self.study.runs) if x in present]

    def only(self, **settings: str) -> "Runs":
        """The part of the study with these settings."""

        def fits(run: dict[str, str]) -> bool:
            return settings.items() <= run.items()

        study = dataclasses.replace(self.study, runs=list(filter(fits, self.study.runs)))
        return Runs(study, [record for record in self.records if fits(record["settings"])])

    def by_seed(self, figure: Callable[[dict], float | None], **settings: str) -> dict[str, float]:
        """The figure of the runs with these settings, by seed; without those that have none."""
        found: dict[str, float] = {}
        for record in self.of(**settings):
            value = figure(record)
            if value is not None:
                seed = record["settings"]["seed"]
                if seed in found:
                    raise ValueError(f"{settings} are the settings of several runs of seed {seed}.")
                found[seed] = value
        return found

    def of(self, **settings: str) -> list[dict]:
        """The runs with these settings that did not diverge."""
        return [
            record
            for record in self.records
            if "diverged" not in record and settings.items() <= record["settings"].items()
        ]

    def cell(self, figure: Callable, form: str = ".3f", **settings: str) -> str:
        """Mean and standard deviation over the seeds."""
        return spread(self.by_seed(figure, **settings).values(), form)

    def mean(self, figure: Callable, **settings: str) -> float | None:
        """The mean over the seeds, None without any."""
        values = self.by_seed(figure, **settings).values()
        return statistics.fmean(values) if values else None


def spread(values: Iterable[float], form: str = ".3f") -> str:
    """`mean ± standard deviation`."""
    values = list(values)
    if not values:
        return MISSING
    if len(values) == 1:
        return f"{values[0]:{form}}"
    return f"{statistics.fmean(values):{form}} ± {statistics.stdev(values):{form.lstrip('+')}}"


def difference(a: dict[str, float], b: dict[str, float]) -> tuple[float, float] | None:
    """Mean of a - b over the seeds of both, and its standard error; None of fewer than two."""
    values = [a[seed] - b[seed] for seed in a if seed in b]
    if len(values) < 2:
        return None
    return statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))


def last(name: str) -> Callable[[dict], float]:
    """The last value of a curve."""
    return lambda record: record["curves"][name]["values"][-1]


def of_evaluation(name: str, figure: str) -> Callable[[dict], float | None]:
    """A figure of what was measured when the model was trained."""
    return lambda record: record["evaluations"].get(name, {}).get("figures", {}).get(figure)


def cpu_seconds(record: dict) -> float | None:
    """Of the steps of training."""
    return record["cpu_seconds"]


def signed(found: tuple[float, float] | None) -> str:
    """A difference with its standard error."""
    return MISSING if found is None else f"{found[0]:+.4f} ± {found[1]:.4f}"
