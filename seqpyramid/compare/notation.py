"""Signs and number formats that every written table shares."""

from dataclasses import dataclass

from seqpyramid.compare.statistics import Summary
from seqpyramid.papers import Printed

DAGGER = "†"
"""Marks a row that overrides of the recipe made."""
NOTHING = "–"
"""Stands in a cell that has no value."""


@dataclass(frozen=True)
class Number:
    """How the numbers of one metric are written."""

    metric: str
    decimals: int
    """Decimals of a percentage."""

    @property
    def unit(self) -> str:
        """Unit behind a number standing alone."""
        return " %" if self._percent else ""

    @property
    def difference_unit(self) -> str:
        """Unit of a difference."""
        return " (pp)" if self._percent else ""

    @property
    def _percent(self) -> bool:
        return "accuracy" in self.metric

    def text(self, value: float) -> str:
        """Write a value.

        >>> Number("accuracy", 2).text(0.98714), Number("mse", 2).text(0.00123456)
        ('98.71', '0.001235')
        """
        if self._percent:
            return f"{100 * value:.{self.decimals}f}"
        if self.metric == "bpc":
            return f"{value:.3f}"
        return f"{value:.4g}"

    def spread(self, value: float) -> str:
        """Write a standard deviation."""
        return self.text(value) if self._percent or self.metric == "bpc" else f"{value:.2g}"

    def signed(self, value: float) -> str:
        """Write a difference.

        >>> Number("accuracy", 1).signed(-0.0031), Number("accuracy", 1).signed(-0.0001)
        ('−0.3', '0.0')
        """
        text = self.text(abs(value))
        if float(text) == 0:
            return text
        return ("+" if value > 0 else "−") + text

    def summary(self, summary: Summary | None) -> str:
        """Write mean and deviation; a single seed says so.

        >>> from seqpyramid.compare.statistics import summarize
        >>> Number("accuracy", 1).summary(summarize([0.98, 0.99])), Number("accuracy", 1).summary(summarize([0.98]))
        ('98.5 ± 0.7', '98.0 (one seed)')
        """
        if summary is None:
            return NOTHING
        if summary.sd is None:
            return f"{self.text(summary.mean)} (one seed)"
        return f"{self.text(summary.mean)} ± {self.spread(summary.sd)}"

    def cell(self, cell: Printed) -> str:
        """Write a printed value, in our unit where the paper prints a fraction."""
        if cell.value is None or not self._percent or not cell.printed.startswith("."):
            return cell.printed if cell.printed not in ("", "-") else NOTHING
        return f"{100 * cell.value:.{max(len(cell.printed) - 3, 0)}f}"
